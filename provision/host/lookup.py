"""The user lookup function of PgBouncer (auth_query), converged in each database. Does IO.

PgBouncer queries the SCRAM verifier at each client login. Rotated passwords, disabled and expired roles therefore take
effect at once, and no file contains a secret. The function is SECURITY DEFINER and owned by the superuser, so that it
can read verifiers. Its search_path is pinned, only the pooler's role may execute it, and it never returns a superuser.
Every database has one, because PgBouncer 1.18 (Debian 12) runs auth_query in the client's database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

if TYPE_CHECKING:
    from provision.host.access import Access

SCHEMA, FUNCTION = "pgbouncer", "lookup"
QUERY = f"SELECT username, secret FROM {SCHEMA}.{FUNCTION}($1)"  # noqa: S608 - names of our own
"""Value of auth_query. All names are qualified, because the pooler's session may have another search_path."""

BODY = """
SELECT r.rolname, r.rolpassword FROM pg_catalog.pg_authid AS r
WHERE r.rolname OPERATOR(pg_catalog.=) wanted AND r.rolcanlogin AND NOT r.rolsuper AND NOT r.rolreplication
  AND r.rolpassword OPERATOR(pg_catalog.~~) 'SCRAM-SHA-256$%'
  AND (r.rolvaliduntil IS NULL OR r.rolvaliduntil OPERATOR(pg_catalog.>) pg_catalog.now())
"""
CONFIGURATION = ["search_path=pg_catalog, pg_temp"]
RESULT = "TABLE(username name, secret text)"

SCHEMA_PRIVILEGES = (
    "SELECT coalesce(r.rolname, 'PUBLIC'), x.privilege_type FROM pg_namespace n,"
    " aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) x LEFT JOIN pg_roles r ON r.oid = x.grantee"
    " WHERE n.nspname = %s AND x.grantee <> n.nspowner"
)
FUNCTION_PRIVILEGES = (
    "SELECT coalesce(r.rolname, 'PUBLIC'), x.privilege_type FROM pg_proc p JOIN pg_namespace n ON n.oid ="
    " p.pronamespace, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) x"
    " LEFT JOIN pg_roles r ON r.oid = x.grantee WHERE n.nspname = %s AND x.grantee <> p.proowner"
)


def align(access: Access, poolers: list[str]) -> None:
    """Converge schema and function in this database, executable by `poolers` only; remove them if there are none."""
    owned = access.ask(
        "SELECT r.rolname = current_user FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner"
        " WHERE n.nspname = %s",
        SCHEMA,
    )
    name, function = sql.Identifier(SCHEMA), sql.Identifier(SCHEMA, FUNCTION)
    if not poolers:
        if owned:
            access.change(f"schema {SCHEMA}: dropped", sql.SQL("DROP SCHEMA {} CASCADE").format(name))
        return
    if not owned:
        access.change(f"schema {SCHEMA}", sql.SQL("CREATE SCHEMA {}").format(name))
    elif not owned[0][0]:
        access.change(f"schema {SCHEMA}: owner", sql.SQL("ALTER SCHEMA {} OWNER TO CURRENT_USER").format(name))
    _function(access, function)
    for query, label, what, privilege in (
        (SCHEMA_PRIVILEGES, f"schema {SCHEMA}", sql.SQL("SCHEMA {}").format(name), "USAGE"),
        (
            FUNCTION_PRIVILEGES,
            f"function {SCHEMA}.{FUNCTION}",
            sql.SQL("FUNCTION {}(text)").format(function),
            "EXECUTE",
        ),
    ):
        found = {(str(role), str(kind)) for role, kind in access.ask(query, SCHEMA)}
        access.align(label, what, found, {(role, privilege) for role in poolers})


def _function(access: Access, function: sql.Identifier) -> None:
    """Create the function, or recreate it if it was changed; drop other functions in its schema."""
    rows = access.ask(
        "SELECT p.oid::regprocedure::text, p.prosrc, p.prosecdef, p.proconfig, r.rolname = current_user,"
        " pg_get_function_result(p.oid), l.lanname, pg_get_function_arguments(p.oid)"
        " FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_roles r ON r.oid = p.proowner"
        " JOIN pg_language l ON l.oid = p.prolang WHERE n.nspname = %s ORDER BY 1",
        SCHEMA,
    )
    sound = (BODY, True, CONFIGURATION, True, RESULT, "sql", "wanted text")
    for row in rows:
        if tuple(row[1:]) != sound:
            access.change(
                f"function {row[0]}: unexpected, dropped",
                sql.SQL("DROP ROUTINE " + str(row[0])),  # quoted by the server
            )
    if not any(tuple(row[1:]) == sound for row in rows):
        statement = (
            "CREATE FUNCTION {}(wanted text) RETURNS " + RESULT + " LANGUAGE sql STABLE STRICT SECURITY DEFINER"
            " SET search_path = pg_catalog, pg_temp AS {}"
        )
        access.change(f"function {SCHEMA}.{FUNCTION}", sql.SQL(statement).format(function, sql.Literal(BODY)))
        access.change(
            f"function {SCHEMA}.{FUNCTION}: REVOKE EXECUTE FROM PUBLIC",
            sql.SQL("REVOKE EXECUTE ON FUNCTION {}(text) FROM PUBLIC").format(function),
        )
