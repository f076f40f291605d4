"""Built-in copies of the dev and prod profiles, for hosts, which have no profile files and no YAML parser.

Pure. Same values as section `postgresql` of profiles/dev.yml and profiles/prod.yml, which state the reasons;
a contract test compares them.
"""

from provision.errors import UsageError
from provision.tuning.model import Choices

_PRELOAD = ("pg_stat_statements", "auto_explain")
_AUDIT = ("role", "ddl")
_BUILT_IN = {
    "dev": Choices(
        restart_allowed=True,
        sizes="contract",
        huge_pages="off",
        preload=_PRELOAD,
        client_connection_check_s=10,
        track_io_timing=True,
        log_statement="ddl",
        log_min_duration_ms=100,
        log_error_verbosity="verbose",
        log_parameter_bytes=1024,
        log_temp_files_kb=0,
        log_autovacuum_ms=0,
        auto_explain_ms=250,
        auto_explain_analyze=True,
        audit=_AUDIT,
    ),
    "prod": Choices(
        restart_allowed=False,
        sizes="computed",
        huge_pages="try",
        preload=_PRELOAD,
        client_connection_check_s=10,
        track_io_timing=True,
        log_statement="ddl",
        log_min_duration_ms=1000,
        log_error_verbosity="default",
        log_parameter_bytes=0,
        log_temp_files_kb=16384,
        log_autovacuum_ms=10000,
        auto_explain_ms=3000,
        auto_explain_analyze=False,
        audit=_AUDIT,
    ),
}

NAMES = tuple(_BUILT_IN)


def built_in(profile: str) -> Choices:
    """Return the choices of a built-in profile. Raises UsageError for any name but dev and prod."""
    if profile not in _BUILT_IN:
        raise UsageError("unknown profile", seen=profile, allowed="dev, prod")
    return _BUILT_IN[profile]
