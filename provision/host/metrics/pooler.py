"""PgBouncer's pools as metrics, under the names that prometheus-community's pgbouncer_exporter gave them. Pure.

Why not that exporter: PgBouncer's console, even to look, is for the system user that runs it, who may pause and stop
it, and a process that answers the network must not be that. And Debian 12's package is another program, with other
names, which asks for a column (total_requests) that PgBouncer lost in 1.8: it does not even start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from provision.host.metrics.exposition import Metric, single

Row = Mapping[str, Any]
POOLS = {
    "cl_active": ("pgbouncer_pools_client_active_connections", "Clients that have a server connection."),
    "cl_waiting": ("pgbouncer_pools_client_waiting_connections", "Clients that wait for a server connection."),
    "sv_active": ("pgbouncer_pools_server_active_connections", "Server connections that a client has."),
    "sv_idle": ("pgbouncer_pools_server_idle_connections", "Server connections that are free."),
    "sv_login": ("pgbouncer_pools_server_login_connections", "Server connections that are being opened."),
}
STATS = {
    "total_xact_count": ("pgbouncer_stats_sql_transactions_pooled_total", "Transactions.", 1.0),
    "total_query_count": ("pgbouncer_stats_queries_pooled_total", "Statements.", 1.0),
    "total_wait_time": ("pgbouncer_stats_client_wait_seconds_total", "Time that clients waited for a server.", 1e-6),
    "total_query_time": ("pgbouncer_stats_queries_duration_seconds_total", "Time that statements ran.", 1e-6),
}
_UP = "1 when the pooler answers on its socket."
DOWN = single("pgbouncer_up", _UP, 0.0)


def metrics(pools: Sequence[Row], stats: Sequence[Row], config: Sequence[Row]) -> list[Metric]:
    """Read the rows of SHOW POOLS, STATS and CONFIG by column. Microseconds become seconds; the console is left out."""
    ours = [row for row in pools if row["database"] != "pgbouncer"]
    limit = {str(row["key"]): str(row["value"]) for row in config}.get("max_client_conn")
    found = [single("pgbouncer_up", _UP, 1.0)]
    for column, (name, help_) in POOLS.items():
        found.append(Metric(name, help_, tuple((_pool(row), float(row[column])) for row in ours)))
    waits = tuple((_pool(row), float(row["maxwait"]) + float(row["maxwait_us"]) * 1e-6) for row in ours)
    found.append(Metric("pgbouncer_pools_client_maxwait_seconds", "Wait of the client that has waited longest.", waits))
    for column, (name, help_, unit) in STATS.items():
        samples = tuple(
            ({"database": str(row["database"])}, float(row[column]) * unit)
            for row in stats
            if row["database"] != "pgbouncer"
        )
        found.append(Metric(name, help_, samples, kind="counter"))
    found.append(
        single("pgbouncer_config_max_client_connections", "Clients that may connect.", float(limit) if limit else None)
    )
    return found


def _pool(row: Row) -> dict[str, str]:
    return {"database": str(row["database"]), "user": str(row["user"])}
