#!/usr/bin/python
"""Prepare a backup host: pgBackRest, and the account, directories and SSH key of one database host's stanza.

Runs on the backup host with the standard library alone. Each stanza has an account of its own, which owns the stanza's
two directories and nothing else: pgBackRest's remote protocol reaches every path that its account can. Keys, their
command and all directories above belong to root. Each key has one line, found by the key itself, which never
leaves its host and does not change when the host is renamed; the comment postgres@STANZA is for people. Another key of
the same stanza, of a lost host or of another inventory, stays and is reported. Parallel hosts of a run wait for each
other.

Earlier versions had one account, pgbackrest, whose home was the repository. A run moves its own stanza to the new
account and the keys of the other ones to root's directory, where they work until the run of their host.
"""

from __future__ import annotations

import fcntl
import fnmatch
import grp
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

from ..module_utils import repository_command as command
from ..module_utils import secure_path
from ..module_utils.account import repository_user
from ..module_utils.quoting import visible
from ..module_utils.repository_keys import OLD_LINE, entries, key_of, line, strangers

DOCUMENTATION = r"""
module: host_repository
short_description: Prepare a backup host for one database host
description:
  - Installs pgBackRest and creates the user of the stanza and the directory of the repository.
  - Allows the database host's key to run pgBackRest's commands for this stanza only.
options:
  path: {description: Directory of the repository., required: true, type: path}
  user: {description: System user of the stanza., required: true, type: str}
  stanza: {description: Stanza of the database host., required: true, type: str}
  public_key:
    description:
      - Public key of the database host (ssh-ed25519). May be empty in check mode.
      - Without it, only O(reads) is applied.
    type: str
  members:
    description: How many hosts share the stanza, the members of a cluster. More keys than that are reported.
    type: int
    default: 1
  reads:
    description: Other stanzas that this one's account may read, to restore them. Others that it could read are revoked.
    default: []
    type: list
    elements: str
author: The provision developers
"""

EXAMPLES = r"""
- name: Prepare the backup host
  minion.provision.host_repository:
    path: /var/lib/pgbackrest
    user: pgbackrest-pg1
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
REFUSED = Path("/etc/ssh/provision-keys.refused")
SYSTEMD = Path("/run/systemd/system")
PACKAGES = ("pgbackrest", "openssh-server")
NAMES = {
    "path": re.compile(r"(/[A-Za-z0-9_][A-Za-z0-9._-]*)+"),
    "user": re.compile(r"[a-z_][a-z0-9_-]{0,31}"),
    "stanza": re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*"),
}
"""They become part of a command line that sshd runs, of a configuration and of a line of authorized_keys."""
OLD_USER = "pgbackrest"
MEMBERS = command.MEMBERS


class Repository:
    """The backup host, step by step; in check mode each step is only noted."""

    def __init__(self, module: AnsibleModule) -> None:
        """Check the arguments."""
        self.module, self.changes, self.refused = module, list[str](), list[str]()
        given = module.params
        for name, value in [*((name, given[name]) for name in NAMES), *(("stanza", each) for each in given["reads"])]:
            if not NAMES[name].fullmatch(value):
                self.fail(f"{name}: {value!r} is not allowed; expected {NAMES[name].pattern}")
        self.user, self.home, self.stanza = given["user"], Path(given["path"]), given["stanza"]
        self.keys = Path(command.KEYS) / self.user
        self.old_keys = self.home / ".ssh" / "authorized_keys"
        self.line = ""
        try:
            if given["public_key"]:
                self.line = line(given["public_key"], self.stanza, str(self.home))
        except ValueError as error:
            self.fail(f"public_key: {error}")

    def converge(self) -> None:
        """Take every step that is needed."""
        self._step("packages", lambda: not installed(), self._install)
        self._step("user", lambda: group(MEMBERS) is None or not self._ids(), self._add_user)
        self._step("old keys", lambda: secure_path.about(self.home / ".ssh") is not None, self._move_old_keys)
        for path, text, mode in (
            (command.PATH, command.COMMAND, 0o755),
            (command.SSHD, command.CONFIGURATION, 0o644),
            (command.LIMITS, command.PROCESSES, 0o644),
            (str(CONFIGURATION), f"[global]\nrepo1-path={self.home}\nlog-level-file=off\n", 0o644),
        ):
            self._step("configuration", partial(_file_differs, Path(path), text, mode), self._place, path, text, mode)
        self._step("key", self._key_differs, self._write_keys)
        for folder in (self.home, self.home / "archive", self.home / "backup"):
            owner = (0, group(MEMBERS))
            self._step("folder", partial(self._differs, folder, owner, 0o750), self._folder, folder)
        for kind in ("archive", "backup"):
            folder = self.home / kind / self.stanza
            self._step("folder", partial(self._not_given, folder, 0o750), self._give, folder, 0o750)
        locks = Path(command.LOCKS) / self.user
        self._step("folder", partial(self._not_given, locks, 0o700), self._give, locks, 0o700)

    def grant(self) -> None:
        """Let the account read the stanzas of `reads`, and no other one."""
        self._step("reads", lambda: self._groups() != self._granted(), self._grant)

    def _step(self, name: str, needed: Callable[[], bool], act: Callable[..., None], *arguments: Any) -> None:
        try:
            if needed():
                self.changes += [] if name in self.changes else [name]
                if not self.module.check_mode:
                    act(*arguments)
        except OSError as error:
            self.fail(f"{error.filename} {error.strerror}")

    def _install(self) -> None:
        apt = ["apt-get", "-o", "DPkg::Lock::Timeout=120", "-q"]
        self.run([*apt, "update"])
        self.run([*apt, "-y", "install", "--no-install-recommends", *PACKAGES])

    def _add_user(self) -> None:
        if group(MEMBERS) is None:
            self.run(["groupadd", "--system", MEMBERS])
        if not self._ids():
            # Without a home, which would be a place for keys. "*" is no password, and does not lock the account.
            options = ["--system", "--user-group", "--groups", MEMBERS, "--home-dir", "/", "--no-create-home"]
            self.run(["useradd", *options, "--shell", "/bin/sh", "--password", "*", self.user])

    def _move_old_keys(self) -> None:
        """Move keys of other stanzas out of the repository; their account, which owned them, may enter it."""
        with secure_path.directory(self.old_keys.parent) as folder:
            names = sorted(os.listdir(folder))  # noqa: PTH208 - of a descriptor
        others = [  # authorized_keys2 too, which sshd reads as well
            each
            for name in names
            if name.startswith("authorized_keys")
            for each in secure_path.text(self.old_keys.with_name(name)).splitlines()
            if each.strip() and not each.startswith("#") and key_of(each) != key_of(self.line)
        ]
        kept = [each for each in others if OLD_LINE.fullmatch(each)]
        self.refused = [each for each in others if each not in kept]
        Path(command.KEYS).mkdir(mode=0o755, exist_ok=True)
        if kept:
            self.run(["usermod", "--append", "--groups", MEMBERS, OLD_USER])
            keys = Path(command.KEYS) / OLD_USER
            _write(keys, "".join(f"{each}\n" for each in dict.fromkeys([*read(keys).splitlines(), *kept])))
        if self.refused:
            secure_path.replace(REFUSED, "".join(f"{each}\n" for each in self.refused).encode(), 0o600, (0, 0))
        # Root's from here on, so that the account cannot make it again.
        secure_path.make_directory(self.home, 0o750, (0, group(MEMBERS) or 0))
        secure_path.remove_tree(self.home / ".ssh")

    def _ids(self) -> tuple[int, int] | None:
        return _ids_of(self.user)

    def _differs(self, path: Path, owner: tuple[int | None, ...] | None, mode: int) -> bool:
        about = secure_path.about(path)
        if about is None:
            return True
        if stat.S_ISLNK(about.st_mode):
            self.fail(f"{path} is a symbolic link: remove it")
        return (about.st_uid, about.st_gid) != owner or about.st_mode & 0o7777 != mode

    def _not_given(self, path: Path, mode: int) -> bool:
        return self._differs(path, self._ids(), mode)

    def _folder(self, path: Path) -> None:
        secure_path.make_directory(path, 0o750, (0, group(MEMBERS) or 0))

    def _give(self, path: Path, mode: int) -> None:
        """Give a directory with all below it to the account; its own owner changes last, so that a kill is noticed."""
        owner = self._ids() or self.fail(f"there is no user {self.user}")
        if secure_path.about(path) is None:
            secure_path.make_directory(path, mode, (0, 0))
        secure_path.chown_tree(path, owner, mode)

    def _key_differs(self) -> bool:
        text = read(self.keys)
        wrong = entries(text, self.line) != text or _file_differs(self.keys, None, 0o644)
        return bool(self.line) and (wrong or bool(self._elsewhere()))

    def _elsewhere(self) -> list[Path]:
        """Return the files of other accounts that have this key: of an earlier stanza, or of the old account."""
        others = sorted(self.keys.parent.glob("*"))
        return [path for path in others if path != self.keys and key_of(self.line) in map(key_of, lines(path))]

    def _write_keys(self) -> None:
        _write(self.keys, entries(read(self.keys), self.line))
        for path in self._elsewhere():
            left = [each for each in lines(path) if key_of(each) != key_of(self.line)]
            _write(path, "".join(f"{each}\n" for each in left)) if left else path.unlink()

    def _place(self, path: str, text: str, mode: int) -> None:
        secure_path.make_directory(Path(path).parent, 0o755, (0, 0))  # pgBackRest and sshd read as other users
        before = read(Path(path))
        secure_path.replace(Path(path), text.encode(), mode, (0, 0))
        if path == command.SSHD:
            self._reload(before)

    def _reload(self, before: str) -> None:
        """Reload sshd, and restore its configuration where it is refused or has no effect."""
        seen = self._sshd("-t")
        if seen.returncode == 0:
            self.run(["systemctl", "try-reload-or-restart", "ssh.service"]) if SYSTEMD.is_dir() else None
            return
        Path(command.SSHD).unlink() if not before else _write(Path(command.SSHD), before)
        self.fail(f"sshd refuses {command.SSHD}: {seen.stderr.strip()}")

    def require_key(self) -> None:
        """End with an error where sshd would not read the account's key, or not let the account in."""
        shown = self._sshd("-T", "-C", f"user={self.user},host=localhost,addr=127.0.0.1").stdout.splitlines()
        rows = [each.partition(" ")[::2] for each in shown]
        if ("authorizedkeysfile", f"{command.KEYS}/%u") not in rows:
            self.fail(
                f"sshd does not read {command.SSHD}, so keys in {command.KEYS} have no effect: put the line "
                "'Include /etc/ssh/sshd_config.d/*.conf' first in /etc/ssh/sshd_config"
            )
        mine = {"users": (self.user,), "groups": (self.user, MEMBERS)}
        for kind, names in mine.items():
            allowed = [value for name, value in rows if name == f"allow{kind}"]
            denied = [value for name, value in rows if name == f"deny{kind}"]
            if (allowed and not _matches(names, allowed)) or _matches(names, denied):
                self.fail(
                    f"sshd does not admit {self.user} (Allow{kind.title()} {' '.join(allowed) or '-'}, "
                    f"Deny{kind.title()} {' '.join(denied) or '-'}): allow users {OLD_USER}-* or group {MEMBERS}"
                )

    def _sshd(self, *words: str) -> subprocess.CompletedProcess[str]:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # as its unit does
        return subprocess.run(["/usr/sbin/sshd", *words], capture_output=True, text=True, check=False)  # noqa: S603

    def _groups(self) -> set[str]:
        """Return the supplementary groups of the account."""
        return {each.gr_name for each in grp.getgrall() if self.user in each.gr_mem}

    def _granted(self) -> set[str]:
        """Return the groups that the account should have: its own stanza needs none."""
        return {MEMBERS, *(self._group_of(stanza) for stanza in self.module.params["reads"])}

    def _group_of(self, stanza: str) -> str:
        """Return the group of a stanza's own account; a directory's group is its account's choice, among its own."""
        path = self.home / "archive" / stanza
        about, ids = secure_path.about(path), _ids_of(repository_user(stanza))
        if about is None or ids is None:
            self.fail(f"there is no stanza {stanza} with its own account in {self.home}; see: ls -l {path.parent}")
        if (about.st_uid, about.st_gid) != ids:
            self.fail(f"{path} does not belong to {repository_user(stanza)} alone: run site.yml on its database host")
        return grp.getgrgid(ids[1]).gr_name

    def _grant(self) -> None:
        self.run(["usermod", "--groups", ",".join(sorted(self._granted())), self.user])

    def run(self, words: list[str]) -> None:
        """Run a program that must succeed."""
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
        if done.returncode != 0:
            self.fail(f"{' '.join(words)} failed: {(done.stderr or done.stdout).strip()[-1000:]}")

    def fail(self, message: str) -> NoReturn:
        """End with an error."""
        self.module.fail_json(msg=visible(message, lines=True), changes=self.changes)
        raise AssertionError  # not reached


def installed() -> bool:
    """Return whether every package is installed."""
    form = "--showformat=${db:Status-Abbrev}\n"
    done = subprocess.run(["dpkg-query", "-W", form, *PACKAGES], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return [each[1:3] for each in done.stdout.splitlines()] == ["i "] * len(PACKAGES)  # hi: installed, and on hold


def group(name: str) -> int | None:
    """Return the id of a group; None where there is none."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _ids_of(user: str) -> tuple[int, int] | None:
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return None
    return entry.pw_uid, entry.pw_gid


def _matches(names: tuple[str, ...], patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _file_differs(path: Path, text: str | None, mode: int) -> bool:
    about = secure_path.about(path)
    if about is None or (about.st_uid, about.st_gid, about.st_mode & 0o7777) != (0, 0, mode):
        return True
    # /etc/pgbackrest, which a hardened umask has closed to pgBackRest's users.
    return not path.parent.stat().st_mode & stat.S_IXOTH or (text is not None and read(path) != text)


def _write(path: Path, text: str) -> None:
    secure_path.make_directory(path.parent, 0o755, (0, 0))
    secure_path.replace(path, text.encode(), 0o644, (0, 0))


def read(path: Path) -> str:
    """Return a file's text; "" where it does not exist."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def lines(path: Path) -> list[str]:
    """Return a file's lines; none where it does not exist."""
    return read(path).splitlines()


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


def work(repository: Repository) -> None:
    """Prepare the host, or only grant, without a key of the database host."""
    params = repository.module.params
    if params["public_key"] is not None:
        if not params["public_key"] and not repository.module.check_mode:
            repository.fail("public_key: expected one line: ssh-ed25519 BASE64 COMMENT")
        repository.converge()
        if not repository.module.check_mode:
            repository.require_key()
    if repository._ids():  # none in check mode of a new host
        repository.grant()


def main() -> None:
    """Run the module."""
    os.umask(0o022)  # 027, as on a hardened host, would close new directories to their users
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "user": {"type": "str", "required": True},
            "stanza": {"type": "str", "required": True},
            "public_key": {"type": "str", "no_log": False},
            "members": {"type": "int", "default": 1},
            "reads": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    repository = Repository(module)
    if module.check_mode:
        work(repository)
    else:
        LOCK.parent.mkdir(mode=0o755, exist_ok=True)
        with LOCK.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            work(repository)
    others = strangers(read(repository.keys), repository.line) if repository.line else []
    # The members of a cluster share a stanza, each with its own key.
    for key in others if len(others) >= module.params["members"] else []:
        module.warn(
            f"{repository.keys} has another key of stanza {module.params['stanza']}: {key}; if its host is gone, "
            "remove that line (docs/the-host-is-gone.md)"
        )
    if repository.refused:
        module.warn(
            f"{repository.old_keys} had {len(repository.refused)} lines that no run wrote; they were moved to "
            f"{REFUSED} and have no effect: find out where they come from"
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
