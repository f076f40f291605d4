"""The SSH key with which this host's postgres reaches the repository. The private half never leaves the host.

Does IO: creates the folder as root, and everything in it as its owner, postgres.
"""

from __future__ import annotations

import os
import pwd
import re
from dataclasses import dataclass
from pathlib import Path

from provision import secure_path, system
from provision.errors import HostError

PATH = Path("/etc/pgbackrest/ssh/id_ed25519")
PUBLIC = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]{68} \S+\n")
"""One line; an Ed25519 key has 51 bytes (RFC 8709)."""


@dataclass(frozen=True)
class PublicKey:
    """The public half, one line with its comment; `changed` where the key was made or its comment replaced now."""

    changed: bool
    public_key: str


def make(stanza: str, path: Path | None = None) -> PublicKey:
    """Make the key where it is missing, and return its public half. `path` defaults to PATH.

    The comment names the stanza; that of a renamed host is replaced, and the key stays. Becomes postgres permanently.
    Raises HostError where the key cannot be made or read.
    """
    path = path or PATH
    if os.geteuid() == 0:
        owner = pwd.getpwnam(system.POSTGRES)
        secure_path.make_directory(path.parent, 0o755, (owner.pw_uid, owner.pw_gid))
    system.become()
    public = path.with_name(f"{path.name}.pub")
    text = _text(public)
    missing = not text
    if missing:
        path.unlink(missing_ok=True)
        words = ("-q", "-t", "ed25519", "-N", "", "-C", f"postgres@{stanza}", "-f")
        system.run("ssh-keygen", *words, path, input="")
        text = _text(public)
    if not PUBLIC.fullmatch(text):
        raise HostError(
            "not a public key",
            where=str(public),
            seen=text.partition("\n")[0][:60],
            allowed="one line: ssh-ed25519 BASE64 COMMENT",
            run=f"rm {public}, then run again: a new key is made",
        )
    kind, content, comment = text.split()
    renamed = comment != f"postgres@{stanza}"
    if renamed:
        system.run("ssh-keygen", "-q", "-c", "-P", "", "-C", f"postgres@{stanza}", "-f", path, input="")
    return PublicKey(missing or renamed, f"{kind} {content} postgres@{stanza}")


def _text(public: Path) -> str:
    """Return the file's text, empty if there is none. Raises HostError for what is not a plain file."""
    try:
        return secure_path.text(public)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise HostError(
            "the public key cannot be read",
            where=str(public), seen=str(error.strerror), allowed="a plain file",
            run=f"rm {public}, then run again: a new key is made",
        ) from None  # fmt: skip
