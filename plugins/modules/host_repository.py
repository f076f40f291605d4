#!/usr/bin/python
"""Prepare a backup host: pgBackRest, its user, the repository's folder, and the SSH key of one database host.

Runs on the backup host with the standard library alone. A key may run what pgBackRest asks for at the other end of a
connection, and print the free space; without a terminal and without forwarding. Each key has one line in
authorized_keys, found by the key itself, which never leaves its host and survives a rename of the host; the comment
postgres@STANZA is for readers. Lines of other keys are never changed; another key of the same stanza, from a lost host
or another inventory, is reported. Parallel hosts of a run wait for each other.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import os
import pwd
import re
import stat
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.file_set import replace

DOCUMENTATION = r"""
module: host_repository
short_description: Prepare a backup host for one database host
options:
  path: {description: Directory of the repository and home of the user., required: true, type: path}
  user: {description: System user that owns it., default: pgbackrest, type: str}
  stanza: {description: Stanza of the database host., required: true, type: str}
  public_key:
    description: Public key of the database host (ssh-ed25519). May be empty in check mode.
    required: true
    type: str
author: The provision developers
"""

EXAMPLES = r"""
- name: Prepare the backup host
  minion.provision.host_repository:
    path: /var/lib/pgbackrest
    stanza: pg1
    public_key: "ssh-ed25519 AAAAC3Nza... postgres@pg1"
  delegate_to: backup1
"""

RETURN = r"""
changes: {description: "Changes of packages, user, directory, key and configuration.", returned: always, type: list}
version: {description: "Output of pgbackrest version; empty where it is not installed.", returned: always, type: str}
strangers: {description: "Other keys with the comment of this stanza, TYPE BASE64.", returned: always, type: list}
host_keys: {description: "Public SSH keys of the backup host, TYPE BASE64.", returned: always, type: list}
"""

LOCK = Path("/run/provision/repository.lock")
CONFIGURATION = Path("/etc/pgbackrest/pgbackrest.conf")
PACKAGES = ("pgbackrest", "openssh-server")
NAMES = {
    "path": re.compile(r"(/[A-Za-z0-9_][A-Za-z0-9._-]*)+"),
    "user": re.compile(r"[a-z_][a-z0-9_-]{0,31}"),
    "stanza": re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*"),
}
"""They become part of a command line that sshd runs, of a configuration and of a line of authorized_keys."""
# Interactive pgBackRest commands have options that run other programs: allow only its remote protocol.
FORCED = (
    r'command="case \"$SSH_ORIGINAL_COMMAND\" in space) exec df -B1 --output=avail {path} ;; '
    r"pgbackrest?*:remote) exec pgbackrest ${{SSH_ORIGINAL_COMMAND#* }} ;; "
    r'*) echo refused >&2; exit 1 ;; esac",restrict'
)
KEY = re.compile(r"(?:^|\s)ssh-ed25519 ([A-Za-z0-9+/]+=*)(?=\s|$)")
ED25519 = b"\0\0\0\x0bssh-ed25519\0\0\0\x20"
"""How the key's bytes begin (RFC 8709, section 4); 32 bytes follow."""


def public_key(text: str) -> str:
    """Return type and base64 of a public key, without its comment. Raises ValueError for anything else."""
    words = text.split()
    if len(text.strip().splitlines()) != 1 or len(words) < 2 or words[0] != "ssh-ed25519":
        raise ValueError("expected one line: ssh-ed25519 BASE64 COMMENT")
    try:
        content = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the key is not base64") from None
    if not content.startswith(ED25519) or len(content) != len(ED25519) + 32:
        raise ValueError("the key is not an Ed25519 key")
    return f"ssh-ed25519 {words[1]}"


def line(key: str, stanza: str, path: str) -> str:
    """Return the line of authorized_keys for a stanza."""
    return f"{FORCED.format(path=path)} {public_key(key)} postgres@{stanza}"


def key_of(entry: str) -> str:
    """Return the base64 of the key in a line of authorized_keys, whatever its options and comment; "" without a key."""
    found = KEY.search(entry)
    return found[1] if found and not entry.lstrip().startswith("#") else ""


def entries(text: str, wanted: str) -> str:
    """Return authorized_keys with this line as the only one of its key; lines of other keys stay."""
    lines, key = text.splitlines(), key_of(wanted)
    if [each for each in lines if key_of(each) == key] == [wanted]:
        return text
    return "".join(f"{each}\n" for each in [*(each for each in lines if key_of(each) != key), wanted])


def strangers(text: str, wanted: str) -> list[str]:
    """Return the other keys whose comment names the stanza of this line."""
    comment = wanted.split()[-1]
    others = [each for each in text.splitlines() if key_of(each) not in ("", key_of(wanted))]
    return [f"ssh-ed25519 {key_of(each)}" for each in others if each.split()[-1] == comment]


class Repository:
    """The backup host, step by step; in check mode each step is only noted."""

    def __init__(self, module: AnsibleModule) -> None:
        """Check the arguments."""
        self.module, self.changes = module, list[str]()
        for name, form in NAMES.items():
            if not form.fullmatch(module.params[name]):
                self.fail(f"{name}: {module.params[name]!r} is not allowed; expected {form.pattern}")
        self.user, self.home = module.params["user"], Path(module.params["path"])
        self.keys = self.home / ".ssh" / "authorized_keys"
        self.line = ""
        try:
            if module.params["public_key"] or not module.check_mode:
                self.line = line(module.params["public_key"], module.params["stanza"], str(self.home))
        except ValueError as error:
            self.fail(f"public_key: {error}")

    def converge(self) -> None:
        """Take every step that is needed."""
        self._step("packages", lambda: not installed(), self._install)
        self._step("user", lambda: not self._ids(), self._add_user)
        for folder, mode in ((self.home, 0o750), (self.keys.parent, 0o700)):
            self._step("folder", partial(self._differs, folder, mode), self._folder, folder, mode)
        self._step("key", self._key_differs, self._write_keys)
        self._step("configuration", self._configuration_differs, self._configure)

    def _step(self, name: str, needed: Callable[[], bool], act: Callable[..., None], *arguments: Any) -> None:
        if needed():
            self.changes += [] if name in self.changes else [name]
            if not self.module.check_mode:
                act(*arguments)

    def _install(self) -> None:
        apt = ["apt-get", "-o", "DPkg::Lock::Timeout=120", "-q"]
        self.run([*apt, "update"])
        self.run([*apt, "-y", "install", "--no-install-recommends", *PACKAGES])

    def _add_user(self) -> None:
        options = ["--system", "--user-group", "--home-dir", str(self.home), "--no-create-home", "--shell", "/bin/sh"]
        self.run(["useradd", *options, self.user])

    def _ids(self) -> tuple[int, int] | None:
        try:
            entry = pwd.getpwnam(self.user)
        except KeyError:
            return None
        return entry.pw_uid, entry.pw_gid

    def _differs(self, path: Path, mode: int) -> bool:
        try:
            about = path.lstat()
        except OSError:
            return True
        if path.is_symlink():
            self.fail(f"{path} is a symbolic link: remove it")
        return (about.st_uid, about.st_gid) != self._ids() or about.st_mode & 0o7777 != mode

    def _folder(self, path: Path, mode: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        os.chown(path, *self._owner())
        path.chmod(mode)

    def _key_differs(self) -> bool:
        if not self.line:
            return False
        return self._differs(self.keys, 0o600) or entries(read(self.keys), self.line) != read(self.keys)

    def _write_keys(self) -> None:
        replace(self.keys, entries(read(self.keys), self.line).encode(), 0o600, self._owner())

    def _configuration(self) -> str:
        return f"[global]\nrepo1-path={self.home}\nlog-level-file=off\n"

    def _configuration_differs(self) -> bool:
        closed = CONFIGURATION.exists() and not CONFIGURATION.parent.stat().st_mode & stat.S_IXOTH
        return closed or read(CONFIGURATION) != self._configuration()

    def _configure(self) -> None:
        CONFIGURATION.parent.mkdir(exist_ok=True)
        CONFIGURATION.parent.chmod(0o755)  # pgBackRest reads it as its own user
        replace(CONFIGURATION, self._configuration().encode(), 0o644, (0, 0))

    def _owner(self) -> tuple[int, int]:
        return self._ids() or self.fail(f"there is no user {self.user}")

    def run(self, command: list[str]) -> None:
        """Run a program that must succeed."""
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
        if done.returncode != 0:
            self.fail(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-1000:]}")

    def fail(self, message: str) -> NoReturn:
        """End with an error."""
        self.module.fail_json(msg=message, changes=self.changes)
        raise AssertionError  # not reached


def installed() -> bool:
    """Return whether every package is installed."""
    form = "--showformat=${db:Status-Abbrev}\n"
    done = subprocess.run(["dpkg-query", "-W", form, *PACKAGES], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return [each[1:3] for each in done.stdout.splitlines()] == ["i "] * len(PACKAGES)  # hi: installed, and on hold


def read(path: Path) -> str:
    """Return a file's text; "" where it does not exist."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def version() -> str:
    """Return what `pgbackrest version` prints."""
    try:
        done = subprocess.run(["pgbackrest", "version"], capture_output=True, text=True, check=False)  # noqa: S607
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def host_keys() -> list[str]:
    """Return the host's own public keys, without their comments."""
    return [" ".join(read(path).split()[:2]) for path in sorted(Path("/etc/ssh").glob("ssh_host_*_key.pub"))]


def main() -> None:
    """Run the module."""
    os.umask(0o022)  # 027, as on a hardened host, would close new directories to their users
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "user": {"type": "str", "default": "pgbackrest"},
            "stanza": {"type": "str", "required": True},
            "public_key": {"type": "str", "required": True, "no_log": False},
        },
        supports_check_mode=True,
    )
    repository = Repository(module)
    if module.check_mode:
        repository.converge()
    else:
        LOCK.parent.mkdir(mode=0o755, exist_ok=True)
        with LOCK.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            repository.converge()
    others = strangers(read(repository.keys), repository.line) if repository.line else []
    for key in others:
        module.warn(
            f"{repository.keys} has another key of stanza {module.params['stanza']}: {key}; if its host is gone, "
            "remove that line (docs/the-host-is-gone.md)"
        )
    module.exit_json(
        changed=bool(repository.changes),
        changes=repository.changes,
        version=version(),
        host_keys=host_keys(),
        strangers=others,
    )


if __name__ == "__main__":
    main()
