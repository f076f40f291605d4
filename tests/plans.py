"""A plan for tests that need one: a prod host on Debian 13 with PostgreSQL 17, changed where the test says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from provision.plan import load, schema


def sample(**sections: dict[str, Any]) -> schema.Plan:
    """Give a plan; `sample(server={"port": 5433}, backup={"physical": False})` replaces fields of sections."""
    plan = schema.Plan(
        schema=schema.SCHEMA,
        name="db1",
        address="db1",
        profile="prod",
        inventory=("inventories/prod",),
        host=schema.Host("Debian GNU/Linux 13 (trixie)", "trixie", "amd64", 4, 8192, container=False, systemd=True),
        source=schema.Source("distribution"),
        server=schema.Server(
            major=17,
            port=5432,
            address="127.0.0.1",
            listen_addresses=("localhost",),
            locale="C.UTF-8",
            data_directory="/var/lib/postgresql/17/main",
            configuration_directory="/etc/postgresql/17/main",
            socket_directory="/var/run/postgresql",
            restart_allowed=False,
            settings=(),
            overrides={},
            budget=(),
            max_connections=100,
            kernel={},
            hba=(),
            ident=(),
            archive_command="pgbackrest --stanza=db1 archive-push %p",
            archive_timeout_s=60,
        ),
        pgvector=schema.Pgvector("package", "0.8.0", "", "", keep_build_packages=True, accept_advisories=()),
        tls=schema.Tls(
            False, "TLSv1.2", "db1", False, "/etc/provision/tls/ca.crt", (), "inventories/prod/tls/ca.crt", 397
        ),
        access=schema.Access(
            database="minion",
            owner="minion",
            databases={"minion": "minion"},
            roles=(),
            extensions=("vector", "uuid-ossp", "pg_stat_statements"),
            guard=True,
        ),
        pooler=schema.Pooler(
            enabled=True,
            port=6432,
            address="127.0.0.1",
            listen_addresses=("localhost",),
            networks=("127.0.0.1/32", "::1/128"),
            socket_directory="/var/run/postgresql",
            server="/var/run/postgresql",
            version="1.24.1",
            per_role_limits=True,
            prepared_statements=200,
            pools={"minion": 5, "minion_app": 25, "minion_readonly": 5},
            total=39,
            lookups=4,
            max_clients=1000,
            open_files=1239,
            query_wait_timeout_s=15,
            server_connect_timeout_s=5,
            server_login_retry_s=1,
            client_login_timeout_s=15,
            restart_allowed=False,
            accept_advisories=(),
        ),
        backup=schema.Backup(
            physical=True,
            logical=True,
            stanza="db1",
            repository=schema.Repository("local", "/var/lib/pgbackrest", "", "", "pgbackrest", {}),
            retention_full=2,
            retention_diff=7,
            compress_level=3,
            processes=2,
            archive_timeout_s=60,
            queue_max_mb=1024,
            age_limit_h=26,
            drill_age_limit_h=50,
            dump_directory="/var/backups/provision",
            dump_keep=3,
            dump_keep_days=14,
            minimum_pgbackrest="2.53.1",
        ),
        monitoring=schema.Monitoring(True, "127.0.0.1", True, 9100, 9187, 200, 14, 500, "docs"),
        maintenance=schema.Maintenance(
            retention=(
                schema.Retention("activities", "activities", "created_at", "created_at < {cutoff}", 90, "delete"),
                schema.Retention("metrics", "metrics", "timestamp", "timestamp < {cutoff}", 30, "delete"),
                schema.Retention(
                    "closed sessions",
                    "sessions",
                    "created_at",
                    "status = 'closed' AND updated_at < {cutoff}",
                    7,
                    "archive",
                ),
            ),
            cleanup=True,
            batch_rows=5000,
            lock_timeout_ms=1000,
            migration_wait_s=60,
            bloat_percent=50,
            bloat_mb=64,
            age_limit_h=50,
        ),
        migrations=schema.Migrations("/usr/local/share/provision/migrations", 10),
        timers=(),
        warnings=(),
    )
    changed: dict[str, Any] = {name: replace(getattr(plan, name), **fields) for name, fields in sections.items()}
    return replace(plan, **changed)


def write(path: Path, plan: schema.Plan) -> Path:
    """Write a plan where a command under test will load it from."""
    path.write_text(load.text(plan))
    return path
