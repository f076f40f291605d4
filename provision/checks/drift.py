"""Differences between the plan of a host and its server: login roles, privileges, migrations, the running binary.

Reads through a superuser session, changes nothing. Roles and privileges are compared by the code that converges them
(provision.host.access) in its plan mode; the statements of that plan are the fixes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from psycopg import sql

from provision.checks import reach
from provision.checks.finding import Severity, psql
from provision.checks.placed import ask
from provision.checks.registry import Row, Scope, also, check
from provision.database import Connection, connect_pinned
from provision.errors import ProvisionError
from provision.host import grants, lookup
from provision.host.access import SHARED, Access, Role
from provision.host.deadline import ended
from provision.host.migrate import status
from provision.host.migrate.explain import Ways
from provision.host.migrate.settings import Settings
from provision.host.server import configuration
from provision.host.tenants import catalog
from provision.host.tenants import converge as of_tenants
from provision.plan import schema

MIGRATE = "runuser -u postgres -- provision migrate"
COMMAND = re.compile(r"provision migrate (\w+(?: -?\d+)?)")
ACCESS = "access-drift"
LIMITS = "options='-c lock_timeout=5s -c statement_timeout=30s'"
"""Of a look at the version table, which its owner may have locked against reading."""
OWNER_S = 20
"""Longest look at it in seconds: a policy of the owner could catch statement_timeout, and run on."""


class _Statements(Access):
    """Collects the statements that would converge access, as text for psql."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, plan=True)
        self.statements: list[tuple[str, str]] = []

    def change(self, what: str, statement: sql.SQL | sql.Composed) -> None:
        super().change(what, statement)
        self.statements.append((what, statement.as_string(self.connection)))


@check(
    ACCESS,
    scope=Scope.SERVER,
    area="access",
    expected="roles, grants and extensions as in the plan",
    why="grants differ from the inventory",
)
def access(plan: schema.Plan, session: Connection) -> Iterator[Row]:
    """Compare login roles, privileges and extensions with the plan. Passwords are not compared."""
    rows = session.execute("SELECT rolname::text, rolpassword FROM pg_authid").fetchall()
    verifiers = {str(name): None if verifier is None else str(verifier) for name, verifier in rows}
    roles = [_role(each, verifiers.get(each.name)) for each in plan.access.roles]
    present = [role for role in roles if role.present]
    database, owner = plan.access.database, plan.access.owner
    needed = _Statements(session)
    needed.roles(present)
    needed.database(database, owner, plan.access.guard)
    tenants = catalog.marked(needed.ask, database)
    theirs = catalog.roles(needed.ask, tenants)
    needed.connect_privileges(database, owner, {role.name for role in present} - {owner} | set(theirs))
    needed.extensions(plan.access.extensions)
    grants.converge(needed, [grants.Schema(SHARED, owner, roles, theirs)])
    needed.large_objects(owner)
    lookup.align(needed, [role.name for role in present if role.kind == "pooler"])
    listed = [each for each in plan.access.tenants if each.name in tenants]
    declared = [_role(role, verifiers.get(role.name)) for each in listed for role in each.roles]
    others = sorted(set(tenants) - {each.name for each in listed})
    needed.roles([*declared, *of_tenants.current(needed, others, plan.access.tenant_limits)])
    sound = [each.name for each in catalog.known(session) if each.sound]  # others are reported by tenant-schema
    of_tenants.schemas(needed, of_tenants.present(needed, sound))
    if tenants:
        of_tenants.statistics(needed, [role.name for role in present])
    for what, statement in needed.statements:
        yield f"to apply: {what}", psql(database, statement)


def _role(role: schema.Role, verifier: str | None) -> Role:
    return Role(
        role.name,
        role.kind,
        verifier,
        role.connection_limit,
        role.valid_until,
        role.settings,
        present=role.state == "present",
    )


@check(
    "migrations-unreadable",
    scope=Scope.SERVER,
    area="schema",
    severity=Severity.CRITICAL,
    expected="a readable version table",
    why="the schema version is unknown",
)
def unreadable(plan: schema.Plan, session: Connection) -> Iterator[Row]:
    """Report a version table or a directory of migrations that cannot be read."""
    del session
    try:
        _situation(plan)
    except ProvisionError as error:
        if re.search(reach.LIMIT, error.seen):
            return  # reported by connections, with a command that ends it
        yield f"{error.what}: {error.seen}", f"{MIGRATE} status {_where(plan)}  # {error.run or error.allowed}"


@check(
    "migrations-differ",
    scope=Scope.SERVER,
    area="schema",
    severity=Severity.CRITICAL,
    expected="files, version table and history that agree",
    why="`provision migrate up` refuses to run until the difference is resolved",
)
def differing(plan: schema.Plan, session: Connection) -> Iterator[Row]:
    """Report edited, deleted, misplaced and unreadable migration files."""
    del session
    for kind, row in _problems(plan):
        if kind != "dirty":
            yield row


@also("migrations-dirty", Scope.SERVER)
def dirty(plan: schema.Plan, session: Connection) -> Iterator[Row]:
    """Report a dirty version with the command that resolves it, which the query of the same id cannot know."""
    del session
    for kind, row in _problems(plan):
        if kind == "dirty":
            yield row


@check(
    "migrations-pending",
    scope=Scope.SERVER,
    area="schema",
    expected="every migration applied",
    why="the application may need the newer schema",
)
def pending(plan: schema.Plan, session: Connection) -> Iterator[Row]:
    """Report migrations that are not applied."""
    del session
    try:
        seen = _situation(plan)
    except ProvisionError:
        return  # reported by migrations-unreadable
    if seen and seen.pending and not seen.state.dirty:
        names = ", ".join(f"{row.version} {row.name}" for row in seen.pending)
        yield f"not applied: {names}", f"{MIGRATE} up {_where(plan)}"


def _problems(plan: schema.Plan) -> Iterator[tuple[str, Row]]:
    """Return the kind and the row of each problem; none where the situation cannot be read."""
    try:
        seen = _situation(plan)
    except ProvisionError:
        return  # reported by migrations-unreadable
    for problem in seen.problems if seen else ():
        severity = Severity.WARNING if problem.severity.value == "warning" else Severity.CRITICAL
        advice = COMMAND.sub(lambda found: f"{MIGRATE} {found[1]} {_where(plan)}", problem.fix)
        fix = f"{MIGRATE} status {_where(plan)}  # {advice}"
        if problem.kind == "dirty" and seen and seen.ways:
            fix = _resolve(plan, seen.ways)
        yield problem.kind, (f"{problem.file}: {problem.seen} ({problem.kind})", fix, severity)


def _resolve(plan: schema.Plan, ways: Ways) -> str:
    """Return the command that resolves a dirty version, or the one that shows it and both that may resolve it."""
    undone, complete = (f"{MIGRATE} force {version} {_where(plan)}" for version in (ways.undone, ways.complete))
    drops = [f"DROP INDEX CONCURRENTLY {index}" for index in ways.invalid]
    if drops:
        undone = f"{psql(plan.access.database, *drops)} && {undone}"
    if ways.nothing_kept or drops:
        return f"{undone}  # nothing else of the file was kept; then fix the file and run it again"
    return (
        f"{MIGRATE} status {_where(plan)}  # compare the schema with the file (docs/migration-is-dirty.md); "
        f"if nothing of it is applied: {undone}; if all of it is: {complete}"
    )


def _situation(plan: schema.Plan) -> status.Situation | None:
    """Compare the files with the version table; None on a host without migration files. Raises ProvisionError."""
    directory = Path(plan.migrations.directory)
    if not directory.is_dir():
        return None
    url = f"{plan.server.url(plan.access.database, plan.access.owner)} {LIMITS}"
    settings = Settings(url=url, path=directory)
    return status.look(settings, lambda session: ended(url, session, OWNER_S, application="provision doctor"))


def _where(plan: schema.Plan) -> str:
    url = plan.server.url(plan.access.database, plan.access.owner)
    return f"--path {plan.migrations.directory} --database {shlex.quote(url)}"


@check(
    "server-binary",
    scope=Scope.SERVER,
    area="host",
    expected="the installed version runs",
    why="the fixes of the installed version are not active",
)
def binary(plan: schema.Plan, session: Connection) -> Iterator[Row]:
    """Report a server that still runs the binary of a replaced package."""
    row = session.execute("SELECT split_part(current_setting('server_version'), ' ', 1)").fetchone()
    shown = ask(f"{plan.server.programs}/postgres", "--version")
    installed = re.search(r"\(PostgreSQL\) (\S+)", shown)
    if row and installed and row[0] != installed[1]:
        yield f"the server runs {row[0]}; {installed[1]} is installed", f"systemctl restart {plan.server.unit}"


@also("pending-restart", Scope.SERVER)
def sandbox(plan: schema.Plan, session: Connection) -> Iterator[Row]:
    """Report a server that was started before the sandbox of its unit was placed."""
    if configuration.unit_waits(plan, session):
        yield f"{configuration.UNIT} waits for a restart"


def other_databases(plan: schema.Plan, session: Connection) -> list[str]:
    """Name the databases besides the application's that allow connections."""
    rows = session.execute(
        "SELECT datname::text FROM pg_database WHERE datallowconn AND datname <> %s ORDER BY 1",
        (plan.access.database,),
    ).fetchall()
    return [str(row[0]) for row in rows]


def open_as_superuser(plan: schema.Plan, database: str = "") -> Connection:
    """Open a superuser session over the socket. Raises DatabaseError."""
    url = plan.server.url(database or plan.access.database)
    return connect_pinned(url, application="provision doctor", statement_timeout_ms=30_000)
