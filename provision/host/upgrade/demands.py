"""What logical replication demands of both servers and of every table, and the replica identities that it needs.

Reads only, but for `identify` and `restore`. A table without a primary key gets REPLICA IDENTITY FULL for the time of
the upgrade: otherwise the server would refuse UPDATE and DELETE on it once it is published.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from psycopg import sql

from provision import pins
from provision.compatibility import version_key
from provision.database import Connection, ask
from provision.errors import some
from provision.host.upgrade import check
from provision.host.upgrade.sessions import databases, session_of
from provision.plan.schema import Plan

OWNER_SINCE = 16
"""From here on, changes are applied as the owner of their table; before, as the superuser (manual, run_as_owner)."""
VECTOR_SINCE = "0.6.0"
"""Before, vector_in wrote into its argument, which an UPDATE received without the old row reads twice (pgvector's
CHANGELOG of 0.6.0, "Fixed error with logical replication")."""
SPARE = 4
"""Slots and senders beyond one for each database: initial copies."""
DEFAULTS = {"wal_level": "replica", "max_replication_slots": "10", "max_wal_senders": "10"}
UNCOMPARABLE = ("json", "xml", "point", "line", "lseg", "box", "path", "polygon", "circle", "jsonpath")
"""Types without an equality operator, by which a row without a key could be found."""
LOCK_MS = 5000

_TABLE = """FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.oid >= 16384 AND n.nspname !~ '^pg_t' AND """
_IDENTITY = """CASE c.relreplident WHEN 'n' THEN 'NOTHING' WHEN 'f' THEN 'FULL' WHEN 'i' THEN 'USING INDEX ' ||
  (SELECT quote_ident(x.relname) FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
   WHERE i.indrelid = c.oid AND i.indisreplident) ELSE 'DEFAULT' END"""
_HAS_KEY = "EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indisvalid)"
KEYLESS = (
    f"SELECT c.oid::regclass::text, {_IDENTITY} {_TABLE} c.relpersistence = 'p'"
    f" AND (c.relreplident = 'n' OR c.relreplident = 'd' AND NOT {_HAS_KEY}) ORDER BY 1"
)
WIDE = (
    f"SELECT c.oid::regclass::text, {_IDENTITY} {_TABLE} c.relreplident <> 'f' AND EXISTS (SELECT FROM pg_attribute a"  # noqa: S608
    " JOIN pg_type t ON t.oid = a.atttypid"
    " JOIN pg_depend d ON d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e'"
    " JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'vector'"
    " WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) ORDER BY 1"
)
BLIND = (
    f"SELECT c.oid::regclass::text, format_type(a.atttypid, NULL) FROM pg_attribute a, LATERAL (SELECT c.* {_TABLE}"  # noqa: S608
    f" c.oid = a.attrelid AND c.relpersistence = 'p' AND (c.relreplident IN ('n', 'f')"
    f" OR c.relreplident = 'd' AND NOT {_HAS_KEY})) c"
    " WHERE a.attnum > 0 AND format_type(a.atttypid, NULL) = ANY (%s) ORDER BY 1"
)
UNLOGGED = f"SELECT c.oid::regclass::text {_TABLE} c.relpersistence = 'u' AND pg_relation_size(c.oid) > 0 ORDER BY 1"
FORCED = f"SELECT c.oid::regclass::text {_TABLE} c.relforcerowsecurity ORDER BY 1"
HIDDEN = "SELECT datname FROM pg_database WHERE NOT datallowconn AND datname <> 'template0' ORDER BY 1"
# Functions of users that a CHECK, a generated column, a domain or a trigger that always fires would call.
CODE = """
SELECT DISTINCT format('%s calls %s', pg_describe_object(d.classid, d.objid, 0), p.oid::regprocedure)
FROM pg_depend d JOIN pg_proc p ON p.oid = d.refobjid AND d.refclassid = 'pg_proc'::regclass
WHERE p.oid >= 16384 AND NOT EXISTS (SELECT FROM pg_depend e
  WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid AND e.deptype = 'e')
  AND (d.classid = 'pg_constraint'::regclass
    OR d.classid = 'pg_attrdef'::regclass AND EXISTS (SELECT FROM pg_attrdef f JOIN pg_attribute a
      ON a.attrelid = f.adrelid AND a.attnum = f.adnum WHERE f.oid = d.objid AND a.attgenerated <> '')
    OR d.classid = 'pg_class'::regclass AND EXISTS (SELECT FROM pg_index i WHERE i.indexrelid = d.objid)
    OR d.classid = 'pg_trigger'::regclass AND EXISTS (SELECT FROM pg_trigger t
      WHERE t.oid = d.objid AND t.tgenabled IN ('A', 'R')))
ORDER BY 1
"""
STORED = """
SELECT DISTINCT split_part(e.entry, '=', 1) FROM pg_db_role_setting s, unnest(s.setconfig) e (entry)
WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
  AND (s.setrole = 0 OR s.setrole = 10) AND split_part(e.entry, '=', 1) = ANY (%s) ORDER BY 1
"""


def problems(old: Plan, new: Plan) -> list[str]:
    """Return what stops an upgrade by logical replication. Raises DatabaseError if the old server does not answer."""
    names = [name for name in databases(old) if name != "template1"]
    with session_of(old) as session:
        values = {name: str(ask(session, f"SHOW {name}")[0][0]) for name in DEFAULTS}
        hidden = [str(row[0]) for row in ask(session, HIDDEN)]
        used = int(str(ask(session, "SELECT count(*) FROM pg_replication_slots")[0][0]))
    found = settings(old, values, len(names) + SPARE + used, "the old server has")
    planned = {each.name: each.text for each in new.server.settings}
    if hidden:
        found.append(
            f"databases that accept no connections do not move: {some(hidden)}; drop them, or allow connections"
        )
    found += settings(old, {**DEFAULTS, **planned}, len(names), "the new plan has")
    majors = (old.server.major, new.server.major)
    for name in names:
        with session_of(old, name) as session:
            found += [f"database {name}: {each}" for each in of_database(session, majors)]
    return found


def settings(old: Plan, values: Mapping[str, str], needed: int, where: str) -> list[str]:
    """Return the settings of a server that logical replication cannot use, with the way to change them."""
    wanted = {"wal_level": "logical", **{name: str(needed) for name in DEFAULTS if name != "wal_level"}}
    bad = {
        name: value
        for name, value in wanted.items()
        if (values[name] != value if name == "wal_level" else int(values[name]) < needed)
    }
    if not bad:
        return []
    seen = ", ".join(f"{name} = {values[name]}" for name in bad)
    given = ", ".join(f"{name}: {value}" for name, value in bad.items())
    extra = f"-e postgresql_version={old.server.major} -e postgresql_restart_allowed=true"
    return [
        f"{where} {seen}: add postgresql_settings: {{{given}}} to the inventory and run, with the other variables of "
        f"PostgreSQL {old.server.major}, {old.site(extra=extra)}; it restarts the server"
    ]


def of_database(session: Connection, majors: tuple[int, int]) -> list[str]:
    """Return what in one database does not replicate between two majors, in both directions."""
    lowest = min(majors)

    def first(query: str, *parameters: object) -> list[str]:
        return _first(session, query, *parameters)

    found = _unreplicated(session, ": use upgrade_method copy or link")
    if tables := first(BLIND, list(UNCOMPARABLE)):
        found.append(
            f"tables without a primary key and with a type that has no equality: {some(tables)}; add a primary key"
        )
    if lowest < OWNER_SINCE and (code := first(CODE)):
        found.append(
            f"functions that PostgreSQL {lowest} would call as superuser for each replicated row: {some(code)}; use "
            "upgrade_method copy or link"
        )
    if max(majors) >= OWNER_SINCE and (tables := first(FORCED)):
        found.append(
            f"row-level security binds the owner, as whom PostgreSQL {max(majors)} applies changes: {some(tables)}; "
            "ALTER TABLE ... NO FORCE ROW LEVEL SECURITY, or use upgrade_method copy or link"
        )
    if stored := first(STORED, sorted(pins.HARMFUL)):
        found.append(f"stored settings that redirect or end its sessions: {some(stored)}; ALTER DATABASE ... RESET")
    return found


def _first(session: Connection, query: str, *parameters: object) -> list[str]:
    return [" ".join(map(str, row)) for row in ask(session, query, parameters)]


def _unreplicated(session: Connection, advice: str = "") -> list[str]:
    """Return the contents of one database that do not replicate, and that clients could add at any time."""
    found = []
    if (count := _first(session, "SELECT count(*) FROM pg_largeobject_metadata")) != ["0"]:
        found.append(f"{count[0]} large objects, which do not replicate{advice}")
    if tables := _first(session, UNLOGGED):
        found.append(
            f"unlogged tables with rows, which do not replicate: {some(tables)}; TRUNCATE them, or ALTER TABLE ... "
            "SET LOGGED"
        )
    return found


def left(source: Plan, *, prepared: bool = False) -> list[str]:
    """Return the contents of a server that its subscriber does not have; with `prepared`, prepared transactions too.

    Prepared transactions come and go: they count only once no client can end them any more. Raises DatabaseError.
    """
    found = []
    for name in databases(source):
        with session_of(source, name) as session:
            found += [f"database {name}: {each}" for each in _unreplicated(session)]
    if prepared:
        with session_of(source) as session:
            found += check.prepared(session)
    return found


def notices(old: Plan) -> list[str]:
    """Return what the check shows besides problems."""
    found = []
    for name, tables in identities(old).items():
        found.append(
            f"database {name}: tables without a primary key get REPLICA IDENTITY FULL until the release: "
            f"{some([each[0] for each in tables])}; UPDATE and DELETE of many of their rows replicate slowly"
        )
    for name, tables in wide(old).items():
        found.append(
            f"database {name}: pgvector is older than {VECTOR_SINCE}, so tables with vectors get REPLICA IDENTITY FULL "
            f"on the new server until the release: {some([each[0] for each in tables])}"
        )
    return found


def identities(plan: Plan) -> dict[str, Any]:
    """Return by database the tables without a usable key, each with its replica identity."""
    return _tables(plan, KEYLESS, databases(plan))


def wide(plan: Plan) -> dict[str, Any]:
    """Return by database the tables whose vectors a server with an old pgvector receives only with the old row."""
    names = []
    for name in databases(plan):
        with session_of(plan, name) as session:
            found = ask(session, "SELECT extversion FROM pg_extension WHERE extname = 'vector'")
        if found and version_key(str(found[0][0])) < version_key(VECTOR_SINCE):
            names.append(name)
    return _tables(plan, WIDE, names)


def _tables(plan: Plan, query: str, names: Iterable[str]) -> dict[str, Any]:
    found = {}
    for name in names:
        with session_of(plan, name) as session:
            if rows := ask(session, query):
                found[name] = [[str(table), str(identity)] for table, identity in rows]
    return found


def identify(plan: Plan, tables: Mapping[str, Any]) -> None:
    """Set REPLICA IDENTITY FULL. Raises DatabaseError where a transaction keeps a table locked."""
    _alter(plan, {name: [[table, "FULL"] for table, _ in rows] for name, rows in tables.items()})


def restore(plan: Plan, tables: Mapping[str, Any]) -> None:
    """Give tables their replica identities back; those that were dropped meanwhile are left out."""
    _alter(plan, tables)


def _alter(plan: Plan, tables: Mapping[str, Any]) -> None:
    for name, rows in tables.items():
        with session_of(plan, name) as session:
            session.execute(sql.SQL("SET lock_timeout = {}").format(sql.Literal(LOCK_MS)))
            for table, identity in rows:
                if ask(session, "SELECT to_regclass(%s) IS NULL", [table]) == [(True,)]:
                    continue
                session.execute(sql.SQL("ALTER TABLE {} REPLICA IDENTITY {}").format(sql.SQL(table), sql.SQL(identity)))
