"""Start the server, load the files that it has not loaded, and restart it for pending settings if allowed. Does IO.

Decided by what the server says on every run, not by what this run changed: a run may have been killed in between.
Refuses a configuration in which the server reports an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from provision.database import Connection, ask, connect_pinned
from provision.errors import HostError
from provision.host.pooler import console
from provision.host.server import cluster, patroni
from provision.plan.schema import Plan
from provision.system import as_user

LOAD_S = 3.0
"""Time for the postmaster to load its files after the signal."""
PAUSE_WAIT_S, PAUSE_AT_MOST_S = 30.0, 120
"""Time for transactions to end before a restart, and after which the pooler resumes by itself."""

# A pending restart is no error here, although pg_file_settings has it as one: without a file where the setting was
# removed from the files.
ERRORS = """
SELECT format('pg_hba.conf line %%s: %%s', line_number, error) FROM pg_hba_file_rules WHERE error IS NOT NULL
UNION ALL
SELECT format('%%s line %%s: %%s', sourcefile, sourceline, error) FROM pg_file_settings
WHERE error IS NOT NULL AND error <> 'setting could not be applied'
  AND error NOT LIKE '%%cannot be changed without restarting the server'
UNION ALL
SELECT 'postgresql.conf does not include conf.d: put back its line include_dir'
WHERE NOT EXISTS (SELECT FROM pg_file_settings WHERE sourcefile = %s)
"""
PENDING = "SELECT name FROM pg_settings WHERE pending_restart ORDER BY name"
UNIT = "the unit's sandbox"
STARTED_BEFORE = "SELECT pg_postmaster_start_time() < to_timestamp(%s)"
SHADOWED = """
SELECT DISTINCT theirs.name FROM pg_file_settings AS theirs
JOIN pg_file_settings AS ours ON ours.name = theirs.name AND ours.sourcefile = %s
WHERE theirs.sourcefile LIKE '%%/postgresql.auto.conf' ORDER BY 1
"""
OVERRULED = """
SELECT DISTINCT format('%%s is set again in %%s line %%s', theirs.name, theirs.sourcefile, theirs.sourceline)
FROM pg_file_settings AS theirs
JOIN pg_file_settings AS ours ON ours.name = theirs.name AND ours.seqno < theirs.seqno
WHERE ours.sourcefile = %s AND theirs.applied AND theirs.sourcefile NOT LIKE '%%/postgresql.auto.conf' ORDER BY 1
"""


@dataclass(frozen=True)
class Applied:
    """What `apply` did and what it found.

    `pending` are settings that wait for a restart, and UNIT; `shadowed` those that ALTER SYSTEM sets over ours;
    `overruled` a sentence for each that postgresql.conf sets again after ours.
    """

    started: bool
    reloaded: bool
    restarted: bool
    pending: tuple[str, ...]
    shadowed: tuple[str, ...]
    overruled: tuple[str, ...]

    @property
    def changed(self) -> bool:
        """Whether anything was done."""
        return self.started or self.reloaded or self.restarted


def apply(plan: Plan, restart_allowed: bool | None = None, say: Callable[[str], None] = lambda _text: None) -> Applied:
    """Start the server, load newer files, report, and restart for pending settings if that is allowed.

    `restart_allowed` None asks the plan. Raises HostError for errors in the files and for a failed start.
    """
    released = not plan.server.patroni and patroni.release(plan, say)
    started = cluster.start(plan)
    if released and (slots := patroni.drop_slots(plan)):
        say(f"dropped the replication slots {', '.join(slots)}")
    if plan.server.patroni and cluster.Postmaster.read(plan.server.data) is None:
        return Applied(started, False, False, (), (), ())  # Patroni will start it, or has yet to clone it
    reloaded = _load(plan)
    found = _report(plan)
    if plan.server.patroni and patroni.owns(plan):
        return Applied(started, reloaded, False, **{**found, "overruled": ()})  # Patroni repeats what all members share
    allowed = plan.server.restart_allowed if restart_allowed is None else restart_allowed
    restarted = bool(found["pending"]) and allowed
    if restarted:
        say(f"restarting PostgreSQL for {', '.join(found['pending'])}")
        restart(plan, say)
        found = _report(plan)
    return Applied(started, reloaded, restarted, **found)


def warnings(done: Applied, plan: Plan | None = None) -> Iterator[str]:
    """Return a warning for each setting that is not in force, with the remedy."""
    if done.pending and plan and plan.server.patroni:
        yield (
            f"these settings wait for a restart of {plan.name}: {', '.join(done.pending)}; provision cluster restart, "
            "on a member, restarts the replicas first and the primary last"
        )
    elif done.pending:
        yield (
            f"these settings wait for a restart, which postgresql_restart_allowed forbids: {', '.join(done.pending)}; "
            "run again with -e postgresql_restart_allowed=true when connections may be cut"
        )
    if done.shadowed:
        yield (
            "ALTER SYSTEM settings on this host override the plan. "
            f"To remove them, run there: {_reset(done.shadowed)}; or keep the values in postgresql_settings"
        )
    if done.overruled:
        lines = "; ".join(done.overruled)
        yield f"{lines}, which overrides the plan: remove the line, or put the value in postgresql_settings"


def _reset(names: Sequence[str]) -> str:
    """Return the command that removes these settings from postgresql.auto.conf."""
    statements = " ".join(f"-c 'ALTER SYSTEM RESET {name}'" for name in names)
    return f"runuser -u postgres -- psql {statements} -c 'SELECT pg_reload_conf()'"


def files(plan: Plan) -> list[Path]:
    """Name the files that we place and the server loads: settings, access rules, user name maps."""
    folder = Path(plan.server.configuration_directory)
    return [Path(plan.server.settings_file), folder / "pg_hba.conf", folder / "pg_ident.conf"]


@contextmanager
def _session(plan: Plan) -> Iterator[Connection]:
    where = cluster.url(plan)
    with as_user():
        session = connect_pinned(where, application="provision server")
    with session:
        yield session


def _load(plan: Plan) -> bool:
    """Reload if a file is newer than the last load, and wait for the load; False if the server has loaded them all."""
    newest = max((path.stat().st_mtime for path in files(plan) if path.exists()), default=0.0)
    with _session(plan) as session:
        if not _stale(session, newest):
            return False
        ask(session, "SELECT pg_reload_conf()")
    # Each time a new session: it inherits what the postmaster loaded, the access rules included.
    deadline = time.monotonic() + LOAD_S
    while time.monotonic() < deadline:
        with _session(plan) as session:
            if not _stale(session, newest):
                break
        time.sleep(0.05)
    return True


def _stale(session: Connection, newest: float) -> bool:
    return ask(session, "SELECT pg_conf_load_time() < to_timestamp(%s)", [newest]) == [(True,)]


def _report(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Ask the server what is wrong, pending, shadowed and overruled. Raises HostError for what is wrong."""
    with _session(plan) as session:

        def names(query: str, *parameters: str) -> tuple[str, ...]:
            return tuple(str(row[0]) for row in ask(session, query, parameters))

        ours = plan.server.settings_file
        shadowed = names(SHADOWED, ours)
        if wrong := names(ERRORS, ours):
            cause = f"; set by ALTER SYSTEM: {', '.join(shadowed)}" if shadowed else ""
            fix = _reset(shadowed) if shadowed else "fix the file, or the variable that it comes from"
            raise HostError(
                "PostgreSQL rejected its configuration",
                where=plan.server.configuration_directory,
                seen="; ".join(wrong) + cause,
                allowed="files without errors; the server keeps its previous configuration",
                run=f"{fix}, then {plan.site('postgresql')}",
            )
        pending = (*names(PENDING), *([UNIT] if unit_waits(plan, session) else []))
        return {"pending": pending, "shadowed": shadowed, "overruled": names(OVERRULED, ours)}


def unit_waits(plan: Plan, session: Connection) -> bool:
    """Return whether the server was started before the drop-in of its unit was written. Raises DatabaseError."""
    file = Path(plan.server.unit_file)
    return plan.host.systemd and file.exists() and ask(session, STARTED_BEFORE, [file.stat().st_mtime]) == [(True,)]


def restart(plan: Plan, say: Callable[[str], None]) -> None:
    """Restart the server while the pooler holds its clients; the pooler resumes whatever happens."""
    if not plan.pooler.enabled:
        cluster.control(plan, "restart")
        return
    try:
        paused = console.pause(PAUSE_WAIT_S, PAUSE_AT_MOST_S)
        if paused.running:
            say(f"{paused.running} transactions still run after {PAUSE_WAIT_S:.0f} s and end with the restart")
        cluster.control(plan, "restart")
    finally:
        console.resume()
