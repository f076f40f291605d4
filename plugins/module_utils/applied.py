"""Values that several roles share, read from the files that earlier runs placed on this host. Reads only.

A role without its file has not converged this host and is left out. provision.plan.shared compares them with a plan.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path("/")
SETTINGS = "etc/postgresql/{major}/main/conf.d/50-provision.conf"
IDENT = "etc/postgresql/{major}/main/pg_ident.conf"
BACKUP = "etc/pgbackrest/pgbackrest.conf"
POOLER = "etc/pgbouncer/provision"
EXPORTER = "etc/systemd/system/prometheus-postgres-exporter.service.d/50-provision.conf"

HEADER = 400
"""Characters in which each of our files names its template."""

SERVER_VALUES = {
    "port": r"^port = (\d+)",
    "tls": r"^ssl = (\w+)",
    "stanza": r"^archive_command = .*--stanza=([^\s']+)",
    "preload": r"^shared_preload_libraries = '?([^'\n]*)",
}
BACKUP_VALUES = {"stanza": r"^\[(?!global)([^\]\n]+)\]", "port": r"^pg1-port=(\d+)"}
POOLER_VALUES = {
    "port": r"^[^#\n]* = host=\S+ port=(\d+)",
    "route": r"^[^#\n]* = host=(\S+)",
    "owner": r" auth_user=(\S+)_pooler\b",
}
EXPORTER_VALUES = {"port": r" port=(\d+)", "owner": r" user=(\S+)_monitor\b", "database": r' dbname=([^\s"]+)'}


def values(major: int) -> dict[str, dict[str, str]]:
    """Return, of each role that has converged this host, its values by name; "" for one that its file does not set."""
    server, pooler = SETTINGS.format(major=major), f"{POOLER}/databases.ini"
    found = {
        "postgresql": {
            **_read(server, SERVER_VALUES),
            **_read(IDENT.format(major=major), {"owner": r"^(\S+)_pooler\s"}),
        },
        "backup": _read(BACKUP, BACKUP_VALUES),
        "pgbouncer": {
            **_read(pooler, POOLER_VALUES),
            **_read(f"{POOLER}/tls.ini", {"tls": r"^client_tls_sslmode = (\w+)"}),
        },
        "monitoring": _read(EXPORTER, EXPORTER_VALUES),
    }
    return {role: each for role, each in found.items() if each}


def _read(path: str, patterns: dict[str, str]) -> dict[str, str]:
    try:
        text = Path(ROOT, path).read_text(errors="replace")
    except OSError:
        return {}
    if "# templates/" not in text[:HEADER]:
        return {}  # not ours, such as a backup host's pgbackrest.conf or a package's
    matches = {name: re.search(pattern, text, re.MULTILINE) for name, pattern in patterns.items()}
    return {name: match[1] if match else "" for name, match in matches.items()}
