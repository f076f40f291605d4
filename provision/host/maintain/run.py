"""One run of maintenance in small steps, with evidence of its result. Does IO.

Jobs: `sessions` deletes expired sessions, `retention` applies the plan's rules and runs ANALYZE, `index` rebuilds
bloated indexes. On a standby, during another run or during a migration a job is skipped, with the reason in its result.
The migration locks are held for one batch or one index at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import psycopg

from provision import system
from provision.database import Connection, connect, describe_connection, hold_locks, holders, refuse_pooler
from provision.errors import DatabaseError, DriftError, ProvisionError
from provision.host.backup import journal
from provision.host.maintain import batches, indexes
from provision.host.maintain.batches import Batches
from provision.host.migrate.ledger import Ledger
from provision.plan.schema import Maintenance, Plan, Retention

JOBS = ("sessions", "retention", "index")
LOCK = "maintain"
"""Lock file of the host: an advisory lock could be taken by every role that may connect."""
APPLICATION = "provision maintain"
GAVE_WAY = (*batches.WAITED, psycopg.errors.ObjectInUse)

Say = Callable[[str], None]


class _BlockedError(Exception):
    """A migration has been running for longer than maintenance waits."""


def run(plan: Plan, job: str, *, dry: bool = False, say: Say = lambda _text: None, url: str = "") -> dict[str, Any]:
    """Run a job, or with `dry` only count rows. `outcome` is done, would, skipped or failed. Raises DatabaseError.

    `url` is the session's connection string [that of the database's owner].
    """
    begun = time.time()
    facts: dict[str, Any] = {"job": job, "when": system.stamp(begun), "outcome": "would" if dry else "done"}
    maintenance = plan.maintenance
    if plan.worker:
        return facts | {
            "outcome": "skipped",
            "why": "this host is a worker of a fleet; maintenance runs on the coordinator",
        }
    url = url or plan.server.url(plan.access.database, plan.access.owner)
    with connect(url, application=APPLICATION, lock_timeout_ms=maintenance.lock_timeout_ms) as connection:
        row = connection.execute("SELECT pg_is_in_recovery()").fetchone()
        if row is None or row[0]:
            return facts | {"outcome": "skipped", "why": "this server is a standby; maintenance runs on the primary"}
        refuse_pooler(connection)
        if dry:
            return facts | {"steps": _plan(connection, maintenance, job)}
        steps: list[dict[str, Any]] = []
        try:
            with journal.held(LOCK, "another maintenance run is active on this host"):
                for step in _steps(connection, maintenance, job):
                    steps.append(step)
                    say(_sentence(step))
        except journal.HeldError as held:
            return facts | {"outcome": "skipped", "why": f"{held.what}: {held.where}"}
        except _BlockedError as blocked:
            facts |= {"outcome": "skipped", "why": str(blocked)}
        except (psycopg.Error, ProvisionError) as error:
            what = str(error).strip().splitlines()
            facts |= {"outcome": "failed", "why": "; ".join(line.strip() for line in what)}
    return facts | {"steps": steps, "seconds": round(time.time() - begun, 1)}


def keep(facts: dict[str, Any]) -> None:
    """Keep the result of a run as evidence; `last_done` is the time of the job's last successful run."""
    known = system.evidence("maintain").get("jobs", {})
    earlier = known.get(facts["job"], {})
    done = facts["when"] if facts["outcome"] == "done" else earlier.get("last_done")
    system.keep("maintain", {"jobs": {**known, facts["job"]: {**facts, "last_done": done}}})


def alarm(facts: dict[str, Any]) -> None:
    """Raise DriftError for a failed run, so that its systemd unit fails."""
    if facts["outcome"] == "failed":
        raise DriftError(
            f"maintenance job {facts['job']} failed",
            seen=str(facts["why"]), run=f"provision maintain {facts['job']} --dry-run",
        )  # fmt: skip


def sentences(facts: dict[str, Any]) -> list[str]:
    """Format a run as text."""
    if "tenants" in facts:
        return [*sentences({key: value for key, value in facts.items() if key != "tenants"}),
                *(f"  tenant {name}: {result}" for name, result in facts["tenants"].items())]  # fmt: skip
    lines = [_sentence(step) for step in facts.get("steps", [])] or ["nothing to do"]
    return [f"{facts['job']}: {facts['outcome']}" + (f", {facts['why']}" if facts.get("why") else ""),
            *(f"  {line}" for line in lines if facts.get("steps") is not None)]  # fmt: skip


def _sentence(step: dict[str, Any]) -> str:
    what, numbers = step["what"], {key: value for key, value in step.items() if key != "what"}
    return f"{what}: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in numbers.items())


def _there(connection: Connection, table: str) -> bool:
    # The shared tables are in the search_path of a tenant too, which may not read them.
    query = "SELECT has_table_privilege(to_regclass(quote_ident(%s)), 'SELECT')"
    row = connection.execute(query, (table,)).fetchone()
    return bool(row and row[0])


def _rules(maintenance: Maintenance, job: str) -> list[Retention]:
    if job == "retention":
        return [rule for rule in maintenance.retention if rule.days]
    return [batches.EXPIRED] if job == "sessions" and maintenance.cleanup else []


def _plan(connection: Connection, maintenance: Maintenance, job: str) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    for rule in _rules(maintenance, job):
        if _there(connection, rule.table):
            steps.append({"what": rule.name, "rows": batches.count(connection, rule)})
        else:
            steps.append({"what": rule.name, "skipped": f"table {rule.table} does not exist"})
    if job == "retention":
        steps += [{"what": f"ANALYZE {table}", "rows": "changed"} for table in indexes.stale(connection)]
    if job == "index":
        steps += [{"what": f"DROP INDEX {name}", "because": "INVALID"} for name in indexes.leftovers(connection)]
        steps += [{"what": f"REINDEX {each.name}", **_measured(each)} for each in _due(connection, maintenance)]
    return steps


def _due(connection: Connection, maintenance: Maintenance) -> list[indexes.Index]:
    return [each for each in indexes.look(connection) if each.due(maintenance)]


def _measured(each: indexes.Index) -> dict[str, Any]:
    shown = asdict(each)
    return {"bytes": shown["bytes"], "waste": f"{100 * each.waste:.0f} %", "by": each.by}


def _steps(connection: Connection, maintenance: Maintenance, job: str) -> Iterator[dict[str, Any]]:
    keys = Ledger(connection).keys
    for rule in _rules(maintenance, job):
        if not _there(connection, rule.table):
            yield {"what": rule.name, "skipped": f"table {rule.table} does not exist"}
            continue
        work = Batches(connection, rule, maintenance)
        more = True
        while more:
            with _beside_no_migration(connection, keys, maintenance):
                more = work.take()
        yield {"what": rule.name, "rows": work.rows, "batches": work.batches, "gave_way": work.given_way,
               "longest_ms": round(work.longest_ms)}  # fmt: skip
    if job == "retention":
        for table in indexes.stale(connection):
            with _beside_no_migration(connection, keys, maintenance):
                yield _gently({"what": f"ANALYZE {table}"}, lambda table=table: indexes.analyze(connection, table))
    if job == "index":
        yield from _rebuild(connection, maintenance, keys)


def _rebuild(connection: Connection, maintenance: Maintenance, keys: tuple[int, int]) -> Iterator[dict[str, Any]]:
    for name in indexes.leftovers(connection):
        step = {"what": f"DROP INDEX {name}", "because": "INVALID"}
        with _beside_no_migration(connection, keys, maintenance):
            yield _gently(step, lambda name=name: indexes.drop(connection, name))
    for each in _due(connection, maintenance):
        step = {"what": f"REINDEX {each.name}", **_measured(each)}
        with _beside_no_migration(connection, keys, maintenance):
            step = _gently(step, lambda name=each.name: indexes.rebuild(connection, name))
        # The next run drops the INVALID index of a failed build; now the conflicting lock is still held.
        yield step if "gave_way" in step else step | {"bytes_now": indexes.size(connection, each.name)}


def _gently(step: dict[str, Any], work: Callable[..., None]) -> dict[str, Any]:
    """Run a step that may time out on a lock; the next run retries it."""
    begun = time.monotonic()
    try:
        work()
    except GAVE_WAY as error:
        return step | {"gave_way": str(error).partition("\n")[0]}
    return step | {"seconds": round(time.monotonic() - begun, 1)}


def _migrates(connection: Connection, role: str) -> bool:
    """Return whether a role may act as the owner, as which maintenance and migrations run."""
    row = connection.execute(
        "SELECT pg_has_role(rolname, current_user, 'MEMBER') FROM pg_roles WHERE rolname = %s", (role,)
    ).fetchone()
    return row is None or bool(row[0])


@contextmanager
def _beside_no_migration(connection: Connection, keys: tuple[int, int], maintenance: Maintenance) -> Iterator[None]:
    """Hold the migration locks within a `with` block; wait for a running migration."""
    guard = hold_locks(connection, keys, wait_s=maintenance.migration_wait_s, what="the migration lock")
    try:
        guard.__enter__()
    except DatabaseError as error:
        strangers = [each for each in holders(connection, keys) if not _migrates(connection, each.user)]
        if strangers:
            ends = " ".join(f"SELECT pg_terminate_backend({each.pid});" for each in strangers)
            raise DatabaseError(
                "a role that runs no migrations holds the migration lock",
                where=describe_connection(connection),
                seen="; ".join(map(str, strangers)),
                run=f"as a superuser: {ends}",
            ) from None
        raise _BlockedError(f"a migration is running on {describe_connection(connection)}: {error.seen}") from None
    try:
        yield
    finally:
        guard.__exit__(None, None, None)
