"""What the server log tells. Pure. Rotation and the size limit belong to the role `monitoring`.

Never all statements: each memory carries a vector of some 20 kB. In prod never parameter values: they are what
agents remember about people.
"""

from provision.tuning.model import Request, Setting, group

_PREFIX = "%m [%p] %q%u@%d/%a %h "


def settings(request: Request) -> list[Setting]:
    """Return what is logged, per profile."""
    choices, cut = request.choices, request.choices.log_parameter_bytes
    # 18 made a list of it; `on` still means these three.
    connections: str | bool = "receipt,authentication,authorization" if request.postgresql >= 18 else True
    values = "values of parameters are cut" if cut else "values of parameters stay out of the log"
    return group(
        "logging",
        ("log_line_prefix", _PREFIX, "", "time, process, user, database, application, client"),
        ("log_connections", connections, "", "who came, from where, how authenticated"),
        ("log_disconnections", True, "", "and for how long"),
        ("log_checkpoints", True, "", "14 has it off; shows whether max_wal_size holds"),
        ("log_lock_waits", True, "", "names who waited for whom after deadlock_timeout"),
        ("log_statement", choices.log_statement, "", "by the profile: schema changes leave a trace"),
        ("log_min_duration_statement", choices.log_min_duration_ms, "ms", "by the profile: slow statements"),
        ("log_error_verbosity", choices.log_error_verbosity, "", "by the profile"),
        ("log_parameter_max_length", cut, "B", f"by the profile: {values}"),
        ("log_temp_files", choices.log_temp_files_kb, "kB", "a sort or hash that did not fit work_mem"),
        ("log_autovacuum_min_duration", choices.log_autovacuum_ms, "ms", "long cleaning, above all of HNSW"),
    )
