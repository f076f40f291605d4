"""Run pgBackRest and PostgreSQL's programs as the system user postgres and parse their output.

Does IO. Passes no secrets: pgBackRest reads its passphrase from its configuration. Exit code 0 is necessary but not
sufficient: callers parse the output and compare.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provision import pins, secure_path, system
from provision.errors import HostError, ProvisionError
from provision.host.backup import wal
from provision.plan import load
from provision.plan.schema import Plan
from provision.system import Finished

RESERVE_SHARE, RESERVE_MAX = 10, 20 * 2**30  # a tenth of the disk, 20 GB at most
SPOOL = Path("/var/spool/pgbackrest/archive")
INFO_TIMEOUT_S = 120  # an unreachable repository must not block the watch
LOCKED = 50  # pgBackRest's exit code when another command holds the stanza's lock
LOCK_WAIT_S = 60
"""How long a short command waits for the lock, which asynchronous archiving holds while it pushes WAL."""


class BackupError(ProvisionError):
    """A backup could not be taken, read, verified or restored."""


def run(
    *words: str | Path,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
    quiet: bool = False,
) -> Finished:
    """Run a program as postgres. Raises BackupError with the program's own message unless `quiet`.

    Its sessions ignore what a database's owner stored for them (see `pins`); PGOPTIONS in `environment` replaces that.
    """
    try:
        done = system.run(
            *words, user=system.POSTGRES, timeout=timeout, directory=Path("/"), check=False, error=BackupError,
            environment={"LC_ALL": "C.UTF-8", **pins.environment(), **(environment or {})},
        )  # fmt: skip
    except HostError as error:
        error.run = "ansible-playbook site.yml -i INVENTORY --tags backup"
        raise
    if not done.ok and not quiet:
        raise system.failure(done, BackupError, seen=reason(done))
    return done


def reason(done: Finished) -> str:
    """Select the lines of a program's output that explain its failure."""
    if done.returncode < 0:
        return done.last
    lines = (done.stderr + "\n" + done.stdout).splitlines()
    messages = [line.strip() for line in lines if re.search(r"ERROR|FATAL|error:|failed|HINT|unable", line)]
    return "; ".join(messages[:6])[:1500] or (done.stderr or done.stdout).strip()[-500:]


def need_physical(plan: Plan) -> None:
    """Raise HostError if this host has no physical backups."""
    if not plan.backup.physical:
        raise HostError(
            "physical backups are off on this host",
            where=str(load.PATH),
            seen="backup_physical is false",
            allowed="dumps (restore.yml: -e restore_source=dump), or backup_physical: true in the inventory",
            run="provision backup take --type logical",
        )


def clear_spool(stanza: str) -> None:
    """Delete a stanza's spool: with acknowledgements of an old cluster's WAL, pgBackRest would skip a new one's."""
    with system.as_user():
        shutil.rmtree(SPOOL / stanza, ignore_errors=True)


@dataclass(frozen=True)
class Set:
    """One pgBackRest backup set. Times are Unix times, sizes bytes; the WAL from start to stop makes it consistent."""

    label: str
    kind: str
    start: int
    stop: int
    lsn_start: str
    lsn_stop: str
    wal_start: str
    wal_stop: str
    size: int
    repository_size: int
    prior: str
    damaged: bool
    database: int

    @classmethod
    def of(cls, row: dict[str, Any]) -> Set:
        """Parse a row of `pgbackrest info --output=json`."""
        return cls(
            label=row["label"], kind=row["type"],
            start=row["timestamp"]["start"], stop=row["timestamp"]["stop"],
            lsn_start=row["lsn"]["start"], lsn_stop=row["lsn"]["stop"],
            wal_start=row["archive"]["start"], wal_stop=row["archive"]["stop"],
            size=row["info"]["size"], repository_size=row["info"]["repository"].get("delta", 0),
            prior=row.get("prior") or "", damaged=bool(row.get("error")), database=row["database"]["id"],
        )  # fmt: skip


@dataclass(frozen=True)
class Repository:
    """A stanza in `pgbackrest info`: sets, oldest first, and by archive id the first and last WAL segment.

    `number` is that of the repository.
    """

    stanza: str
    number: int
    status: int
    message: str
    majors: dict[int, str]
    systems: dict[int, int]
    sets: tuple[Set, ...]
    archives: dict[str, tuple[str, str]]
    encrypted: bool

    @property
    def current(self) -> int:
        """The highest database id of the stanza (it grows when another cluster continues the stanza)."""
        return max(self.majors, default=0)

    def archive_id(self, database: int) -> str:
        """Return the folder name of a database's WAL, such as 17-1."""
        return f"{self.majors[database]}-{database}"


def program(stanza: str, *words: str, **options: Any) -> Finished:
    """Run pgbackrest for a stanza."""
    return run("pgbackrest", f"--stanza={stanza}", "--log-level-console=warn", *words, **options)


def program_with_lock(stanza: str, *words: str) -> Finished:
    """Run a short pgbackrest command that needs the stanza's lock; wait for it `LOCK_WAIT_S`. Raises BackupError."""
    end = time.monotonic() + LOCK_WAIT_S
    while (done := program(stanza, *words, quiet=True)).returncode == LOCKED and time.monotonic() < end:
        time.sleep(0.5)
    if not done.ok:
        raise system.failure(done, BackupError, seen=reason(done))
    return done


def info(stanza: str, number: int = 1) -> Repository:
    """Read the stanza's info in the repository `number`.

    Raises BackupError if the repository cannot be read or does not know the stanza.

    `info` exits 0 for a missing stanza, a missing info file and a wrong passphrase. Its status decides: 0 is good, 2 no
    valid backup yet, 99 another problem that the message describes.
    """
    done = program(stanza, f"--repo={number}", "--output=json", "info", timeout=INFO_TIMEOUT_S)
    try:
        rows = [row for row in json.loads(done.stdout, strict=False) if row["name"] == stanza]
    except ValueError:
        rows = []
    if not rows:
        raise BackupError("the stanza is not in the repository", where=f"stanza {stanza}", seen=reason(done))
    row = rows[0]
    status = row["status"]
    messages = [str(repo["status"]["message"]) for repo in row.get("repo", []) if repo["status"]["code"] not in (0, 2)]
    if status["code"] not in (0, 2):
        raise BackupError(
            "the repository cannot be read",
            where=f"stanza {stanza}",
            # Only the first line: the rest may be wrongly decrypted bytes.
            seen="; ".join(each.splitlines()[0] for each in [str(status["message"]), *messages] if each),
            allowed="a reachable repository with its info files and its original passphrase",
            run="docs/the-repository-is-damaged.md",
        )
    return Repository(
        stanza=stanza, number=number, status=status["code"], message=status["message"],
        majors={each["id"]: each["version"] for each in row.get("db", [])},
        systems={each["id"]: each["system-id"] for each in row.get("db", [])},
        sets=tuple(Set.of(each) for each in row.get("backup", [])),
        archives={each["id"]: (each["min"] or "", each["max"] or "") for each in row.get("archive", [])},
        encrypted=row.get("cipher") not in (None, "none"),
    )  # fmt: skip


def not_archived(stanza: str, *, several: bool = False) -> str:
    """Return pgBackRest's message why WAL is not archived, '' if it is.

    The spool has an error file for each waiting segment; the most frequent message is returned. With `several`
    repositories it names the one that fails: WAL still reaches the other.
    """
    messages: list[str] = []
    for path in sorted((SPOOL / stanza / "out").glob("*.error")):
        with suppress(OSError):  # archived in the meantime
            text = " ".join(secure_path.text(path).splitlines()[1:])  # after the exit code
            messages.append(re.sub(r" '/[^']*'", "", _message(text.partition("[CommandError] on retry")[0], several)))
    return max(messages, key=messages.count, default="")


def _message(text: str, several: bool) -> str:
    """Return the messages of an error file, each cut to 300 characters, with the number of its repository."""
    messages = re.split(r"\brepo(\d+): ", text)[1:]
    pairs = list(zip(messages[::2], messages[1::2], strict=True))
    if not pairs:
        return text.strip()[:300]
    failed = [f"{f'repository {number}: ' if several else ''}{why.strip()[:300]}" for number, why in pairs]
    return "; ".join(failed)


def tablespaces(stanza: str, label: str, number: int = 1) -> dict[str, str]:
    """Return the tablespaces of a set: name to directory."""
    words = (f"--repo={number}", "--output=json", f"--set={label}")
    done = program(stanza, *words, "info", timeout=INFO_TIMEOUT_S)
    rows = [row for each in json.loads(done.stdout, strict=False) for row in each.get("backup", [])]
    return {one["name"]: one["destination"] for row in rows for one in row.get("tablespace") or []}


def listing(stanza: str, path: str, number: int = 1) -> dict[str, dict[str, Any]]:
    """List a path of a repository that belongs to a stanza recursively: name to type, size and time."""
    words = (f"--repo={number}", "--output=json", "--recurse")
    done = program(stanza, *words, "repo-ls", path, timeout=INFO_TIMEOUT_S)
    found: dict[str, dict[str, Any]] = json.loads(done.stdout or "{}")
    return found


@dataclass(frozen=True)
class Archive:
    """The archived WAL of one database: segments in order, and the history of its timelines."""

    segments: tuple[wal.Segment, ...]
    history: dict[int, tuple[int, int]]


def archive(repository: Repository, database: int, rows: dict[str, dict[str, Any]]) -> Archive:
    """Read segments and timeline histories from a listing; `info` has only the first and last segment."""
    folder = f"archive/{repository.stanza}/{repository.archive_id(database)}"
    names = [Path(name).name for name, row in rows.items() if row["type"] == "file"]
    history = {}
    for name in sorted(name for name in names if name.endswith(".history")):
        read = run(
            "pgbackrest", "--log-level-console=warn", f"--stanza={repository.stanza}", f"--repo={repository.number}",
            "repo-get", f"{folder}/{name}", timeout=INFO_TIMEOUT_S,
        )  # fmt: skip
        if (parsed := wal.parse_history(read.stdout)) is not None:
            history[int(name[:8], 16)] = parsed
    return Archive(tuple(wal.archived(names)), history)


def folder_size(path: Path) -> int:
    """Return the total size in bytes of a directory's files."""
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file() and not each.is_symlink())


def _disk(path: Path) -> Any:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path)


def free_bytes(path: Path) -> int:
    """Return the free bytes of the file system where a path is or will be."""
    return int(_disk(path).free)


def same_disk(one: Path, other: Path) -> bool:
    """Return whether two paths are or will be on the same file system."""
    first, second = (next(each for each in (path, *path.parents) if each.exists()) for path in (one, other))
    return first.stat().st_dev == second.stat().st_dev


def reserve(path: Path) -> int:
    """Return the bytes to keep free on a path's file system: a server that cannot write WAL stops."""
    return min(int(_disk(path).total // RESERVE_SHARE), RESERVE_MAX)
