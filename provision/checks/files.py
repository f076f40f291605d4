"""Files that were changed, moved or opened by hand, beside the manifests of the roles that placed them. Reads files."""

from __future__ import annotations

import grp
import hashlib
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from provision.checks.finding import Severity
from provision.checks.place import HostCheck, Place, Row, read_manifests, role

# Secrets and what holds them: their modes, and whose they are.
PRIVATE = (
    ("/etc/pgbackrest/ssh/id_ed25519", 0o600, "postgres"),
    ("/etc/pgbackrest/conf.d/50-provision-secrets.conf", 0o600, "postgres"),
)
LOGS = ("/var/log/postgresql", "/var/log/pgbackrest", "/var/log/pgbouncer")


def changed(place: Place) -> Iterator[Row]:
    """Compare contents with their checksums."""
    for name, rows in place.manifests().items():
        for row in rows:
            path = Path(row["path"])
            if not _planted(path) and path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() != row["sha256"]:
                yield f"{path} was changed by hand", place.site(role(name))


def damaged(place: Place) -> Iterator[Row]:
    """Name manifests that say nothing any more."""
    for path, rows in read_manifests().items():
        if rows is None:
            yield f"{path} cannot be read", place.site(role(path.stem))


def missing(place: Place) -> Iterator[Row]:
    """Look whether every file is there."""
    for name, rows in place.manifests().items():
        for row in rows:
            if not Path(row["path"]).exists():
                yield f"{row['path']} is gone", place.site(role(name))


def planted(place: Place) -> Iterator[Row]:
    """Name links that somebody else than root has put where files should be: whoever mends one mends its target."""
    paths = [(row["path"], role(name)) for name, rows in place.manifests().items() for row in rows]
    paths += [(str(place.data), "postgresql"), *((name, "backup") for name, _, _ in PRIVATE)]
    links = {link: tag for path, tag in paths if (link := _planted(Path(path)))}
    for link, tag in sorted(links.items()):
        yield f"{link} is a link of {_name(link.lstat().st_uid)} to {link.readlink()}", f"rm {link}; {place.site(tag)}"


def modes(place: Place) -> Iterator[Row]:
    """Compare owners and modes with the manifests."""
    for rows in place.manifests().values():
        for row in rows:
            yield from _mode(Path(row["path"]), int(row["mode"], 8), row["owner"], row["group"])


def private(place: Place) -> Iterator[Row]:
    """Look at the data directory and at keys."""
    yield from _mode(place.data, 0o700, "postgres", "postgres")
    for name, mode, owner in PRIVATE:
        yield from _mode(Path(name), mode, owner)


def logs(place: Place) -> Iterator[Row]:
    """Look whether others may read the logs."""
    del place
    for folder in map(Path, LOGS):
        for path in sorted(folder.glob("*.log*")) if folder.is_dir() else ():
            about = path.lstat()
            # A link may lead to any file of the host, and the folder's owner may plant one.
            if stat.S_ISREG(about.st_mode) and about.st_mode & 0o007:
                yield f"{path} can be read by everybody", _as_owner(_name(about.st_uid), f"chmod o= {quote(str(path))}")


def _planted(path: Path) -> Path | None:
    """Give the first link on the way to a path that is not root's own doing, such as a disk mounted elsewhere."""
    links = (part for part in (*reversed(path.parents), path) if part.is_symlink() and part.lstat().st_uid != 0)
    return next(links, None)


def _as_owner(owner: str, command: str) -> str:
    # Not as root, who would follow a link that was put there meanwhile.
    return command if owner == "root" else f"runuser -u {owner} -- {command}"


def _mode(path: Path, mode: int, owner: str, group: str = "") -> Iterator[Row]:
    if _planted(path) or not path.exists():
        return
    about = path.stat()
    seen = f"{_name(about.st_uid)}:{_group(about.st_gid)} {about.st_mode & 0o7777:04o}"
    wanted = f"{owner}:{group or _group(about.st_gid)} {mode:04o}"
    if seen != wanted:
        shown = quote(str(path))
        chown = f"chown -h --from={seen.split()[0]} {wanted.split()[0]} {shown}"
        yield f"{path} is {seen}, not {wanted}", f"{chown} && {_as_owner(owner, f'chmod {mode:04o} {shown}')}"


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


CHECKS = (
    HostCheck("manifest-damaged", "files", Severity.WARNING, "what the last run noted",
              "what it names is compared with nothing", damaged),
    HostCheck("files-changed", "files", Severity.WARNING, "what the last run placed",
              "the next run takes it back, and until then nobody knows of it", changed),
    HostCheck("files-missing", "files", Severity.WARNING, "what the last run placed",
              "what reads it fails at its next start", missing),
    HostCheck("links", "files", Severity.CRITICAL, "files and folders where they were placed",
              "root would read, or change, whatever it leads to", planted),
    HostCheck("file-modes", "files", Severity.WARNING, "owner and mode as they were placed",
              "somebody else may read or change it, or its reader may not", modes, safe=True),
    HostCheck("private-modes", "files", Severity.CRITICAL, "data 0700, keys and passphrases 0600",
              "whoever reads it reads the database", private, safe=True),
    HostCheck("log-modes", "files", Severity.WARNING, "logs that only their readers read",
              "logs hold statements", logs, safe=True),
)  # fmt: skip
