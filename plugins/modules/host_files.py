#!/usr/bin/python
"""Place a set of files on a host as one step: all of them, checked by the program that reads them, or none.

Runs on the host with the standard library alone. Beside each set it keeps a manifest (path, owner, mode, SHA-256)
in /etc/provision/files.d, so that anybody can tell later what was changed by hand, and a journal while it works,
so that a run that is killed half-way is undone by the next one.
"""

from __future__ import annotations

import base64
import errno
import grp
import hashlib
import json
import os
import pwd
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: host_files
short_description: Place a set of files, checked as a whole, with a manifest
description:
  - Writes every file atomically, then runs O(check). When a check fails, every file is as it was before.
  - In check mode nothing is written, and owners and directories that do not exist yet are no error.
  - Files of the set's last manifest that are no longer listed are removed.
options:
  name:
    description: Name of the set; the manifest is C(/etc/provision/files.d/NAME.json).
    required: true
    type: str
  files:
    description: Each with C(path), C(content), and C(owner), C(group), C(mode) (root, root, 0644).
    required: true
    type: list
    elements: dict
    suboptions:
      path: {description: Absolute path., required: true, type: path}
      content: {description: The whole text., required: true, type: str}
      owner: {description: User name., default: root, type: str}
      group: {description: Group name., default: root, type: str}
      mode: {description: Octal mode in quotes., default: "0644", type: str}
      secret: {description: Leave the text out of the diff., default: false, type: bool}
      tracked: {description: Name it in the manifest (not for one that the host updates)., default: true, type: bool}
  check:
    description: Commands (lists of words) that must succeed with the new files in place.
    default: []
    type: list
    elements: list
author: The provision developers
"""

EXAMPLES = r"""
- name: Place the server's settings
  host_files:
    name: postgresql
    files:
      - path: /etc/postgresql/14/main/conf.d/50-provision.conf
        content: "{{ lookup('ansible.builtin.template', 'postgresql/50-provision.conf.j2') }}"
        owner: postgres
        group: postgres
        mode: "0640"
    check: [[runuser, -u, postgres, --, /usr/lib/postgresql/14/bin/postgres, -C, port, -D, /etc/postgresql/14/main]]
"""

RETURN = r"""
changed_paths: {description: Files that were written or removed., returned: always, type: list}
"""

MANIFESTS = Path("/etc/provision/files.d")


class State:
    """What is on disk at one path: bytes, owner, group and mode, or nothing."""

    def __init__(self, content: bytes | None, owner: str = "root", group: str = "root", mode: int = 0o644) -> None:
        """Keep the four; `content` None means that there is no file."""
        self.content, self.owner, self.group, self.mode = content, owner, group, mode

    @classmethod
    def read(cls, path: Path) -> State:
        """Look at a path. Raises OSError for what is neither a plain file nor absent: it is not ours to replace."""
        if not os.path.lexists(path):
            return cls(None)
        if path.is_symlink() or not path.is_file():
            raise OSError(errno.EEXIST, "is a link, a folder or a device, not a plain file: move it away", str(path))
        about = path.stat()
        return cls(
            path.read_bytes(),
            _name(pwd.getpwuid, about.st_uid),
            _name(grp.getgrgid, about.st_gid),
            about.st_mode & 0o7777,
        )

    def write(self, path: Path) -> None:
        """Make the path be so, atomically and durably."""
        if self.content is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(self.content)
                os.fchown(stream.fileno(), _number(pwd.getpwnam, self.owner), _number(grp.getgrnam, self.group))
                os.fchmod(stream.fileno(), self.mode)
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def same(self, other: State) -> bool:
        """Compare everything that this module is responsible for."""
        return vars(self) == vars(other)

    def dump(self) -> dict[str, Any]:
        """Give the journal's form."""
        text = None if self.content is None else base64.b64encode(self.content).decode()
        return {**vars(self), "content": text}

    @classmethod
    def load(cls, dumped: dict[str, Any]) -> State:
        """Read the journal's form."""
        text = dumped["content"]
        return cls(None if text is None else base64.b64decode(text), dumped["owner"], dumped["group"], dumped["mode"])


def _name(look_up: Any, number: int) -> str:
    try:
        return str(look_up(number)[0])
    except KeyError:
        return str(number)


def _number(look_up: Any, name: str) -> int:
    return int(name) if name.isdigit() else int(look_up(name)[2])


def _manifest(files: dict[Path, State]) -> bytes:
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


def _roll_back(journal: Path) -> list[str]:
    """Put back what a journal holds, each file for itself; name those that cannot be put back."""
    failed = []
    for path, dumped in _read(journal).items():
        try:
            State.load(dumped).write(Path(path))
        except (OSError, KeyError, ValueError) as error:
            failed.append(f"{path}: {error}")
    if failed:
        journal.replace(journal.with_suffix(".failed"))
    else:
        journal.unlink(missing_ok=True)
    return failed


def _read(path: Path) -> dict[str, Any]:
    """Read a journal or a manifest; a damaged one is set aside, for it says nothing that could be relied on."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        path.replace(path.with_suffix(".damaged"))
        return {}
    return found if isinstance(found, dict) else {}


def _diff(path: Path, before: State, after: State, secret: bool) -> dict[str, str]:
    def head(state: State) -> str:
        return "" if state.content is None else f"# {state.owner}:{state.group} {state.mode:04o}\n"

    def body(state: State) -> str:
        return "(secret)\n" if secret and state.content else (state.content or b"").decode(errors="replace")

    return {
        "before_header": str(path),
        "after_header": str(path),
        "before": head(before) + body(before),
        "after": head(after) + body(after),
    }


class Module(AnsibleModule):
    """A module that does not write its files' contents into the host's log."""

    def _log_invocation(self) -> None:
        """Name the files alone: Ansible notes every argument before anybody could tell which of them is a secret."""
        self.log(f"places {self.params['name']}: {', '.join(row['path'] for row in self.params['files'])}")


def main() -> None:
    """Run the module."""
    module = Module(
        argument_spec={
            "name": {"type": "str", "required": True},
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True, "no_log": False},
                    "owner": {"type": "str", "default": "root"},
                    "group": {"type": "str", "default": "root"},
                    "mode": {"type": "str", "default": "0644"},
                    "secret": {"type": "bool", "default": False, "no_log": False},
                    "tracked": {"type": "bool", "default": True},
                },
            },
            "check": {"type": "list", "elements": "list", "default": []},
        },
        supports_check_mode=True,
    )
    # Masked in everything that Ansible shows of this call, its arguments included.
    module.no_log_values.update(row["content"] for row in module.params["files"] if row["secret"] and row["content"])
    name = module.params["name"]
    manifest, journal = MANIFESTS / f"{name}.json", MANIFESTS / f".{name}.journal"
    if not module.check_mode and (failed := _roll_back(journal)):
        module.fail_json(msg=f"a run that was killed left files that cannot be put back: {'; '.join(failed)}")

    wanted = {
        Path(row["path"]): State(row["content"].encode(), row["owner"], row["group"], int(row["mode"], 8))
        for row in module.params["files"]
    }
    secret = {Path(row["path"]) for row in module.params["files"] if row["secret"]}
    listed = _read(manifest).get("files", [])
    target = {**{Path(row["path"]): State(None) for row in listed}, **wanted}
    try:
        before = {path: State.read(path) for path in target}
    except OSError as error:
        module.fail_json(msg=f"{error.filename} {error.strerror}; nothing of this set was changed")
    changed = [path for path, state in target.items() if not state.same(before[path])]
    result = {
        "changed": bool(changed),
        "changed_paths": [str(path) for path in changed],
        "diff": [_diff(path, before[path], target[path], path in secret) for path in changed],
    }
    if module.check_mode:
        module.exit_json(**result)

    MANIFESTS.mkdir(mode=0o755, parents=True, exist_ok=True)
    if changed:
        State(json.dumps({str(path): before[path].dump() for path in changed}).encode(), mode=0o600).write(journal)
        try:
            for path in changed:
                target[path].write(path)
        except (OSError, KeyError) as error:
            _roll_back(journal)
            module.fail_json(msg=f"cannot place {path}: {error}; every file of this set is as it was before")
        for command in module.params["check"]:
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
            if done.returncode != 0:
                _roll_back(journal)
                module.fail_json(
                    msg=f"refused by {command[0]}: {(done.stderr or done.stdout).strip()}",
                    restored=[str(path) for path in changed],
                    command=" ".join(command),
                )
    tracked = {Path(row["path"]) for row in module.params["files"] if row["tracked"]}
    State(_manifest({path: wanted[path] for path in tracked})).write(manifest)
    journal.unlink(missing_ok=True)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
