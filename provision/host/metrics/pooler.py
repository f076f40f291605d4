"""Metrics of PgBouncer's pools, named as in prometheus-community's pgbouncer_exporter. Pure.

That exporter is not used: it needs the console as a user that may pause and stop the pooler, which a network service
must not be. Debian 12 packages a different program with other metric names; it queries the column total_requests, which
PgBouncer 1.8 removed, and does not start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from provision.host.metrics.exposition import Metric, single

Row = Mapping[str, Any]
POOLS = {
    "cl_active": ("pgbouncer_pools_client_active_connections", "Clients with a server connection."),
    "cl_waiting": ("pgbouncer_pools_client_waiting_connections", "Clients waiting for a server connection."),
    "sv_active": ("pgbouncer_pools_server_active_connections", "Server connections in use by a client."),
    "sv_idle": ("pgbouncer_pools_server_idle_connections", "Idle server connections."),
    "sv_login": ("pgbouncer_pools_server_login_connections", "Server connections being opened."),
}
STATS = {
    "total_xact_count": ("pgbouncer_stats_sql_transactions_pooled_total", "Transactions.", 1.0),
    "total_query_count": ("pgbouncer_stats_queries_pooled_total", "Statements.", 1.0),
    "total_wait_time": (
        "pgbouncer_stats_client_wait_seconds_total",
        "Time that clients waited for a server connection.",
        1e-6,
    ),
    "total_query_time": ("pgbouncer_stats_queries_duration_seconds_total", "Run time of statements.", 1e-6),
}
_UP = "1 if the pooler answers on its socket."
DOWN = single("pgbouncer_up", _UP, 0.0)


def metrics(pools: Sequence[Row], stats: Sequence[Row], config: Sequence[Row]) -> list[Metric]:
    """Convert the rows of SHOW POOLS, STATS and CONFIG, without the console's own. Microseconds become seconds."""
    ours = [row for row in pools if row["database"] != "pgbouncer"]
    limit = {str(row["key"]): str(row["value"]) for row in config}.get("max_client_conn")
    found = [single("pgbouncer_up", _UP, 1.0)]
    for column, (name, help_) in POOLS.items():
        found.append(Metric(name, help_, tuple((_pool(row), float(row[column])) for row in ours)))
    waits = tuple((_pool(row), float(row["maxwait"]) + float(row["maxwait_us"]) * 1e-6) for row in ours)
    found.append(Metric("pgbouncer_pools_client_maxwait_seconds", "Longest current wait of a client.", waits))
    for column, (name, help_, unit) in STATS.items():
        samples = tuple(
            ({"database": str(row["database"])}, float(row[column]) * unit)
            for row in stats
            if row["database"] != "pgbouncer"
        )
        found.append(Metric(name, help_, samples, kind="counter"))
    found.append(
        single("pgbouncer_config_max_client_connections", "Maximum number of clients.", float(limit) if limit else None)
    )
    return found


def _pool(row: Row) -> dict[str, str]:
    return {"database": str(row["database"]), "user": str(row["user"])}
