"""Connections and the time-outs that hold for every session. Pure.

Time-outs per role (statement, lock, idle in transaction) are the role `database`'s: migrations, dumps and index
builds must not inherit them.
"""

from provision.tuning.memory import Memory
from provision.tuning.model import Request, Setting, group

SUPERUSER_RESERVED = 3  # an administrator, the toolkit's timers, one to spare
OTHER_ROLES = 5  # migrations, backup, monitoring, maintenance, somebody's psql: they do not pass through poolers


def settings(request: Request, memory: Memory) -> list[Setting]:
    """Return what limits and watches sessions."""
    if request.max_connections:
        why = "as asked for; work_mem is sized to it"
    else:
        why = "what the memory carries; PgBouncer multiplies them" if request.computed else "the contract's value"
    found = group(
        "connections and time-outs",
        ("max_connections", memory.connections, "", why),
        ("superuser_reserved_connections", SUPERUSER_RESERVED, "", "an administrator always gets in"),
        ("tcp_keepalives_idle", 60, "s", "Linux waits two hours before it doubts a silent client"),
        ("tcp_keepalives_interval", 10, "s", "then one probe every ten seconds"),
        ("tcp_keepalives_count", 6, "", "a client that vanished is gone after two minutes in all"),
        ("client_connection_check_interval", 10, "s", "a query whose client left is cancelled"),
        ("deadlock_timeout", 1, "s", "also the wait after which log_lock_waits speaks"),
    )
    if request.computed:
        why = "rewritten twice for each statement, for what pg_stat_activity tells better"
        found += group("connections and time-outs", ("update_process_title", False, "", why))
    return found


def pool_limit(memory: Memory) -> int:
    """Return how many server connections all pools may open together; at least one."""
    return max(1, memory.connections - SUPERUSER_RESERVED - OTHER_ROLES)
