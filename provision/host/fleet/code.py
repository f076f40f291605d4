"""Keep a tenant's code from running as the superuser while Citus copies its rows. Does IO.

Citus copies a tenant by COPY as the role of the session, which is the superuser: constraints, generated columns, types,
index expressions, statistics and triggers on INSERT of the tenant would run with its rights on another node. Only the
owner can create them, so a move locks the owner out on every node, and refuses a tenant that has such code on any node.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg import sql

from provision.database import Connection
from provision.errors import DatabaseError, UsageError, some
from provision.host.fleet import nodes
from provision.host.tenants import catalog, login
from provision.plan import names

_CODE = r"""
WITH mine AS (SELECT oid FROM pg_namespace WHERE nspname = {name}),
    -- From pg_type, for Citus hides a node's shards from queries of pg_class.
    relations AS (SELECT typrelid AS oid FROM pg_type WHERE typnamespace IN (SELECT oid FROM mine) AND typrelid <> 0),
    triggers AS (SELECT oid, tgname, tgqual FROM pg_trigger
        WHERE tgrelid IN (SELECT oid FROM relations) AND NOT tgisinternal AND tgtype::int & 4 <> 0),
    objects AS (
        SELECT 'pg_constraint'::regclass AS class, oid, 'constraint ' || conname AS what FROM pg_constraint
            WHERE conrelid IN (SELECT oid FROM relations) AND contype IN ('c', 'x')
        UNION ALL SELECT 'pg_attrdef'::regclass, d.oid, 'generated column or default of ' || d.adrelid::regclass::text
            FROM pg_attrdef d WHERE d.adrelid IN (SELECT oid FROM relations)
        UNION ALL SELECT 'pg_class'::regclass, i.indexrelid, 'index ' || i.indexrelid::regclass::text
            FROM pg_index i WHERE i.indrelid IN (SELECT oid FROM relations)
        UNION ALL SELECT 'pg_class'::regclass, oid, 'columns of ' || oid::regclass::text FROM relations
        UNION ALL SELECT 'pg_statistic_ext'::regclass, oid, 'statistics ' || stxname FROM pg_statistic_ext
            WHERE stxrelid IN (SELECT oid FROM relations)
        UNION ALL SELECT 'pg_trigger'::regclass, oid, 'trigger ' || tgname FROM triggers),
    foreign_code AS (
        SELECT 'pg_proc'::regclass AS class, oid FROM pg_proc WHERE pronamespace <> 'pg_catalog'::regnamespace
        UNION ALL SELECT 'pg_operator'::regclass, oid FROM pg_operator WHERE oprnamespace <> 'pg_catalog'::regnamespace
        UNION ALL SELECT 'pg_opclass'::regclass, oid FROM pg_opclass WHERE opcnamespace <> 'pg_catalog'::regnamespace
        UNION ALL SELECT 'pg_type'::regclass, oid FROM pg_type WHERE typnamespace <> 'pg_catalog'::regnamespace
            AND typtype IN ('d', 'r', 'm', 'c', 'b') AND typrelid NOT IN (SELECT oid FROM relations)),
    -- Functions of PostgreSQL itself have no row in pg_depend; some run a query that they are given.
    called AS (
        SELECT what, match[1] AS kind, match[2]::oid AS number FROM (
            SELECT 'constraint ' || conname AS what, conbin::text AS tree FROM pg_constraint
                WHERE conrelid IN (SELECT oid FROM relations) AND conbin IS NOT NULL
            UNION ALL SELECT 'trigger ' || tgname, tgqual::text FROM triggers WHERE tgqual IS NOT NULL) AS trees,
        regexp_matches(tree, ':(funcid|opfuncid|opno) (\d+)', 'g') AS match),
    found AS (
        SELECT o.what FROM objects o JOIN pg_depend d ON d.classid = o.class AND d.objid = o.oid
            JOIN foreign_code f ON f.class = d.refclassid AND f.oid = d.refobjid
            WHERE NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = f.class AND e.objid = f.oid
                AND e.deptype = 'e')
        UNION SELECT c.what || ' with ' || p.proname FROM called c LEFT JOIN pg_operator o ON o.oid = c.number
            JOIN pg_proc p ON p.oid = CASE c.kind WHEN 'opno' THEN o.oprcode ELSE c.number END
            WHERE p.proname ~ 'to_xml'
            OR p.provolatile = 'v' AND p.proname NOT IN ('clock_timestamp', 'random', 'gen_random_uuid')
        UNION SELECT 'function ' || p.oid::regprocedure::text || ' with SECURITY DEFINER' FROM pg_proc p
            WHERE p.prosecdef AND p.proowner = (SELECT oid FROM pg_roles WHERE rolname = {name}))
SELECT coalesce(json_agg(what ORDER BY what), '[]') FROM found
"""
_FOREIGN_TABLES = """
SELECT DISTINCT c.oid::regclass::text FROM pg_dist_schema d JOIN pg_dist_partition p USING (colocationid)
JOIN pg_class c ON c.oid = p.logicalrelid JOIN pg_namespace n ON n.oid = d.schemaid
WHERE n.nspname = %s AND c.relnamespace <> d.schemaid ORDER BY 1
"""
_PREPARED = r"""
SELECT coalesce(json_agg(format('ROLLBACK PREPARED %L', gid)), '[]') FROM pg_prepared_xacts
WHERE database = current_database() AND gid !~ '^citus_\d+_\d+_\d+_\d+$'
"""
_SHUT = "SELECT coalesce(json_agg(rolname), '[]') FROM pg_authid WHERE rolvaliduntil = 'epoch'"


@contextmanager
def kept_out(session: Connection, name: str) -> Iterator[None]:
    """Lock a tenant's owner out on every node for a `with` block; refuse a tenant with such code.

    The roles of applications stay connected: they own nothing. Raises UsageError and DatabaseError.
    """
    owners, finished = _owners(name), False
    with login.claimed(session, name, alone=True):
        try:
            if refusing := _valid(session, owners, "epoch"):
                raise _unreached(name, refusing, "be locked out of", "every group running", "provision fleet status")
            _end(session, name, owners)
            _refuse_prepared(session)
            _refuse_code(session, name)
            yield
            finished = True
        finally:
            with suppress(psycopg.Error):  # let_in repairs what a lost connection leaves
                if (refusing := _valid(session, owners, "infinity")) and finished:
                    raise _unreached(
                        name, refusing, "log in to", "every group running, and then", "provision fleet apply"
                    )


def let_in(session: Connection) -> None:
    """Unlock the owners that killed commands left locked out."""
    shut: set[str] = set()
    for found in nodes.answers(session, _SHUT).values():
        shut |= set(json.loads(found))
    for each in catalog.known(session) if shut else ():
        if shut & set(_owners(each.name)):
            with suppress(DatabaseError), login.claimed(session, each.name, alone=True):  # not while it moves
                _valid(session, _owners(each.name), "infinity")


def _owners(name: str) -> list[str]:
    return [name, names.second_login(name)]


def _unreached(name: str, groups: Sequence[int], what: str, allowed: str, run: str) -> DatabaseError:
    return DatabaseError(
        f"the owner of tenant {name} cannot {what} group {', '.join(map(str, groups))}",
        where="the roles of that group's server",
        allowed=allowed,
        run=run,
    )


def _valid(session: Connection, roles: Sequence[str], until: str) -> list[int]:
    """Set until when passwords are valid, on every node; return the groups that refuse.

    Each node changes its own roles, for Citus does not know the second logins. Certificates of nodes are not affected.
    """
    steps = [
        sql.SQL(
            "IF EXISTS (SELECT FROM pg_roles WHERE rolname = {}) THEN ALTER ROLE {} VALID UNTIL {}; END IF;"
        ).format(sql.Literal(role), sql.Identifier(role), sql.Literal(until))
        for role in roles
    ]
    alone = sql.SQL("PERFORM set_config('citus.enable_ddl_propagation', 'off', true);")
    body = sql.SQL(" ").join([sql.SQL("BEGIN"), alone, *steps, sql.SQL("END")])
    return _failed(session, sql.SQL("DO {}").format(sql.Literal(body.as_string(session))))


def _failed(session: Connection, statement: sql.Composed, expected: str = "") -> list[int]:
    """Run a statement on every node; return the groups where it fails or gives another value than `expected`."""
    rows: list[tuple[Any, ...]] = session.execute(
        "SELECT n.groupid FROM run_command_on_all_nodes(%s) r JOIN pg_dist_node n ON n.nodeid = r.nodeid"
        " WHERE NOT r.success OR %s <> '' AND r.result <> %s ORDER BY 1",
        (statement.as_string(session), expected, expected),
    ).fetchall()
    return [int(number) for (number,) in rows]


def _end(session: Connection, name: str, roles: list[str]) -> None:
    """End the roles' sessions on every node. Raises DatabaseError if one stays."""
    query = "SELECT count(*) FILTER (WHERE NOT pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
    listed = sql.SQL(", ").join(map(sql.Literal, roles))
    ended = sql.SQL(query + " WHERE usename IN ({}) AND backend_type = 'client backend'").format(listed)
    if staying := _failed(session, ended, "0"):
        raise DatabaseError(
            f"sessions of the owner of tenant {name} did not end within 5 s",
            where=f"group {', '.join(map(str, staying))}",
            run="repeat this command",
        )


def _refuse_prepared(session: Connection) -> None:
    """Raise DatabaseError for prepared transactions that are not Citus's: a move would wait for them without end."""
    found = {number: json.loads(text) for number, text in nodes.answers(session, _PREPARED).items()}
    for number, statements in found.items():
        if statements:
            raise DatabaseError(
                "a prepared transaction is open, and a move would wait for it",
                where=f"group {number}",
                seen=f"{len(statements)}",
                allowed="no prepared transactions but those of Citus",
                run=f'runuser -u postgres -- psql {session.info.dbname} -c "{statements[0]}", on that group\'s primary',
            )


def _refuse_code(session: Connection, name: str) -> None:
    """Raise UsageError for a tenant whose code the copy would run, or whose tables are not alone in their group."""
    statement = sql.SQL(_CODE).format(name=sql.Literal(name)).as_string(session)
    found = {each for text in nodes.answers(session, statement).values() for each in json.loads(text)}
    strangers = [str(row[0]) for row in session.execute(_FOREIGN_TABLES, (name,))]
    found |= {f"table {each}, which Citus moves with it" for each in strangers}
    if found:
        raise UsageError(
            f"tenant {name} has code of its own that would run as the superuser on another server",
            where=f"schema {name}",
            seen=some(sorted(found)),
            allowed="constraints, generated columns, indexes, statistics, types and triggers on INSERT with functions "
            "of PostgreSQL and of extensions alone that run no query, and no SECURITY DEFINER function",
            run="drop them as the tenant, or export the tenant to a host of its own",
        )
