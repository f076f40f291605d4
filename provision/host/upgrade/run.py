"""Run an upgrade: stages in order, each repeatable, with the pooler paused while no server runs. Does IO as root.

The old server serves during check, prepare, backup and measure. From stop to verify no transaction runs through the
pooler, which resumes whatever happens. A failure before the new server starts goes back to the old one. The same
command continues after a kill at any stage (`journal`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from provision import secure_path, system
from provision.database import ask
from provision.errors import HostError, ProvisionError, UsageError
from provision.host import rehearsal
from provision.host.backup import fresh
from provision.host.backup import journal as locks
from provision.host.pooler import console
from provision.host.server import cluster
from provision.host.upgrade import after, check, journal, search, side, transfer
from provision.host.upgrade.sessions import session_of
from provision.host.upgrade.side import Side
from provision.plan import load
from provision.plan.schema import Plan

Narrate = Callable[[str], None]
HELPERS = ("provision-backup@*.service", "provision-drill.service", "provision-maintain@*.service")
"""Units that use the old server, and would be cut off."""
PAUSE_WAIT_S = 30.0
PAUSE_AT_MOST_S = 3600
"""After which the pooler resumes by itself, if this command was killed."""
STAGES = (
    "check the old server",
    "make the new cluster and run pg_upgrade --check",
    "take a backup",
    "measure the recall of vector searches",
    "pause the pooler and stop the old server",
    "run pg_upgrade",
    "start the new server",
    "collect first statistics",
    "update extensions",
    "verify the new server",
    "resume the pooler",
    "collect all statistics",
)


@dataclass
class Upgrade:
    """One upgrade: plans of both majors, the method, the journal and where stages are reported."""

    old_plan: Plan
    new_plan: Plan
    method: str
    narrate: Narrate
    facts: dict[str, Any] = field(default_factory=dict)
    made: bool = False
    """This process has made the new cluster, and pg_upgrade has only checked it since."""

    @property
    def old(self) -> Side:
        """The old cluster."""
        return Side.of(self.old_plan)

    @property
    def new(self) -> Side:
        """The new cluster."""
        return Side.of(self.new_plan)

    @property
    def work(self) -> Path:
        """The directory of pg_upgrade's own files."""
        return self.new.data.parent.parent / f"upgrade-{self.new.major}"

    def write(self, state: str, **more: Any) -> None:
        """Write the state to the journal before its stage begins."""
        self.facts = journal.write(self.facts, state=state, **more)

    @contextmanager
    def stage(self, number: int) -> Iterator[None]:
        """Report a stage, with its number and its time, and keep the time."""
        title = f"{number}/{len(STAGES)} {STAGES[number - 1]}"
        self.narrate(title)
        begun = time.monotonic()
        yield
        seconds = round(time.monotonic() - begun, 1)
        self.facts.setdefault("seconds", {})[STAGES[number - 1]] = seconds
        self.narrate(f"{title}: {seconds} s")


def plans() -> tuple[Plan, Plan]:
    """Return the plans of the old and the new major. Raises HostError where upgrade.yml has not prepared the host."""
    now = load.load()
    new = load.load(journal.NEW_PLAN)
    old = load.load(journal.OLD_PLAN) if journal.state(journal.read()) in journal.NEW_SERVES else now
    return old, new


def create(plan: Plan) -> bool:
    """Make the configuration of NEW/main, sealed; False if it exists. Raises HostError."""
    new = Side.of(plan)
    if new.running or journal.state(journal.read()) in journal.NEW_SERVES:
        return False
    changed = cluster.create(plan)
    side.seal(new)  # a reboot would start an empty server
    return changed


def run(upgrade: Upgrade, confirm: str) -> dict[str, Any]:
    """Upgrade, or continue an upgrade, and return the journal. Raises UsageError without confirmation, HostError."""
    if confirm != check.host():
        raise UsageError(
            "an upgrade stops the server and must be confirmed",
            where=check.host(), seen=repr(confirm), allowed=f"-e upgrade_confirm={check.host()}",
        )  # fmt: skip
    with locks.held(journal.NAME, "another upgrade is running on this host"):
        upgrade.facts = _begun(upgrade)
        state = journal.state(upgrade.facts)
        if state == journal.FINISHED:
            return {**upgrade.facts, "repeated": True}
        if state in ("", journal.CHECKED, journal.PREPARED):
            _before(upgrade)
        if journal.state(upgrade.facts) != journal.SERVING:
            _move(upgrade)
        with upgrade.stage(12):
            after.statistics(upgrade.new_plan)
        upgrade.write(journal.FINISHED, finished=system.stamp())
        return upgrade.facts


def _begun(upgrade: Upgrade) -> dict[str, Any]:
    """Return the journal of this upgrade, new or to be continued. Raises HostError for another one."""
    found = journal.read()
    state, new = journal.state(found), upgrade.new.major
    if state in (*journal.OPEN, journal.FINISHED):
        if (found["to"], found["method"]) != (new, upgrade.method) and state not in (
            journal.CHECKED,
            journal.PREPARED,
        ):
            if state == journal.FINISHED and new > int(found["to"]):
                raise HostError(
                    "the old cluster of the last upgrade is still there",
                    seen=journal.described(found), run="upgrade.yml -e upgrade_release=yes",
                )  # fmt: skip
            raise HostError(
                "another upgrade of this host was begun",
                seen=journal.described(found),
                allowed=f"-e upgrade_to={found['to']} -e upgrade_method={found['method']}",
                run="repeat that command, or upgrade.yml -e upgrade_rollback=yes",
            )  # fmt: skip
        return {**found, "to": new, "method": upgrade.method}
    return {"from": upgrade.old.major, "to": new, "method": upgrade.method, "begun": system.stamp()}


def judge(upgrade: Upgrade) -> check.Found:
    """Check all that stops the upgrade while the old server serves; the new cluster is made for pg_upgrade's check.

    Raises HostError with every problem.
    """
    found = look(upgrade)
    rehearse(upgrade)
    return found


def look(upgrade: Upgrade) -> check.Found:
    """Ask the old server and the host. Raises HostError with every problem."""
    found = check.look(upgrade.old_plan, upgrade.new_plan, upgrade.method)
    _refuse(upgrade, found.problems)
    return found


def rehearse(upgrade: Upgrade) -> None:
    """Start a scratch server with the new configuration; run pg_upgrade --check. Raises HostError, DatabaseError."""
    with session_of(upgrade.old_plan) as session:
        like = transfer.form(session)
    rehearsal.rehearse(upgrade.new.programs, upgrade.new.configuration)
    side.end_strays(upgrade.work)
    side.stop(upgrade.new)
    transfer.make(upgrade.new, like)
    upgrade.made = True
    _refuse(upgrade, transfer.check(upgrade.old, upgrade.new, upgrade.work))
    upgrade.facts["form"] = asdict(like)


def _refuse(upgrade: Upgrade, problems: list[str]) -> None:
    if problems:
        raise HostError(
            f"PostgreSQL {upgrade.old.major} cannot be upgraded to {upgrade.new.major} yet; the old server serves",
            seen="\n".join(problems), run="provision upgrade check, once each is resolved",
        )  # fmt: skip


def _before(upgrade: Upgrade) -> None:
    """Everything that the old server can serve meanwhile."""
    cluster.start(upgrade.old_plan)
    upgrade.write(journal.CHECKED)
    with upgrade.stage(1):
        found = look(upgrade)
        for notice in found.notices:
            upgrade.narrate(f"note: {notice}")
    with upgrade.stage(2):
        rehearse(upgrade)
        side.keep_configuration(upgrade.old, journal.FOLDER)
        _keep_old_plan(upgrade)
    with upgrade.stage(3):
        fresh.ensure(upgrade.old_plan)
    with upgrade.stage(4):
        before = {name: search.as_facts(search.measure(upgrade.old_plan, name)) for name in _databases(upgrade)}
    upgrade.write(
        journal.PREPARED,
        before=before,
        size_mb=found.size_mb,
        databases=after.contents(upgrade.old_plan),
        systems=[after.identifier(upgrade.old_plan)],
    )


def _databases(upgrade: Upgrade) -> list[str]:
    return list(upgrade.old_plan.access.databases)


def _keep_old_plan(upgrade: Upgrade) -> None:
    system.write(journal.OLD_PLAN, load.text(upgrade.old_plan), mode=0o640, owner=owner(load.PATH))


def owner(path: Path) -> tuple[int, int]:
    """Return the ids of a file's owner and group, those of root if there is none."""
    found = secure_path.about(path)
    return (found.st_uid, found.st_gid) if found else (0, 0)


@contextmanager
def paused(upgrade: Upgrade) -> Iterator[None]:
    """Pause the pooler for the duration of a `with` block; it resumes in every outcome."""
    found = console.pause(PAUSE_WAIT_S, PAUSE_AT_MOST_S)
    if found.running:
        upgrade.narrate(f"{found.running} transactions still run after {PAUSE_WAIT_S:.0f} s and end with the server")
    try:
        yield
    finally:
        if found.pooler:
            console.resume()


def _move(upgrade: Upgrade) -> None:
    """Stop the old server, move its data, start the new one and verify it, while clients of the pooler wait."""
    begun = time.monotonic()
    with paused(upgrade):
        if journal.state(upgrade.facts) not in journal.NEW_SERVES:
            try:
                _stop(upgrade)
                _transfer(upgrade)
            except BaseException as error:
                back_to_old(upgrade)
                if isinstance(error, ProvisionError):
                    error.run = f"{error.run}; the old server serves again; repeat the command once it is resolved"
                raise
        _start(upgrade)
        with upgrade.stage(8):
            after.first_statistics(upgrade.new_plan)
        with upgrade.stage(9):
            updated = after.update_extensions(upgrade.new_plan)
        with upgrade.stage(10):
            _verify(upgrade)
    down = round(time.monotonic() - begun, 1)
    with upgrade.stage(11):
        systems = [*upgrade.facts.get("systems", []), after.identifier(upgrade.new_plan)]
        upgrade.write(journal.SERVING, updated=updated, down_seconds=down, systems=systems)
    upgrade.narrate(f"clients of the pooler waited at most {down} s")


def _stop(upgrade: Upgrade) -> None:
    upgrade.write(journal.STOPPED)
    with upgrade.stage(5):
        side.end_strays(upgrade.work)
        system.run("systemctl", "stop", *HELPERS, check=False)
        side.stop(upgrade.new)
        if upgrade.old.linked:  # a killed pg_upgrade --link
            side.unseal(upgrade.old)
        side.stop(upgrade.old)
        side.seal(upgrade.old)
        seen = side.checkpoint(upgrade.old)
        if not seen.startswith("shut down at"):
            raise HostError("the old server did not shut down cleanly", where=str(upgrade.old.data), seen=seen)


def _transfer(upgrade: Upgrade) -> None:
    with upgrade.stage(6):
        if not upgrade.made:  # after a kill; clients wait meanwhile
            transfer.make(upgrade.new, transfer.of_facts(upgrade.facts["form"]))
        upgrade.made = False
        transfer.transfer(upgrade.old, upgrade.new, upgrade.work, upgrade.method, upgrade.new_plan.host.cpus)
        # Not that of the stop: pg_upgrade starts the old server, too.
        upgrade.write(journal.TRANSFERRED, checkpoint=side.checkpoint(upgrade.old))


def back_to_old(upgrade: Upgrade) -> None:
    """Start the old server again, whatever pg_upgrade did: nothing has changed its data. Raises HostError."""
    side.end_strays(upgrade.work)
    side.stop(upgrade.new)
    side.seal(upgrade.new)
    side.unseal(upgrade.old)
    cluster.start(upgrade.old_plan)
    upgrade.write(journal.PREPARED)


def _start(upgrade: Upgrade) -> None:
    """Start the new server. From here on it is the database: the old data cannot be started any more."""
    with upgrade.stage(7):
        first = journal.state(upgrade.facts) == journal.TRANSFERRED  # else it may have served, and has data of its own
        side.seal(upgrade.old, control=upgrade.method == "link")
        upgrade.write(journal.STARTED)
        side.unseal(upgrade.new)
        publish(upgrade.new_plan)
        try:
            cluster.start(upgrade.new_plan)
        except HostError as error:
            if first and upgrade.method == "copy" and not upgrade.new.running:
                publish(upgrade.old_plan)
                back_to_old(upgrade)
                error.run = f"{error.run}; the old server serves again"
            raise


def publish(plan: Plan) -> None:
    """Make a plan the host's: every command and timer reads it from now on."""
    system.write(load.PATH, load.text(plan), mode=0o640, owner=owner(load.PATH))


def _verify(upgrade: Upgrade) -> None:
    """Compare the new server with what the old one had. Raises HostError; the new server keeps running."""
    plan = upgrade.new_plan
    with session_of(plan) as session:
        version = int(str(ask(session, "SHOW server_version_num")[0][0])) // 10000
    found = [] if version == plan.server.major else [f"the server is {version}"]
    found += after.missing(upgrade.facts.get("databases", {}), after.contents(plan))
    for name, rows in upgrade.facts.get("before", {}).items():
        found += search.differences(rows, search.measure(plan, name))
    if found:
        raise HostError(
            "the new server serves, but differs from the old one",
            where=plan.server.unit, seen="; ".join(found),
            run="upgrade.yml -e upgrade_rollback=yes, or repair it and repeat the command",
        )  # fmt: skip
