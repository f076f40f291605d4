"""Keep a tenant's code from running as the superuser while Citus copies its rows. Does IO.

Citus copies a tenant by COPY as the role of the session, which is the superuser: constraints, generated columns, types,
index expressions and triggers on INSERT of the tenant would run with its rights on another node. So the owner, who
alone can make them, cannot log in meanwhile, nothing else can act as it, and a tenant that has such code is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
from psycopg import sql

from provision.database import Connection
from provision.errors import DatabaseError, UsageError
from provision.plan import names

_CODE = """
WITH mine AS (SELECT oid FROM pg_namespace WHERE nspname = %(name)s),
    relations AS (SELECT c.oid FROM pg_class c WHERE c.relnamespace IN (SELECT oid FROM mine)),
    objects AS (
        SELECT 'pg_constraint'::regclass AS class, oid, 'constraint ' || conname AS what FROM pg_constraint
            WHERE conrelid IN (SELECT oid FROM relations) AND contype IN ('c', 'x')
        UNION ALL SELECT 'pg_attrdef'::regclass, d.oid, 'generated column or default of ' || d.adrelid::regclass::text
            FROM pg_attrdef d WHERE d.adrelid IN (SELECT oid FROM relations)
        UNION ALL SELECT 'pg_class'::regclass, i.indexrelid, 'index ' || i.indexrelid::regclass::text
            FROM pg_index i WHERE i.indrelid IN (SELECT oid FROM relations)
        UNION ALL SELECT 'pg_class'::regclass, oid, 'columns of ' || oid::regclass::text FROM relations
        UNION ALL SELECT 'pg_trigger'::regclass, oid, 'trigger ' || tgname FROM pg_trigger
            WHERE tgrelid IN (SELECT oid FROM relations) AND NOT tgisinternal AND tgtype::int & 4 <> 0),
    foreign_code AS (
        SELECT 'pg_proc'::regclass AS class, oid FROM pg_proc WHERE pronamespace <> 'pg_catalog'::regnamespace
        UNION ALL SELECT 'pg_operator'::regclass, oid FROM pg_operator WHERE oprnamespace <> 'pg_catalog'::regnamespace
        UNION ALL SELECT 'pg_opclass'::regclass, oid FROM pg_opclass WHERE opcnamespace <> 'pg_catalog'::regnamespace
        UNION ALL SELECT 'pg_type'::regclass, oid FROM pg_type WHERE typnamespace <> 'pg_catalog'::regnamespace
            AND typtype IN ('d', 'r', 'm', 'c', 'b') AND typrelid NOT IN (SELECT oid FROM relations))
SELECT DISTINCT o.what FROM objects o JOIN pg_depend d ON d.classid = o.class AND d.objid = o.oid
JOIN foreign_code f ON f.class = d.refclassid AND f.oid = d.refobjid
WHERE NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = f.class AND e.objid = f.oid AND e.deptype = 'e')
UNION SELECT 'function ' || p.oid::regprocedure::text || ' with SECURITY DEFINER' FROM pg_proc p
WHERE p.prosecdef AND p.proowner = %(name)s::regrole ORDER BY 1
"""
NAMED = 5


@contextmanager
def kept_out(session: Connection, name: str) -> Iterator[None]:
    """Keep a tenant's owner out for a `with` block, on every node; refuse a tenant with such code.

    The applications' roles go on: they own nothing. Raises UsageError and DatabaseError.
    """
    owners = [name, names.second_login(name)]
    rows = session.execute(
        "SELECT rolname::text, rolvaliduntil::text FROM pg_authid WHERE rolname = ANY(%s)", (owners,)
    ).fetchall()
    until = {str(role): "infinity" if text is None else str(text) for role, text in rows}
    try:
        for role in until:
            _valid(session, role, "epoch")
        _end(session, list(until))
        _refuse_jobs(session, name)
        if found := [str(row[0]) for row in session.execute(_CODE, {"name": name})]:
            raise UsageError(
                f"tenant {name} has code of its own that would run as the superuser on another server",
                where=f"schema {name}",
                seen=", ".join(found[:NAMED]) + (f" and {len(found) - NAMED} more" if len(found) > NAMED else ""),
                allowed="constraints, generated columns, indexes, types and triggers on INSERT with functions of "
                "PostgreSQL and of extensions alone, and no SECURITY DEFINER function",
                run="drop them as the tenant, or export the tenant to a host of its own",
            )
        yield
    except psycopg.Error as error:
        raise DatabaseError(
            f"the owner of tenant {name} cannot be kept out",
            where=f"database {session.info.dbname}",
            seen=str(error).strip(),
            run="provision fleet status",
        ) from None
    finally:
        with suppress(psycopg.Error):  # a lost connection: provision tenant add repairs the roles
            for role, text in until.items():
                _valid(session, role, text)


def _valid(session: Connection, role: str, until: str) -> None:
    """Set until when a password is valid, on every node; certificates of nodes are not affected."""
    session.execute(sql.SQL("ALTER ROLE {} VALID UNTIL {}").format(sql.Identifier(role), sql.Literal(until)))


def _end(session: Connection, roles: list[str]) -> None:
    query = sql.SQL("SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE usename IN ({})")
    text = query.format(sql.SQL(", ").join(map(sql.Literal, roles))).as_string(session)
    session.execute("SELECT * FROM run_command_on_all_nodes(%s)", (text,))


def _refuse_jobs(session: Connection, name: str) -> None:
    """Raise DatabaseError while a command of the operator acts as the tenant."""
    row = session.execute(
        "SELECT 1 FROM pg_stat_activity a JOIN pg_auth_members m ON m.member = a.usesysid"
        " JOIN pg_roles g ON g.oid = m.roleid WHERE g.rolname = %s LIMIT 1",
        (name,),
    ).fetchone()
    if row:
        raise DatabaseError(
            f"another command is working as tenant {name}",
            where=f"database {session.info.dbname}",
            seen="a migration, maintenance or an export",
            run="repeat this command when it has ended",
        )
