"""The restore test (`provision backup drill`): restore a backup, compare it and use it.

Does IO as postgres. The scratch cluster runs beside the real one: socket only, no archiving, little memory, in its own
directory, which is always removed. Recovery pauses at the restore point of the reference counts, the tables are
compared, the remaining WAL is replayed, the cluster is promoted, and pg_amcheck and vector searches check it. The
result, passed or failed, is kept in /var/lib/provision/drill.json, that of the second repository in drill-2.json. Then
the newest dump is tested (dumptest).
"""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from provision import system
from provision.database import connect_pinned
from provision.errors import ProvisionError
from provision.host.backup import (
    counts,
    dump,
    dumptest,
    journal,
    recovery,
    scratch_cluster,
    searches,
    shared,
    tool,
    wal,
)
from provision.host.backup.catalogue import Catalogue
from provision.host.backup.scratch_cluster import KILLED, PORT, SCRATCH, SOCKET, Scratch
from provision.host.backup.targets import Target
from provision.host.backup.tool import BackupError
from provision.plan.schema import Plan, Repository

LOCK = "drill"


def run(
    plan: Plan, label: str = "", kind: str = "", number: int = 0, *, narrate: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Run a restore test of the set `label` ('' is the newest) and of the newest dump; return their evidence.

    Each repository is tested, unless `number` names one or `label` a set of one; that of the second is in `second`.
    `kind` is physical or logical to test only one of them. A failure of one does not prevent the test of the others.
    Raises BackupError for the first check that fails. Raises HostError, without new evidence, if another restore test
    or a restore in place has not finished.
    """
    if kind == "physical" or not plan.backup.logical:
        tool.need_physical(plan)
    journal.refuse_unfinished(plan.server.data)
    facts: dict[str, Any] = {}
    failures: list[ProvisionError] = []
    with journal.held(LOCK, "another restore test is running on this host"):
        signal.signal(signal.SIGTERM, _stopped)
        for repository in _tested(plan, label, number) if plan.backup.physical and kind != "logical" else ():
            try:
                found = _run(plan, label, repository, narrate)
            except ProvisionError as error:
                failures.append(error)
            else:
                facts |= {"second": found} if "set" in facts else found
        # A set that was asked for by name is not about dumps.
        if kind == "logical" or (plan.backup.logical and not kind and not label and dump.find(plan)):
            try:
                facts["dump_test"] = dumptest.run(plan, narrate)
            except ProvisionError as error:
                failures.append(error)
    shared.sync(plan)
    if len(failures) > 1:
        raise BackupError(
            "several restore tests failed", seen="; ".join(f"{each.what}: {each.seen}" for each in failures)
        )
    if failures:
        raise failures[0]
    return facts


def evidence(number: int) -> str:
    """Return the name of the evidence of a repository's restore test."""
    return LOCK if number == 1 else f"{LOCK}-{number}"


def _tested(plan: Plan, label: str, number: int) -> tuple[Repository, ...]:
    """Return the repositories to test; with a set's label, the one that holds it."""
    chosen = plan.backup.chosen(number)
    for each in chosen if label else ():
        with suppress(ProvisionError):
            if label in {one.label for one in tool.info(plan.backup.stanza, each.number).sets}:
                return (each,)
    return chosen[:1] if label else chosen


def _run(plan: Plan, label: str, repository: Repository, narrate: Callable[[str], None]) -> dict[str, Any]:
    begun, name = time.time(), evidence(repository.number)
    facts: dict[str, Any] = {"when": system.stamp(begun), "host": os.uname().nodename, "stanza": plan.backup.stanza}
    facts |= {"repository": repository.number, "place": repository.place}
    # Written first: a killed restore test must not leave the evidence of the one before.
    last = system.evidence(name).get("last_passed")
    system.keep(name, {**facts, "passed": False, "failure": KILLED, "last_passed": last})
    effect = Effect(plan.server.url("postgres"))
    facts["passed"] = False
    try:
        effect.start()
        _drill(plan, label, repository, begun, narrate, effect, facts)
        facts["passed"] = True
    except BaseException as error:
        facts["failure"] = str(error) or type(error).__name__
        raise
    finally:
        facts |= {"seconds": round(time.time() - begun, 1), "effect": effect.stop(), "limits": resource_limits()}
        # A test of an older set says nothing about the newest one.
        newest = facts["passed"] and facts["newest"]
        keys = ("when", "set", "host", "stanza", "system", "rto_s", "rpo_s")
        facts["last_passed"] = {key: facts[key] for key in keys} if newest else last
        system.keep(name, facts)
        scratch_cluster.clear(plan)
    return facts


def _stopped(signum: int, _frame: object) -> None:
    raise BackupError("the restore test was stopped", seen=signal.Signals(signum).name)


def _drill(
    plan: Plan, label: str, repository: Repository, begun: float, narrate: Callable[[str], None], effect: Effect,
    facts: dict[str, Any],
) -> None:  # fmt: skip
    """Run the stages and add results to `facts`, so that the evidence of a failure names its set."""
    shared.sync(plan)
    known = system.evidence(shared.FIGURES).get("sets", {})
    catalogue = Catalogue.read(plan, number=repository.number)
    facts["system"] = catalogue.repository.systems[catalogue.repository.current]
    provable = catalogue.provable({name: wal.position(row["lsn"]) for name, row in known.items()})
    # A set without reference counts is restored and checked, but not compared: a role that may write can prevent them.
    tested = label or next(reversed(provable or [each.set.label for each in catalogue.windows]), "")
    if not tested:
        raise BackupError("no set can be restored", where=repository.place, run="provision backup status")
    chosen = catalogue.pick(tested)
    facts |= {"set": tested, "newest": tested == next(reversed(provable), tested), "window": str(chosen)}
    facts["uncounted"] = [each.label for each in catalogue.sets if each.label not in provable and each.label >= tested]
    expected = known[tested] if tested in provable else {}
    facts |= {"point": expected.get("point", ""), "extensions": expected.get("extensions", {}), "tables": {}}
    if facts["uncounted"]:
        narrate(f"these sets have no reference counts: {', '.join(facts['uncounted'])}")
    facts["rpo_s"] = _rpo(plan)
    if chosen.gap:
        raise BackupError("WAL is missing from the archive", where=chosen.gap.name, seen=str(chosen))
    scratch_cluster.clear(plan)
    scratch_cluster.room(chosen.set.size)
    effect.during()
    narrate(f"restoring {chosen.set.label} from {repository.place} into {SCRATCH}")
    data = SCRATCH / "data"
    scratch_cluster.make(data, SCRATCH / "tablespaces")
    first = Target("name", expected["point"]) if expected else Target("latest")
    restore(
        plan.backup.stanza, repository.number, chosen.set.label, data, first, *chosen.options,
        f"--tablespace-map-all={SCRATCH / 'tablespaces'}",
    )  # fmt: skip
    facts["restore_s"] = round(time.time() - begun, 1)
    server = Scratch(plan, data)
    url = plan.server.url(plan.access.database, socket=str(SOCKET), port=PORT)
    if expected:
        narrate(f"replaying to {first}")
        with server.serving({}):
            recovery.await_target(url, first, chosen.reached, server, narrate)
            facts["tables"] = _compare(url, tested, expected)
            narrate(f"{len(facts['tables'])} tables match")
    narrate("replaying the WAL up to the end of the archive")
    with server.serving({"recovery_target_name": ""}):
        end = recovery.await_target(url, Target("latest"), chosen.reached, server, narrate)
        facts |= {"replayed_to": wal.text(end.lsn), "last_transaction": end.last_transaction}
        recovery.promote(url)
        facts["rto_s"] = round(time.time() - begun, 1)
        narrate("checking every table and index of every database")
        tool.run(
            f"{plan.server.programs}/pg_amcheck", "--all", "--install-missing", "--heapallindexed",
            f"--host={SOCKET}", f"--port={PORT}", "--username=postgres",
        )  # fmt: skip
        facts["vector_indexes"] = searches.run(
            lambda user, database: plan.server.url(database, user, socket=str(SOCKET), port=PORT), plan.access.database
        )
        facts["size"] = tool.folder_size(data)


def _compare(url: str, label: str, expected: dict[str, Any]) -> dict[str, int]:
    """Return the rows of each table of a restored set. Raises BackupError if they differ from the reference counts."""
    with connect_pinned(url, application="provision drill") as session:
        different = counts.differences(expected, counts.read(session))
    if different:
        raise BackupError("the restored data differs from the backup", where=label, seen="; ".join(different[:5]))
    return {name: row["rows"] for name, row in expected["tables"].items()}


def restore(stanza: str, number: int, label: str, data: Path, target: Target, *extra: str) -> None:
    """Restore a set of the repository `number` into another directory, as a standby that archives nothing."""
    # The lock and the spool belong to the real server, which continues to archive: archive-get is not asynchronous, and
    # --spool-path names a missing directory, because pgBackRest deletes the spool before a restore.
    command = f'pgbackrest --stanza={stanza} --repo={number} --pg1-path={data} --no-archive-async archive-get %f "%p"'
    options = {"restore_command": command, **target.options}
    tool.program(
        stanza, f"--repo={number}", f"--pg1-path={data}", f"--set={label}", "--type=standby", "--archive-mode=off",
        f"--spool-path={data}.spool", *(f"--recovery-option={name}={value}" for name, value in options.items()),
        *extra, "restore",
    )  # fmt: skip


def _rpo(plan: Plan) -> float | None:
    """Return the seconds of work that would be lost if the host failed now (RPO); None where that is unknown.

    While archiving works, archive_timeout bounds it: an older last segment means that nothing was written.
    """
    with (
        suppress(ProvisionError),
        connect_pinned(plan.server.url("postgres"), application="provision drill") as session,
    ):
        row = session.execute(
            "SELECT extract(epoch FROM now() - last_archived_time),"
            " last_archived_time > coalesce(last_failed_time, '-infinity'), pg_is_in_recovery() FROM pg_stat_archiver"
        ).fetchone()
        if row is not None and row[0] is not None and not row[2]:  # a replica archives nothing
            age = float(str(row[0]))
            return round(min(age, plan.backup.archive_timeout_s or age) if row[1] else age, 1)
    return None


class Effect(threading.Thread):
    """The effect of a restore test on production: the time of a small query, measured four times a second."""

    def __init__(self, url: str) -> None:
        """Prepare; `start` begins to measure."""
        super().__init__(daemon=True)
        self.url = url
        self.before: list[float] = []
        self.meanwhile: list[float] = []
        self.now = self.before
        self.over = threading.Event()

    def run(self) -> None:
        """Measure until `stop`."""
        with suppress(Exception), connect_pinned(self.url, application="provision drill") as session:
            while not self.over.wait(0.25):
                begun = time.perf_counter()
                session.execute("SELECT count(*) FROM pg_class")
                self.now.append(1000 * (time.perf_counter() - begun))

    def during(self) -> None:
        """Count what follows as during the restore test."""
        time.sleep(2)
        self.now = self.meanwhile

    def stop(self) -> dict[str, float | str]:
        """Return the medians and the maximum in ms."""
        self.over.set()
        if self.is_alive():
            self.join(5)
        if not self.before or not self.meanwhile:
            return {"note": "not measured: the primary does not answer"}
        return {
            "query_ms_before": round(statistics.median(self.before), 2),
            "query_ms_during": round(statistics.median(self.meanwhile), 2),
            "query_ms_worst": round(max(self.meanwhile), 2),
        }


def resource_limits() -> dict[str, str]:
    """Return the resource limits that this process's cgroup applies."""
    found = {}
    line = Path("/proc/self/cgroup").read_text().splitlines()[-1] if Path("/proc/self/cgroup").exists() else ""
    group = Path("/sys/fs/cgroup") / line.rpartition(":")[2].lstrip("/")
    for name in ("cpu.weight", "io.weight", "memory.high"):
        try:
            found[name] = (group / name).read_text().strip()
        except OSError:
            found[name] = "unavailable in this host's cgroup"
    found["nice"] = str(os.nice(0))
    return found
