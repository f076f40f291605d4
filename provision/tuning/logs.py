"""Server log settings. Pure. The Ansible role `monitoring` owns rotation and the size limit.

Never log all statements: each memory contains a vector of some 20 kB. Never log parameter values in production: they
hold personal data from agents' memories.
"""

from provision.tuning.model import Request, Setting, group

_PREFIX = "%m [%p] %q%u@%d/%a %h "


def settings(request: Request) -> list[Setting]:
    """Return the log settings of the profile."""
    choices, cut = request.choices, request.choices.log_parameter_bytes
    # A list since 18; `on` still means these three.
    connections: str | bool = "receipt,authentication,authorization" if request.postgresql >= 18 else True
    values = "parameter values are truncated" if cut else "parameter values are not logged"
    return group(
        "logging",
        ("log_line_prefix", _PREFIX, "", "time, process, user, database, application, client"),
        ("log_connections", connections, "", "user, client address and authentication method"),
        ("log_disconnections", True, "", "session duration"),
        ("log_replication_commands", True, "", "a copy of the whole cluster leaves a trace"),
        ("log_checkpoints", True, "", "off by default in 14; shows whether max_wal_size suffices"),
        ("log_lock_waits", True, "", "logs waits longer than deadlock_timeout, with the blocking process"),
        ("log_statement", choices.log_statement, "", "from the profile: records schema changes"),
        ("log_min_duration_statement", choices.log_min_duration_ms, "ms", "from the profile: slow statements"),
        ("log_error_verbosity", choices.log_error_verbosity, "", "from the profile"),
        ("log_parameter_max_length", cut, "B", f"from the profile: {values}"),
        ("log_temp_files", choices.log_temp_files_kb, "kB", "sorts and hashes that exceed work_mem"),
        ("log_autovacuum_min_duration", choices.log_autovacuum_ms, "ms", "long vacuums, mostly of HNSW indexes"),
    )
