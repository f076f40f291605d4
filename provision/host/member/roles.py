"""The two roles by which members copy each other: replication, and pg_rewind. Executes SQL on the primary.

They have no password: their certificates log them in (pg_hba.conf). Source: the manual, "pg_rewind", for the functions
that its role needs.
"""

from __future__ import annotations

from psycopg import sql

from provision.database import Connection, ask
from provision.plan.cluster import Cluster

SENDERS, REWINDS = 10, 5
"""Connections: WAL streams of the members and their clones; pg_rewind has one at a time."""
FUNCTIONS = (
    "pg_ls_dir(text, boolean, boolean)",
    "pg_stat_file(text, boolean)",
    "pg_read_binary_file(text)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
)


def converge(session: Connection, cluster: Cluster) -> tuple[str, ...]:
    """Create the roles and grant what is missing; return what was done."""
    done = []
    wanted = {cluster.replication_role: (True, SENDERS + len(cluster.members)), cluster.rewind_role: (False, REWINDS)}
    rows = ask(
        session, "SELECT rolname, rolreplication, rolconnlimit FROM pg_roles WHERE rolname = ANY (%s)", [list(wanted)]
    )
    found = {str(name): (replicates, limit) for name, replicates, limit in rows}
    for name, (replication, limit) in wanted.items():
        attributes = f"LOGIN {'REPLICATION' if replication else 'NOREPLICATION'} CONNECTION LIMIT {limit}"
        if name not in found:
            session.execute(sql.SQL("CREATE ROLE {} " + attributes).format(sql.Identifier(name)))
            done.append(f"role {name}")
        elif found[name] != (replication, limit):
            session.execute(sql.SQL("ALTER ROLE {} " + attributes).format(sql.Identifier(name)))
            done.append(f"role {name}: {attributes}")
    for function in FUNCTIONS:
        query = "SELECT has_function_privilege(%s, %s, 'EXECUTE')"
        if ask(session, query, [cluster.rewind_role, f"pg_catalog.{function}"]) != [(True,)]:
            grant = sql.SQL("GRANT EXECUTE ON FUNCTION pg_catalog." + function + " TO {}")
            session.execute(grant.format(sql.Identifier(cluster.rewind_role)))
            done.append(f"{function} to {cluster.rewind_role}")
    return tuple(done)
