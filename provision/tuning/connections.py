"""Connection limits and the time-outs of every session. Pure.

The Ansible role `database` sets time-outs per login role (statement, lock, idle in transaction): migrations, dumps and
index builds must not inherit them.
"""

from provision.tuning.memory import Memory
from provision.tuning.model import Request, Setting, group

SUPERUSER_RESERVED = 3  # an administrator, the provision timers, one spare
RESERVED = 4  # of OTHER_ROLES: two each for the roles of backup and monitoring
AUTHENTICATION_TIMEOUT_S = 10  # an unfinished login holds a connection as long, before any limit of a role applies
RESERVED_SINCE = 16  # reserved_connections and pg_use_reserved_connections
OTHER_ROLES = 5  # direct connections: migrations, backup, monitoring, maintenance, psql


def settings(request: Request, memory: Memory) -> list[Setting]:
    """Return the connection and time-out settings."""
    if request.max_connections:
        why = "as requested; work_mem is sized to it"
    else:
        why = (
            "as many as fit in memory; PgBouncer shares them among more clients"
            if request.computed
            else "the recommended value"
        )
    check = request.choices.client_connection_check_s
    why_check = "cancels a query if its client disconnects"
    if not check:
        why_check = "off, so the query of a lost client runs to its end or statement_timeout"
    found = group(
        "connections and time-outs",
        ("max_connections", memory.connections, "", why),
        ("superuser_reserved_connections", SUPERUSER_RESERVED, "", "keeps connections free for administrators"),
        ("authentication_timeout", AUTHENTICATION_TIMEOUT_S, "s", "an unfinished login holds a connection as long"),
        ("tcp_keepalives_idle", 60, "s", "Linux would wait two hours before probing a silent client"),
        ("tcp_keepalives_interval", 10, "s", "interval between probes"),
        ("tcp_keepalives_count", 6, "", "a lost client is disconnected after two minutes in total"),
        ("client_connection_check_interval", check, "s", f"from the profile: {why_check}"),
        ("deadlock_timeout", 1, "s", "also the delay of log_lock_waits"),
    )
    if request.postgresql >= RESERVED_SINCE:
        why = "keeps connections free for the roles of backup and monitoring"
        found += group("connections and time-outs", ("reserved_connections", RESERVED, "", why))
    if request.computed:
        why = "saves two title updates per statement; pg_stat_activity shows the same"
        found += group("connections and time-outs", ("update_process_title", False, "", why))
    return found


def pool_limit(memory: Memory) -> int:
    """Return the limit on server connections of all pools together; at least one."""
    return max(1, memory.connections - SUPERUSER_RESERVED - OTHER_ROLES)
