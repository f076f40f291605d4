"""What differs between this host's record and its server: login roles, privileges, migrations, the running binary.

Asks the superuser's session, changes nothing: roles and privileges are compared by the same code that makes them
(provision.host.access), as a plan whose statements are the cure.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from psycopg import sql

from provision.checks.finding import Finding, Severity, psql
from provision.checks.place import Place, ask
from provision.database import Connection, connect_pinned
from provision.errors import ProvisionError
from provision.host import lookup
from provision.host.access import Access, Role
from provision.host.migrate import status
from provision.host.migrate.settings import Settings

MIGRATIONS = Path("/usr/local/share/provision/migrations")


class _Plan(Access):
    """Collects what would be done, as text that psql takes."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, plan=True)
        self.statements: list[tuple[str, str]] = []

    def change(self, what: str, statement: sql.SQL | sql.Composed) -> None:
        super().change(what, statement)
        self.statements.append((what, statement.as_string(self.connection)))


def access(place: Place, connection: Connection) -> list[Finding]:
    """Compare login roles and privileges with the record; passwords are taken as they are."""
    wanted = place.record.get("access")
    if not wanted:
        return []
    rows = connection.execute("SELECT rolname::text, rolpassword FROM pg_authid").fetchall()
    secrets = {str(name): verifier for name, verifier in rows}
    roles = [Role.of(_described(each, secrets)) for each in wanted["roles"]]
    present = [role for role in roles if role.present]
    plan = _Plan(connection)
    plan.roles(present)
    plan.database(place.database, place.owner, place.record.get("guard", True))
    plan.connect_privileges(place.database, place.owner, {role.name for role in present} - {place.owner})
    plan.extensions(wanted["extensions"])
    plan.schema(place.owner, roles)
    lookup.align(plan, [role.name for role in present if role.kind == "pooler"])
    return [
        Finding(
            "access-drift",
            "access",
            Severity.WARNING,
            f"to be mended: {what}",
            "roles and privileges as recorded",
            "somebody may more, or less, than the inventory says",
            psql(place.database, statement),
        )
        for what, statement in plan.statements
    ]


def _described(role: dict[str, Any], secrets: dict[str, object]) -> dict[str, Any]:
    return {**role, "connection_limit": int(role.get("connection_limit", -1)), "verifier": secrets.get(role["name"])}


def migrations(place: Place) -> list[Finding]:
    """Compare the files on the host with the version table and its history."""
    if not MIGRATIONS.is_dir():
        return []
    url = place.url(user=place.owner)
    more = f" --path {MIGRATIONS} --database {shlex.quote(url)}"
    as_postgres = "runuser -u postgres -- "
    try:
        seen = status.look(Settings(url=url, path=MIGRATIONS))
    except ProvisionError as error:
        return [
            Finding(
                "migrations-unreadable",
                "schema",
                Severity.CRITICAL,
                f"{error.what}: {error.seen}",
                "a version table that can be read",
                "nobody can tell which schema this is",
                error.run,
            )
        ]
    found = []
    for problem in seen.problems:
        severity = Severity.WARNING if problem.severity.value == "warning" else Severity.CRITICAL
        command = re.search(r"provision migrate [^;,]*", problem.fix)
        fix = as_postgres + command[0].strip() + more if command else problem.fix
        found.append(
            Finding(
                f"migrations-{problem.kind.replace(' ', '-')}",
                "schema",
                severity,
                f"{problem.file}: {problem.seen}",
                "files, version table and history that agree",
                "nothing more is applied until somebody has looked",
                fix,
            )
        )
    if seen.pending and not seen.state.dirty:
        names = ", ".join(f"{row.version} {row.name}" for row in seen.pending)
        found.append(
            Finding(
                "migrations-pending",
                "schema",
                Severity.WARNING,
                f"not applied: {names}",
                "every file applied",
                "the application may expect it",
                as_postgres + "provision migrate up" + more,
            )
        )
    return found


def binary(place: Place, connection: Connection) -> list[Finding]:
    """Say when the server still runs what a package has replaced."""
    row = connection.execute("SELECT split_part(current_setting('server_version'), ' ', 1)").fetchone()
    shown = ask(f"/usr/lib/postgresql/{place.major}/bin/postgres", "--version")
    there = re.search(r"\(PostgreSQL\) (\S+)", shown)
    if row is None or there is None or row[0] == there[1]:
        return []
    return [
        Finding(
            "server-binary",
            "host",
            Severity.WARNING,
            f"the server runs {row[0]}, {there[1]} is installed",
            "the installed server runs",
            "its fixes are not in force",
            f"systemctl restart {place.unit}",
        )
    ]


def other_databases(place: Place, connection: Connection) -> list[str]:
    """Name the databases beside ours that may be entered."""
    rows = connection.execute(
        "SELECT datname::text FROM pg_database WHERE datallowconn AND datname <> %s ORDER BY 1", (place.database,)
    ).fetchall()
    return [str(row[0]) for row in rows]


def open_as_superuser(place: Place, database: str = "") -> Connection:
    """Open a session over the socket."""
    return connect_pinned(place.url(database), application="provision doctor", statement_timeout_ms=30_000)
