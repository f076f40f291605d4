"""The SSH key with which this host's postgres reaches the repository. The private half never leaves the host.

Does IO: makes the folder as root, everything else as postgres, who owns it.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from provision import system
from provision.errors import HostError

PATH = Path("/etc/pgbackrest/ssh/id_ed25519")
PUBLIC = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]{68} \S+\n")
"""One line; an Ed25519 key has 51 bytes (RFC 8709)."""


@dataclass(frozen=True)
class PublicKey:
    """The public half, one line with its comment; `changed` where the key was made now."""

    changed: bool
    public_key: str


def make(stanza: str, path: Path = PATH) -> PublicKey:
    """Make the key where it is missing, and give its public half.

    Becomes postgres for good. Raises HostError where the key cannot be made or read.
    """
    if os.geteuid() == 0:
        owner = pwd.getpwnam(system.POSTGRES)
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.parent.chmod(0o755)
        os.chown(path.parent, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
    system.become()
    public = path.with_name(f"{path.name}.pub")
    missing = not (public.exists() and public.stat().st_size)
    if missing:
        path.unlink(missing_ok=True)
        _generate(path, f"postgres@{stanza}")
    text = public.read_text()
    if not PUBLIC.fullmatch(text):
        raise HostError(
            "not a public key",
            where=str(public),
            seen=text.partition("\n")[0][:60],
            allowed="one line: ssh-ed25519 BASE64 COMMENT",
            run=f"rm {public}, then run again: a new key is made",
        )
    return PublicKey(missing, text.strip())


def _generate(path: Path, comment: str) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError:
        raise HostError("ssh-keygen is not installed", run="apt-get install openssh-client") from None
    if done.returncode != 0:
        raise HostError("cannot make the SSH key", where=str(path), seen=(done.stderr or done.stdout).strip())
