"""Ranges, patterns and value types of options, beyond what an argument specification can state. Data only.

A nested option is named with dots and without positions: `database_extra_roles.connection_limit`.
"""

from __future__ import annotations

LARGEST = 2**31 - 1
"""Largest integer of PostgreSQL, PgBouncer and systemd."""
CENTURY_D = 36_500
"""Days that still fit an interval and a certificate."""

RANGES = {
    "backup_compress_level": (-7, 22),
    "backup_dump_keep_days": (0, CENTURY_D),
    "backup_processes": (0, 999),
    "backup_queue_max_mb": (-1, LARGEST),
    "backup_repository_port": (1, 65535),
    "backup_s3.port": (1, 65535),
    "backup_second_s3.port": (1, 65535),
    "database_extra_roles.connection_limit": (-1, LARGEST),
    "database_roles.connection_limit": (-1, LARGEST),
    "database_tenants.connection_limit": (1, LARGEST),
    "citus_group": (-1, 9999),
    "maintenance_activities_days": (0, CENTURY_D),
    "maintenance_batch_rows": (1, LARGEST),
    "maintenance_bloat_percent": (1, 100),
    "maintenance_extra_retention.days": (0, CENTURY_D),
    "maintenance_lock_timeout_ms": (1, LARGEST),
    "maintenance_metrics_days": (0, CENTURY_D),
    "maintenance_sessions_days": (0, CENTURY_D),
    "monitoring_journal_max_mb": (16, LARGEST),
    "monitoring_log_keep": (1, LARGEST),
    "monitoring_log_max_mb": (1, LARGEST),
    "pgbouncer_address_clients": (-1, 1_000_000),
    "pgbouncer_max_clients": (1, 1_000_000),
    "postgresql_expected_vectors": (0, 10**12),
    "postgresql_network_connections": (-1, LARGEST),
    "postgresql_vector_dimensions": (1, 16_000),
    "tls_ca_valid_days": (1, CENTURY_D),
}
"""Least and largest value of integers; every other one is at least 0."""

_URI = (r"[a-z][a-z0-9+.-]*:/\S+", "a URI with its scheme, such as https://apt.example.com/debian, without spaces")
_WORD = (r"\S+", "one word")

_BUCKET = (
    r"[A-Za-z0-9_-]{1,63}",
    "1 to 63 letters, digits, _ and -; pgBackRest accepts no dots, because the certificate would not match",
)
_ENDPOINT = (r"(https://)?[A-Za-z0-9.:\[\]-]+", "a host name, or https:// and a host name, without a path")

PATTERNS = {
    "backup_s3.bucket": _BUCKET,
    "backup_s3.endpoint": _ENDPOINT,
    "backup_second_s3.bucket": _BUCKET,
    "backup_second_s3.endpoint": _ENDPOINT,
    "citus_source.component": _WORD,
    "citus_source.suite": _WORD,
    "citus_source.uri": _URI,
    "pgvector_source_sha256": (r"[0-9a-fA-F]{64}", "64 hexadecimal digits"),
    "pgvector_source_url": _URI,
    "postgresql_mirror_component": _WORD,
    "postgresql_mirror_suite": _WORD,
    "postgresql_mirror_uri": _URI,
    "postgresql_pgdg_archive_uri": _URI,
    "postgresql_pgdg_uri": _URI,
    "postgresql_preload_libraries": (r"[A-Za-z0-9_$./-]+", "one library, without quotes and commas"),
}
"""Regular expression of texts that are not empty, and its description; of a list, of each element."""

VALUES = {
    "database_extra_databases": "str",
    "database_timeouts": "str",
    "monitoring_users": "str",
    "pgbouncer_pools": "int",
}
"""Type of the values of mappings with free keys."""

ANY_TEXT = ("tls_ca_passphrase",)
"""Texts that no host's file has: an authority's key may be encrypted with the line break at a vault value's end."""

NOT_EMPTY = ("postgresql_preload_libraries", "postgresql_listen_addresses", "database_extensions", "tls_extra_names")
"""Lists without empty elements."""
