"""Check a requested restore against the repository and this host before anything is stopped.

Does IO as root. Changes nothing except that a running server switches WAL, so that its last changes can be restored.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from provision import system
from provision.database import connect_pinned
from provision.errors import HostError, ProvisionError, UsageError
from provision.host.backup import copies, journal, show, sides, targets, tool, wal
from provision.host.backup.catalogue import Catalogue
from provision.host.backup.targets import Target, Window
from provision.plan.cluster import Cluster
from provision.plan.schema import Plan, Repository

ARCHIVE_WAIT_S = 60
SPARE = 1.1  # the set's size plus some WAL


@dataclass(frozen=True)
class Request:
    """A requested restore. `beside` is the port of a copy (0: in place), `stanza` another host's ('': our own).

    `repository` is its number (0: the first that reaches the target).
    """

    target: str = "latest"
    set: str = ""
    stanza: str = ""
    repository: int = 0
    timeline: int = 0
    delta: bool = False
    beside: int = 0
    action: str = "promote"
    confirm: str = ""
    confirm_delta: str = ""

    def confirming(self, host: str) -> str:
        """Return the command that starts this restore: `provision restore run` with its options and confirmations."""
        words = ["provision", "restore", "run"]
        for each in fields(self):
            value = getattr(self, each.name)
            if value != each.default and each.name not in ("confirm", "confirm_delta"):
                words += [f"--{each.name}"] if value is True else [f"--{each.name}", str(value)]
        words += ["--confirm", host, *(["--confirm-delta", "overwrite"] if self.delta else [])]
        return shlex.join(words)


@dataclass(frozen=True)
class Prepared:
    """A checked restore: the repository, the window, and a description of each stage.

    `resumed` is the state of a killed restore.
    """

    request: Request
    repository: Repository
    target: Target
    window: Window
    stages: tuple[str, ...]
    resumed: str

    @property
    def journal(self) -> str:
        """The name of its journal and its lock."""
        return journal.COPY if self.request.beside else journal.IN_PLACE


def prepare(plan: Plan, request: Request) -> Prepared:
    """Check a request against the repository and this host. Changes nothing except that the server switches WAL.

    Raises UsageError, HostError, BackupError.
    """
    tool.need_physical(plan)
    target = targets.parse(request.target)
    if request.delta and request.beside:
        raise UsageError(
            "a copy beside has no data directory to reuse", seen="--delta with --beside", allowed="one of the two"
        )
    _pgvector(plan)
    data = copies.data(request.beside) if request.beside else plan.server.data
    resumed = journal.state(journal.COPY if request.beside else journal.IN_PLACE, data)
    if resumed == journal.PROMOTING:
        raise HostError(
            "an earlier restore was killed during promotion: the server may hold new data",
            where=str(data), run="provision restore promote, then retry",
        )  # fmt: skip
    if request.beside:
        if not resumed:
            copies.free_port(request.beside)
        if data.exists() and any(data.iterdir()) and not resumed:
            raise HostError(
                "the directory of the copy is not empty", where=str(data), allowed="another port, or an empty directory"
            )
    elif not request.delta and not resumed:
        _movable(data)
    flushed = "" if request.stanza else _flush(plan)
    repository, window, passed = _reaching(plan, request, target, flushed)
    if not (request.beside or request.delta or resumed):
        _tablespaces_free(request.stanza or plan.backup.stanza, window.set.label, repository.number)
    need = 0 if request.delta or resumed else int(window.set.size * SPARE)
    # The original keeps running beside a copy and needs space for its own WAL.
    spare = tool.reserve(data) if request.beside else 0
    if tool.free_bytes(data) - spare < need:
        raise HostError(
            "too little disk space for the restored data",
            where=str(data.parent), seen=f"{show.size(tool.free_bytes(data))} free",
            allowed=f"{show.size(need)}" + (f" plus a reserve of {show.size(spare)} for the original" if spare else ""),
            run="free space" + ("" if request.beside else ", or -e restore_mode=delta, which keeps no copy"),
        )  # fmt: skip
    stages = [*passed, *_stages(plan, request, repository, target, window, data, resumed)]
    return Prepared(request, repository, target, window, tuple(stages), resumed)


def _reaching(plan: Plan, request: Request, target: Target, flushed: str) -> tuple[Repository, Window, list[str]]:
    """Return the first repository that reaches the target, its window, and a sentence for each that is passed over.

    Raises UsageError, HostError or BackupError of the only repository, BackupError that names the reasons of all.
    """
    failures = []
    for repository in plan.backup.chosen(request.repository):
        try:
            window = _window(plan, request, repository, target, flushed)
        except ProvisionError as error:
            failures.append((repository, error))
        else:
            return repository, window, [f"pass over {each.place}: {error.what}" for each, error in failures]
    if len(failures) == 1:
        raise failures[0][1]
    raise tool.BackupError(
        "no repository reaches this target",
        where=str(target),
        seen="; ".join(
            f"repository {each.number}, {each.place}: {error.what}{f' ({error.seen})' if error.seen else ''}"
            for each, error in failures
        ),
        allowed="; ".join(dict.fromkeys(error.allowed for _, error in failures if error.allowed)),
        run="provision backup status",
    )


def _window(plan: Plan, request: Request, repository: Repository, target: Target, flushed: str) -> Window:
    """Choose the set of a repository. Raises UsageError, HostError, BackupError."""
    catalogue = Catalogue.read(plan, request.stanza, request.timeline, repository.number, plan.server.major)
    version = catalogue.major
    if version != str(plan.server.major):
        raise HostError(
            "this backup is from another major of PostgreSQL",
            where=f"stanza {catalogue.repository.stanza}",
            seen=f"the backup is from {version}, this host has {plan.server.major}",
            allowed=f"a host with PostgreSQL {version}", run="docs/move-to-another-major.md",
        )  # fmt: skip
    window = sides.choose(catalogue, target, request.set, request.target)
    if target.kind == "latest" and flushed and not request.timeline and not catalogue.holds(flushed):
        raise UsageError(
            "the latest state cannot be reached: WAL is missing from the archive",
            where=flushed, seen="the server reports it as archived, but the repository lacks it", allowed=str(window),
            run=f"provision backup take --type full; or restore to --target lsn:{wal.text(window.reached.end)}",
        )  # fmt: skip
    return window


def _movable(data: Path) -> None:
    """Raise HostError if the data directory cannot be moved aside."""
    if data.is_symlink() or data.is_mount():
        raise HostError(
            "the data directory cannot be moved aside",
            where=str(data), seen="a symbolic link" if data.is_symlink() else "a mount point",
            allowed="a plain directory", run="-e restore_mode=delta, which overwrites it",
        )  # fmt: skip


def _tablespaces_free(stanza: str, label: str, number: int) -> None:
    """Raise HostError if a tablespace directory of the set is not empty: tablespaces are not moved aside."""
    for name, place in tool.tablespaces(stanza, label, number).items():
        if Path(place).is_dir() and any(Path(place).iterdir()):
            raise HostError(
                "a tablespace directory is not empty; tablespaces are not moved aside", where=f"{name}: {place}",
                allowed="an empty directory", run="move its contents away, or -e restore_mode=delta",
            )  # fmt: skip


def cluster_of(plan: Plan, beside: int = 0) -> Cluster | None:
    """Return the cluster whose data a restore in place replaces; None for a single host or a copy on a port."""
    return plan.cluster if plan.server.patroni and not beside else None


def _stages(
    plan: Plan, request: Request, repository: Repository, target: Target, window: Window, data: Path, resumed: str
) -> list[str]:
    ends = ["promote it to a new timeline" if request.action == "promote" else "leave it paused, read-only"]
    cluster = cluster_of(plan, request.beside)
    if cluster and request.action == "promote":
        others = ", ".join(each.name for each in cluster.members if each.name != cluster.member)
        ends.append(f"turn automatic failover on, and clone {others} from it")
    killed = resumed in (journal.RESTORING, journal.REPLAYING)
    reuse = f"{'resume the killed restore' if killed else 'reuse the data of an earlier restore'} in {data}"
    if request.beside:
        copy = f"{plan.server.major}/{copies.name(request.beside)}"
        made = f"create cluster {copy} on port {request.beside} in {data}, without archiving"
        begin = [reuse if resumed else made]
    else:
        aside = "overwrite" if request.delta else "move aside and keep"
        begin = [
            *(["turn automatic failover off and stop Patroni"] if cluster else []),
            f"stop {'the server' if cluster else plan.server.unit} (ends all connections) and any running backup or "
            "restore test",
            reuse if resumed else f"{aside} {data}",
        ]
    return [
        *begin,
        f"restore set {window.set.label} ({show.size(window.set.size)}) from {repository.place}",
        f"replay WAL to {target}; reachable: {window}",
        *ends,
        "compare the end of recovery with the end of the archive, and query the database",
    ]


def _flush(plan: Plan) -> str:
    """Archive the current WAL of a running server. Return the last archived segment, '' if unknown.

    A server that does not run or does not archive is no error.
    """
    try:
        with (
            system.as_user(),
            connect_pinned(plan.server.url("postgres"), application="provision restore") as session,
        ):
            row = session.execute("SELECT pg_is_in_recovery()").fetchone()
            if row and row[0]:
                return ""
            row = session.execute("SELECT pg_walfile_name(pg_switch_wal() - 1)").fetchone()
            until = time.monotonic() + ARCHIVE_WAIT_S
            while row and time.monotonic() < until:
                done = session.execute("SELECT last_archived_wal >= %s FROM pg_stat_archiver", (row[0],)).fetchone()
                if done and done[0]:
                    return str(row[0])
                time.sleep(0.2)
    except ProvisionError:
        return ""
    return ""


def _pgvector(plan: Plan) -> None:
    control = Path(f"/usr/share/postgresql/{plan.server.major}/extension/vector.control")
    if not control.exists():
        raise HostError(
            "the backup needs pgvector, which is not installed", where=str(control),
            run=plan.site("pgvector"),
        )  # fmt: skip


def as_facts(prepared: Prepared) -> dict[str, Any]:
    """Return the stages, set, window and request as plain values."""
    return {
        "stages": list(prepared.stages), "set": prepared.window.set.label, "reachable": str(prepared.window),
        "repository": prepared.repository.place, "request": asdict(prepared.request),
    }  # fmt: skip
