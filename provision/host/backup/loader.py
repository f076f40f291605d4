"""Load the contents of a dump as a role that owns the new database and nothing else.

Does IO. A load runs functions of the dump: in CHECK constraints, indexes, generated columns, materialized views. In a
session of a superuser they could run programs as postgres, and SET ROLE or SET SESSION AUTHORIZATION do not prevent it,
because such a function can reset both. So a login role of the load's own, with a random password that exists as long as
the load, runs them; afterwards everything it owns goes to the database's owner.

The superuser creates only what provision knows: the plan's extensions and the pooler's lookup function. Entries that
only a superuser can create are left out and reported (ABOVE), as are privileges that the role may not grant.
"""

from __future__ import annotations

import re
import secrets
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg import sql

from provision import pins
from provision.database import Connection, connect_pinned
from provision.errors import HostError
from provision.host import lookup
from provision.host.access import unseen
from provision.host.backup import tool
from provision.host.backup.tool import BackupError
from provision.plan.schema import Plan
from provision.system import Finished

APPLICATION = "provision restore"
ABOVE = (
    "EVENT TRIGGER", "PUBLICATION", "PUBLICATION TABLE", "PUBLICATION TABLES IN SCHEMA", "SUBSCRIPTION",
    "SUBSCRIPTION TABLE", "FOREIGN DATA WRAPPER", "SERVER", "USER MAPPING", "FOREIGN TABLE", "ACCESS METHOD",
    "OPERATOR CLASS", "OPERATOR FAMILY", "TEXT SEARCH PARSER", "TEXT SEARCH TEMPLATE", "SECURITY LABEL", "TRANSFORM",
)  # fmt: skip
"""Kinds of entries that are left out: only a superuser creates them, or what they need."""
_ENTRY = re.compile(r"\d+; \d+ \d+ (?P<rest>.*)")
_OF_KIND = re.compile(rf"(?:(?:COMMENT|ACL|SECURITY LABEL) - )?(?:{'|'.join(ABOVE)}|FOREIGN SERVER|EXTENSION) ")
_POOLER = re.compile(
    rf"(?:[A-Z ]+ {lookup.SCHEMA} |SCHEMA - {lookup.SCHEMA} |(?:ACL|COMMENT) - SCHEMA {lookup.SCHEMA} )"
)
_MISSING_ROLE = re.compile(r'role ".+" does not exist')


@dataclass(frozen=True)
class Contents:
    """The entries of a dump, as lines of `pg_restore --list`, by what loads them."""

    main: list[str]
    privileges: list[str]
    defaults: list[str]
    left_out: list[str]
    has_lookup: bool

    @classmethod
    def of(cls, listing: str, known: Iterable[str], *, skip: Iterable[str] = ()) -> Contents:
        """Sort the entries. `known` are schemas and extensions that exist ("SCHEMA name"), `skip` lines to omit. Pure.

        A name may look like the rest of a line. That can only omit an object of its own owner: nothing of a dump runs
        as the superuser.
        """
        existing = tuple(f"{each.replace(' ', ' - ', 1)} " for each in known)
        found: dict[str, list[str]] = {"main": [], "privileges": [], "defaults": [], "left_out": []}
        has_lookup, skipped = False, set(skip)
        for line in listing.split("\n"):
            entry = _ENTRY.fullmatch(line)
            if entry is None or line in skipped:
                continue
            rest = entry["rest"]
            if _POOLER.match(rest):
                has_lookup = True
            elif f"{rest} ".startswith(existing) or rest.startswith("COMMENT - EXTENSION "):
                continue
            elif _OF_KIND.match(rest) and not rest.startswith("EXTENSION "):
                found["left_out"] += [] if rest.startswith(("COMMENT ", "ACL ")) else [rest]
            else:
                found["defaults" if rest.startswith("DEFAULT ACL ") else "privileges" if rest.startswith("ACL ")
                      else "main"].append(line)  # fmt: skip
        return cls(**found, has_lookup=has_lookup)


def refuse(plan: Plan, session: Connection, extensions: Mapping[str, str]) -> None:
    """Raise HostError for an extension that is not installed, or that neither plan nor server lets an owner create."""
    rows = session.execute("SELECT name, bool_or(trusted) FROM pg_available_extension_versions GROUP BY 1").fetchall()
    trusted = {str(name): bool(so) for name, so in rows}
    for name in sorted(extensions):
        if name not in trusted:
            raise HostError(f"the dump needs extension {name}, which is not installed", run=plan.site("pgvector"))
        if name != "plpgsql" and not trusted[name] and name not in plan.access.extensions:
            raise HostError(
                f"the dump needs extension {name}, which only a superuser can create",
                seen=f"database_extensions: {', '.join(plan.access.extensions)}",
                allowed="extensions of database_extensions, and trusted extensions",
                run=f"add {name} to database_extensions, then {plan.site('database')}",
            )


class Loader:
    """Loads one dump into one new database: `begin`, `load`, `finish`. `session` is the superuser's, elsewhere."""

    def __init__(
        self, plan: Plan, session: Connection, name: str, role: str, *, socket: str = "", port: int = 0
    ) -> None:
        """`name` is the database, `role` a name that no role has; socket and port as for Server.url."""
        self.plan, self.session, self.name, self.role = plan, session, name, role
        self.password = secrets.token_urlsafe(32)
        self.admin = plan.server.url(name, socket=socket, port=port)
        self.url = plan.server.url(name, role, socket=socket, port=port)
        self.left_out: list[str] = []

    def begin(self, facts: Mapping[str, Any]) -> list[str]:
        """Create the role, give it the database, and create extensions. Return what exists ("SCHEMA x")."""
        role = sql.Identifier(self.role)
        verifier = self.session.pgconn.encrypt_password(
            self.password.encode(), self.role.encode(), b"scram-sha-256"
        ).decode()
        with self.session.transaction():
            unseen(self.session, local=True)
            self.session.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(verifier)))
        self.session.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(sql.Identifier(self.name), role))
        made = []
        schemas = facts.get("extension_schemas") or {}
        with connect_pinned(self.admin, application=APPLICATION) as inside:
            inside.execute(sql.SQL("ALTER SCHEMA public OWNER TO {}").format(role))
            for name in [each for each in facts["extensions"] if each in self.plan.access.extensions]:
                made.append(f"EXTENSION {name}")
                schema = str(schemas.get(name) or "public")
                if not inside.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (schema,)).fetchone():
                    inside.execute(sql.SQL("CREATE SCHEMA {} AUTHORIZATION {}").format(sql.Identifier(schema), role))
                    made.append(f"SCHEMA {schema}")
                inside.execute(
                    sql.SQL("CREATE EXTENSION IF NOT EXISTS {} SCHEMA {}").format(
                        sql.Identifier(name), sql.Identifier(schema)
                    )
                )
        return made

    def load(
        self, folder: Path, lists: Path, exists: Sequence[str], *options: str, skip: Iterable[str] = (), jobs: int = 1,
        memory: str = "64MB",
    ) -> None:  # fmt: skip
        """Load the entries. `lists` is a directory for the lists of entries. Raises BackupError."""
        listing = tool.run(f"{self.plan.server.programs}/pg_restore", "--list", folder / "data").stdout
        self.contents = Contents.of(listing, exists, skip=skip)
        self.left_out = [f"not restored, for only a superuser can: {each}" for each in self.contents.left_out]
        common = ("--exit-on-error", *options)
        # One job loads rows in the order of the dump: a CHECK that reads another table fails each time, or never.
        self._restore(folder, lists, self.contents.main, "--section=pre-data", "--section=data", *common)
        post = ("--section=post-data", f"--jobs={jobs}", *common)
        self._restore(folder, lists, self.contents.main, *post, memory=memory)
        self._privileges(folder, lists, self.contents.privileges)

    def _privileges(self, folder: Path, lists: Path, lines: Sequence[str]) -> None:
        """Grant as far as the role may: a grant by another role needs that role's rights."""
        if not lines:
            return
        done = self._restore(folder, lists, lines, check=False)
        if _MISSING_ROLE.search(done.stderr):
            raise self._failed(folder, done)
        errors = [line for line in done.stderr.splitlines() if "error: could not execute query: " in line]
        self.left_out += [f"privilege not restored: {line.partition('query: ')[2]}" for line in errors]

    def _restore(
        self, folder: Path, lists: Path, lines: Sequence[str], *options: str, memory: str = "64MB", check: bool = True
    ) -> Finished:
        with tempfile.NamedTemporaryFile("w", dir=lists, prefix=".list.", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in lines)
            stream.flush()
            done = tool.run(
                f"{self.plan.server.programs}/pg_restore", "--no-owner", "--no-password", *options,
                f"--use-list={stream.name}", "--dbname", self.url, folder / "data", quiet=True,
                environment=self._environment(memory),
            )  # fmt: skip
        if check and done.returncode != 0:
            raise self._failed(folder, done)
        return done

    def _environment(self, memory: str) -> dict[str, str]:
        options = pins.options({**pins.EVERYWHERE, "maintenance_work_mem": memory})
        return {"PGPASSWORD": self.password, "PGOPTIONS": options}

    def _failed(self, folder: Path, done: Finished) -> BackupError:
        return BackupError(
            "the dump could not be restored; the database is unchanged",
            where=folder.name, seen=tool.reason(done), run=cure(done.stderr, folder),
        )  # fmt: skip

    def analyze(self) -> None:
        """Collect the planner's statistics. Raises BackupError."""
        tool.run(
            f"{self.plan.server.programs}/vacuumdb", "--analyze-only", "--quiet", "--no-password", "--dbname", self.url,
            environment=self._environment("64MB"),
        )  # fmt: skip

    def finish(self, folder: Path, lists: Path, owner: str) -> None:
        """Give everything to `owner` and drop the role. Raises BackupError, psycopg.Error."""
        role, to = sql.Identifier(self.role), sql.Identifier(owner)
        with connect_pinned(self.admin, application=APPLICATION) as inside:
            inside.execute(sql.SQL("REASSIGN OWNED BY {} TO {}").format(role, to))
        if self.contents.defaults:
            # These run nothing of the dump. Their role must be a member of the role whose future objects they concern.
            self.session.execute(sql.SQL("GRANT {} TO {}").format(to, role))
            self._privileges(folder, lists, self.contents.defaults)
            self.session.execute(sql.SQL("REVOKE {} FROM {}").format(to, role))
        with connect_pinned(self.admin, application=APPLICATION) as inside:
            inside.execute(sql.SQL("DROP OWNED BY {}").format(role))
        self.session.execute(sql.SQL("DROP ROLE {}").format(role))


def content_owner(plan: Plan, session: Connection, owner: str) -> str:
    """Return the role that gets the contents: the database's owner, but never a superuser.

    A function of the dump that is SECURITY DEFINER would run with the rights of its new owner.
    """
    row = session.execute("SELECT rolsuper FROM pg_roles WHERE rolname = %s", (owner,)).fetchone()
    return plan.access.owner if row is None or row[0] else owner


def others(facts: Mapping[str, Any], owner: str, *, known: Collection[str] = ()) -> list[str]:
    """Return a line for each object that another role owned when the dump was taken, but for `known` roles."""
    found = [(what, who) for what, who in facts.get("others") or () if who not in known]
    return [f"{what} belonged to {who} and belongs to {owner} now" for what, who in found]


_MISSING = re.compile(r"(?:relation|function|type|operator|schema|table|collation|text search \w+) .*does not exist")
_DENIED = re.compile(r"must be (?:super|owner)|permission denied|[Oo]nly superusers? ")
_CHECK = re.compile(r'new row for relation "(.+)" violates check constraint "(.+)"')
_CONTEXT = re.compile(r'function "?([\w.$]+)"?')


def cure(said: str, folder: Path) -> str:
    """Return the next step after a message of pg_restore, "" if none is known. Pure.

    pg_restore works with an empty search_path, so a function that names a table without its schema fails in a CHECK, a
    generated column, an index expression or a materialized view.
    """
    if _MISSING_ROLE.search(said):
        return f"runuser -u postgres -- psql -f {folder}/roles.sql (creates the roles without passwords), then retry"
    if check := _CHECK.search(said):
        return (
            f"{check[2]} reads other rows, which are loaded later: ALTER TABLE {check[1]} DROP CONSTRAINT {check[2]}, "
            f"ADD CONSTRAINT {check[2]} CHECK (...) NOT VALID (pg_restore then adds it after the rows, and new "
            "rows are checked), or use a foreign key or a trigger; then take a new dump "
            "(docs/a-dump-cannot-be-restored.md)"
        )
    if _DENIED.search(said):
        return (
            "the contents of a dump are restored without a superuser's rights; pg_restore --list shows the objects "
            "that need them: docs/a-dump-cannot-be-restored.md"
        )
    if not _MISSING.search(said):
        return ""
    named = [name for line in said.splitlines() if "CONTEXT:" in line for name in _CONTEXT.findall(line)]
    function = named[0] if named else "NAME"
    return (
        f"a function names an object without its schema: ALTER FUNCTION {function} SET search_path = public (in the "
        "original database), then take a new dump; if only the dump is left: docs/a-dump-cannot-be-restored.md"
    )
