"""Files that were changed, removed or opened by hand, compared with the manifests of the roles. Reads files."""

from __future__ import annotations

import grp
import hashlib
import pwd
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from shlex import quote

from provision import secure_path
from provision.checks.finding import Severity
from provision.checks.placed import manifests, read_manifests, role
from provision.checks.registry import Row, check
from provision.plan.schema import Plan

# Files with secrets: path, mode, owner.
PRIVATE = (
    ("/etc/pgbackrest/ssh/id_ed25519", 0o600, "postgres"),
    ("/etc/pgbackrest/conf.d/50-provision-secrets.conf", 0o600, "postgres"),
)
LOGS = ("/var/log/postgresql", "/var/log/pgbackrest", "/var/log/pgbouncer")


@check(
    "files-changed",
    area="files",
    expected="files as the last run placed them",
    why="the next run reverts the change without notice",
)
def changed(plan: Plan) -> Iterator[Row]:
    """Compare contents with their checksums."""
    for name, rows in manifests().items():
        for row in rows:
            path = Path(row["path"])
            with suppress(OSError):  # a missing file and a link are findings of their own
                if hashlib.sha256(secure_path.read(path)[0]).hexdigest() != row["sha256"]:
                    yield f"{path} was changed by hand", plan.site(role(name))


@check(
    "manifest-damaged",
    area="files",
    expected="a readable manifest of the last run",
    why="the files of this manifest cannot be checked",
)
def damaged(plan: Plan) -> Iterator[Row]:
    """Report manifests that cannot be read."""
    for path, rows in read_manifests().items():
        if rows is None:
            yield f"{path} cannot be read", plan.site(role(path.stem))


@check(
    "files-missing",
    area="files",
    expected="files as the last run placed them",
    why="the program that reads the file fails at its next start",
)
def missing(plan: Plan) -> Iterator[Row]:
    """Report files that are gone."""
    for name, rows in manifests().items():
        for row in rows:
            if not Path(row["path"]).exists():
                yield f"{row['path']} is gone", plan.site(role(name))


@check(
    "links",
    area="files",
    severity=Severity.CRITICAL,
    expected="files and directories where they were placed",
    why="root would read or change the target of the link; after the link is removed, the file is reported as missing",
)
def planted(plan: Plan) -> Iterator[Row]:
    """Report links in the path of a file that do not belong to root: a fix of the file would change the target."""
    paths = [row["path"] for rows in manifests().values() for row in rows]
    paths += [plan.server.data_directory, *(name for name, _, _ in PRIVATE)]
    for link in sorted({link for path in paths if (link := _planted(Path(path)))}):
        yield f"{link} is a link of {_name(link.lstat().st_uid)} to {link.readlink()}", f"rm {quote(str(link))}"


@check(
    "file-modes",
    area="files",
    expected="owner and mode as they were placed",
    why="another user may read or change the file, or the service that needs it cannot",
    safe=True,
)
def modes(plan: Plan) -> Iterator[Row]:
    """Compare owners and modes with the manifests."""
    del plan
    for rows in manifests().values():
        for row in rows:
            yield from _mode(Path(row["path"]), int(row["mode"], 8), row["owner"], row["group"])


@check(
    "private-modes",
    area="files",
    severity=Severity.CRITICAL,
    expected="data directory 0700, keys and passphrases 0600",
    why="a user who can read it can read the database",
    safe=True,
)
def private(plan: Plan) -> Iterator[Row]:
    """Check owner and mode of the data directory and of files with secrets."""
    yield from _mode(Path(plan.server.data_directory), 0o700, "postgres", "postgres")
    for name, mode, owner in PRIVATE:
        yield from _mode(Path(name), mode, owner)


@check(
    "log-modes",
    area="files",
    expected="logs closed to other users",
    why="logs contain statements",
    safe=True,
)
def logs(plan: Plan) -> Iterator[Row]:
    """Report logs that other users may read."""
    del plan
    for folder in map(Path, LOGS):
        for path in sorted(folder.glob("*.log*")) if folder.is_dir() else ():
            about = path.lstat()
            # The owner of the directory may have put a link to any file of the host there.
            if stat.S_ISREG(about.st_mode) and about.st_mode & 0o007:
                yield (
                    f"{path} is readable by every user",
                    _as_owner(_name(about.st_uid), f"chmod o= {quote(str(path))}"),
                )


def _planted(path: Path) -> Path | None:
    """Return the first link in a path that does not belong to root; root's own may lead to another disk."""
    links = (part for part in (*reversed(path.parents), path) if part.is_symlink() and part.lstat().st_uid != 0)
    return next(links, None)


def _as_owner(owner: str, command: str) -> str:
    # Not as root: root would follow a link that replaced the file in the meantime.
    return command if owner == "root" else f"runuser -u {owner} -- {command}"


def _mode(path: Path, mode: int, owner: str, group: str = "") -> Iterator[Row]:
    if _planted(path) or not path.exists():
        return
    about = path.stat()
    seen = f"{_name(about.st_uid)}:{_group(about.st_gid)} {about.st_mode & 0o7777:04o}"
    expected = f"{owner}:{group or _group(about.st_gid)} {mode:04o}"
    if seen != expected:
        shown = quote(str(path))
        # Not chown: root would follow a link that replaced a directory of the path in the meantime.
        yield f"{path} is {seen}, not {expected}", f"provision own {shown} {expected}"


def _name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
