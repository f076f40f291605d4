"""Files and directories of one set on this host: read, compare, write, journal. Does IO; standard library only.

Every write is atomic and durable, and follows no link that another user than root could have put there. The journal
holds what was on disk before a run, so that a run that was killed half-way is undone by the next one.
"""

from __future__ import annotations

import base64
import errno
import grp
import hashlib
import json
import os
import pwd
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import secure_path

OURS = "provision"
"""Name of the directories that roles make: /etc/provision, /usr/local/share/provision and others."""


class State:
    """The content, owner, group and mode of one path; `content` is None where there is no file."""

    def __init__(self, content: bytes | None, owner: str = "root", group: str = "root", mode: int = 0o644) -> None:
        """Keep the four values."""
        self.content, self.owner, self.group, self.mode = content, owner, group, mode

    @classmethod
    def read(cls, path: Path) -> State:
        """Read a path. Raises OSError for anything but a plain file or no file: it is not ours to replace."""
        try:
            content, about = secure_path.read(path)
        except FileNotFoundError:
            return cls(None)
        return cls(content, *_owners(about), about.st_mode & 0o7777)

    def write(self, path: Path) -> None:
        """Replace the path atomically and durably. Raises OSError, and KeyError for an unknown user or group."""
        if self.content is None:
            secure_path.remove(path)
            return
        secure_path.replace(path, self.content, self.mode, _numbers(self.owner, self.group), make=True)

    def same(self, other: State) -> bool:
        """Compare all four values."""
        return vars(self) == vars(other)

    def head(self) -> str:
        """Return owner, group and mode as the first line of a diff; "" where there is no file."""
        return "" if self.content is None else f"# {self.owner}:{self.group} {self.mode:04o}\n"

    def dump(self) -> dict[str, Any]:
        """Return the journal's form."""
        text = None if self.content is None else base64.b64encode(self.content).decode()
        return {**vars(self), "content": text}

    @classmethod
    def load(cls, dumped: dict[str, Any]) -> State:
        """Read the journal's form."""
        text = dumped["content"]
        return cls(None if text is None else base64.b64decode(text), dumped["owner"], dumped["group"], dumped["mode"])


def read_directory(path: Path) -> State:
    """Read a directory as a State without text. Raises OSError where the path is something else.

    A link of root's own to a directory is followed, since administrators move data to another disk that way.
    """
    try:
        with secure_path.directory(path) as handle:
            about = os.fstat(handle)
    except FileNotFoundError:
        return State(None)
    except NotADirectoryError:
        raise OSError(errno.EEXIST, "is a file, not a directory: move it away", str(path)) from None
    return State(b"", *_owners(about), about.st_mode & 0o7777)


def make_directory(path: Path, state: State) -> None:
    """Make a directory, or correct its owner and mode. Raises OSError, and KeyError for an unknown user or group."""
    secure_path.make_directory(path, state.mode, _numbers(state.owner, state.group))


def closed_parents(files: Iterable[Path]) -> dict[Path, State]:
    """Return our own directories above these files that only root can enter, with the state that they should have.

    Earlier versions made them under the host's umask, 027 or 077 on a hardened host. Ours belong to root and are named
    provision, or lie below such a directory.
    """
    parents = {parent for path in files for parent in path.parents if OURS in parent.parts}
    found = {path: about for path in sorted(parents) if (about := secure_path.about(path))}
    closed = [path for path, about in found.items() if stat.S_ISDIR(about.st_mode) and not about.st_mode & stat.S_IXOTH]
    return {path: State(b"", mode=0o755) for path in closed if found[path].st_uid == os.geteuid()}


def _owners(about: os.stat_result) -> tuple[str, str]:
    return _name(pwd.getpwuid, about.st_uid), _name(grp.getgrgid, about.st_gid)


def _name(look_up: Any, number: int) -> str:
    try:
        return str(look_up(number)[0])
    except KeyError:
        return str(number)


def _numbers(owner: str, group: str) -> tuple[int, int]:
    user = int(owner) if owner.isdigit() else pwd.getpwnam(owner).pw_uid
    return user, int(group) if group.isdigit() else grp.getgrnam(group).gr_gid


def manifest(files: dict[Path, State]) -> bytes:
    """Return the text of the manifest of a set: path, owner, group, mode and SHA-256 of each file."""
    rows = [
        {
            "path": str(path),
            "owner": state.owner,
            "group": state.group,
            "mode": f"{state.mode:04o}",
            "sha256": hashlib.sha256(state.content or b"").hexdigest(),
        }
        for path, state in sorted(files.items())
    ]
    return (json.dumps({"schema": 1, "files": rows}, indent=2) + "\n").encode()


def begin(journal: Path, before: dict[Path, State]) -> None:
    """Write the journal: what the paths hold before they are changed."""
    State(json.dumps({str(path): state.dump() for path, state in before.items()}).encode(), mode=0o600).write(journal)


def roll_back(journal: Path) -> list[str]:
    """Restore every file of a journal and give the failures; a journal that could not be restored is kept."""
    failed = []
    for path, dumped in read_json(journal).items():
        try:
            State.load(dumped).write(Path(path))
        except (OSError, KeyError, ValueError) as error:
            failed.append(f"{path}: {error}")
    if failed:
        journal.replace(journal.with_suffix(".failed"))
    else:
        journal.unlink(missing_ok=True)
    return failed


def read_json(path: Path, *, rename: bool = True) -> dict[str, Any]:
    """Read a journal or a manifest; {} where there is none. A damaged one is renamed to .damaged, with `rename`."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        if rename:
            path.replace(path.with_suffix(".damaged"))
        return {}
    return found if isinstance(found, dict) else {}


def difference(path: Path, before: State, after: State, secret: bool) -> dict[str, str]:
    """Return the diff of one path as Ansible shows it; the text of a secret file is left out."""

    def body(state: State) -> str:
        return "(secret)\n" if secret and state.content else (state.content or b"").decode(errors="replace")

    return {
        "before_header": str(path),
        "after_header": str(path),
        "before": before.head() + body(before),
        "after": after.head() + body(after),
    }
