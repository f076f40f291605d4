"""Run all checks that apply to this host, or to a database behind a URL, and the safe fixes. Does IO.

The checks are read-only; `fix` runs commands that lose no data, end no session and grant no access.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from provision import pins
from provision.checks import drift, pooler, reach, roles
from provision.checks.finding import Finding, Severity
from provision.checks.registry import Scope, examine, get, of, unknown_site
from provision.database import Connection, connect_pinned, guarded
from provision.errors import DatabaseError, HostError
from provision.host.queries import ranking, statements
from provision.plan import load
from provision.plan.schema import Plan
from provision.system import as_user, run

WITHOUT_SERVER = ("access", "cluster", "files", "host", "pooler", "services")
"""Areas of the checks that apply to a host with a pooler alone."""
ON_HOST = (Scope.HOST, Scope.LOCAL, Scope.POOLER, Scope.SERVER, Scope.DATABASE)


@dataclass(frozen=True)
class Report:
    """The findings, and how many checks ran on what; the connection counts as one check.

    `load`: the statements that make up most of the execution time, as lines; empty for a database behind a URL.
    """

    about: str
    checks: int
    findings: list[Finding]
    load: tuple[str, ...] = ()

    @property
    def counted(self) -> list[Finding]:
        """The findings that need action."""
        return [each for each in self.findings if each.counts]


def this_host() -> Plan | None:
    """Return the plan of this host; None on a machine without one. Raises HostError where it cannot be read."""
    return load.load() if load.PATH.exists() else None


def look_at(plan: Plan) -> Report:
    """Check this host, its pooler and its server, if it has one. Root sees everything."""
    if plan.pooler_alone:
        found = examine(Scope.HOST, plan, site=plan.site, areas=WITHOUT_SERVER)
        found += examine(Scope.LOCAL, plan, site=plan.site) + pooler.examine_host(plan)
        return Report(plan.name, _count(Scope.HOST, Scope.LOCAL, Scope.POOLER, areas=WITHOUT_SERVER), _sorted(found))
    found = examine(Scope.HOST, plan, site=plan.site) + examine(Scope.LOCAL, plan, site=plan.site)
    found += pooler.examine_host(plan)
    load: tuple[str, ...] = ()
    with as_user():
        try:
            found += _server(plan)
            load = _load(plan)
        except DatabaseError as error:
            found.append(reach.explain(error.seen, plan.server.url(plan.access.database), plan))
    return Report(plan.name, _count(*ON_HOST), _sorted(found), load)


def look_from_afar(url: str, about: str) -> Report:
    """Check a database behind a URL, or find out why the connection fails.

    On a host of ours, its certificates and its pooler are checked too. Raises UsageError for an unusable URL.
    """
    scopes, plan, unreadable = [Scope.DATABASE], None, ""
    try:
        plan = this_host()
    except HostError as error:
        unreadable = error.seen
    try:
        with connect_pinned(url, application="provision doctor", statement_timeout_ms=30_000) as session:
            found = examine(Scope.DATABASE, session, site=unknown_site, development=_development(session))
    except DatabaseError as error:
        found = [reach.explain(error.seen, url, plan if plan and reach.leads_to(plan, url) else None)]
    if unreadable:
        row = (unreadable, "run it as root or postgres", Severity.UNSEEN)
        found += [get("certificate").finding(row, unknown_site), get("pooler").finding(row, unknown_site)]
    elif plan:
        scopes += [Scope.LOCAL, Scope.POOLER]
        found += examine(Scope.LOCAL, plan, site=plan.site) + pooler.examine_host(plan)
    return Report(about, _count(*scopes), found)


def fix(findings: list[Finding]) -> list[tuple[str, bool, str]]:
    """Run the commands of safe findings, as root; give each command, its success and its output."""
    done = []
    for command in dict.fromkeys(each.fix for each in findings if each.safe and each.counts):
        answer = run(
            "sh", "-c", command, check=False, directory=Path("/"), environment=pins.environment(), detached=True
        )
        done.append((command, answer.ok, (answer.stderr or answer.stdout).strip()))
    return done


def _development(session: Connection) -> bool:
    """Whether the database accepts the deviations of a development host."""
    return not guarded(session)


def _count(*scopes: Scope, areas: Collection[str] = ()) -> int:
    """Count the checks of some scopes and, on a host with a server, the connection."""
    checks = [each for scope in scopes for each, _ in of(scope)]
    return len({each.id for each in checks if not areas or each.area in areas}) + (not areas)


def _server(plan: Plan) -> list[Finding]:
    with drift.open_as_superuser(plan) as session:
        development = _development(session)
        found = examine(Scope.DATABASE, session, site=plan.site, development=development)
        own = examine(Scope.SERVER, plan, session, site=plan.site, development=development)
        others = drift.other_databases(plan, session)
    found = _without_doubles(found, own)
    for name in others:
        with drift.open_as_superuser(plan, name) as session:
            found += examine(Scope.DATABASE, session, site=plan.site, every_database=True)
    return found


def _load(plan: Plan) -> tuple[str, ...]:
    """Return the statements with most of the load; () without pg_stat_statements, which is a finding of its own."""
    if statements.EXTENSION not in plan.access.extensions:
        return ()
    try:
        with drift.open_as_superuser(plan) as session:
            return ranking.summary(statements.read(session))
    except DatabaseError:
        return ()


def _without_doubles(found: list[Finding], own: list[Finding]) -> list[Finding]:
    """Merge the findings of queries and of the plan: of two for the same problem, keep the more specific fix."""
    missing = any(each.id == "extensions-missing" for each in found)
    known = {each.id for each in own} | set(roles.BY_PLAN)
    return [each for each in found if each.id not in known] + [
        each
        for each in own
        if not (missing and each.id == drift.ACCESS and each.seen.startswith("to apply: extension "))
    ]


def _sorted(found: list[Finding]) -> list[Finding]:
    return sorted(found, key=lambda each: list(Severity).index(each.severity))
