"""The hardening of a prod host: sandboxes, suites of TLS, the audit log, and attacks across its boundaries.

Each attack first shows what it would win, where that is possible on a hardened host.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator

import pytest

from provision.host.backup.scratch_cluster import SCRATCH
from tests.system.production import Production
from tests.system.test_monitoring import scrape, value
from tests.system.test_pgbouncer import as_postgres, on_host
from tests.until import until

UNITS = (
    "provision-backup@full.service",
    "provision-backup@logical.service",
    "provision-backup-watch.service",
    "provision-drill.service",
    "provision-maintain@retention.service",
    "provision-metrics.service",
    "prometheus-node-exporter.service",
    "prometheus-postgres-exporter.service",
    "pgbouncer.service",
    "postgresql@17-main.service",
)
MOST_EXPOSED = 4.0
WEAK = ("ECDHE-ECDSA-CAMELLIA128-SHA256", "ECDHE-ECDSA-AES256-SHA384", "ECDHE-RSA-AES128-SHA", "AES128-GCM-SHA256")
"""CBC suites and one without forward secrecy, which PostgreSQL's default lets in."""
STRONG = "ECDHE-ECDSA-AES128-GCM-SHA256"
FOREIGN = "/var/lib/pgbackrest/archive/victim"


def as_owner(production: Production, *statements: str) -> str:
    words = " ".join(f'-c "{each}"' for each in statements)
    return on_host(production, f"psql -XAtq 'host=/run/postgresql user=minion dbname=minion' {words}")


@pytest.mark.parametrize("unit", UNITS)
def test_unit_is_exposed_little(production: Production, unit: str) -> None:
    said = on_host(production, f"systemd-analyze security --no-pager {unit} | tail -1")
    found = re.search(rf"exposure level for {re.escape(unit)}: ([0-9.]+) ", said)
    assert found, said
    assert float(found[1]) <= MOST_EXPOSED, said


@pytest.mark.parametrize(
    "unit", ["provision-backup@diff", "provision-backup-watch", "provision-maintain@sessions", "provision-metrics"]
)
def test_unit_does_its_work_in_its_sandbox(production: Production, unit: str) -> None:
    """The restore test and the other backups run as units in test_backup.py, maintenance in test_monitoring.py."""
    on_host(production, f"systemctl start {unit}.service || {{ journalctl -n 20 -u {unit}.service >&2; exit 1; }}")


@pytest.mark.parametrize("service", ["postgresql@17-main", "pgbouncer", "prometheus-node-exporter"])
def test_running_service_is_in_its_sandbox(production: Production, service: str) -> None:
    pid = on_host(production, f"systemctl show --property=MainPID --value {service}")
    status = on_host(production, f"cat /proc/{pid}/status")
    assert re.search(r"^NoNewPrivs:\t1$", status, re.M)
    assert re.search(r"^Seccomp:\t2$", status, re.M)


def test_exporters_still_export(production: Production) -> None:
    assert value(scrape(production, 9187), "pg_up") == 1
    text = scrape(production, 9100)
    for collector in ("textfile", "timex", "filesystem", "netclass", "meminfo", "diskstats"):
        assert f'node_scrape_collector_success{{collector="{collector}"}} 1' in text, collector


@pytest.mark.parametrize("port", [5432, 6432])
def test_only_suites_with_forward_secrecy_and_aead_are_agreed(production: Production, port: int) -> None:
    def agreed(suite: str) -> bool:
        words = ["openssl", "s_client", "-starttls", "postgres", "-connect", f"{production.database.address}:{port}"]
        done = subprocess.run(
            [*words, "-tls1_2", "-cipher", f"{suite}:@SECLEVEL=0"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        return f"Cipher is {suite}" in done.stdout or f"Cipher    : {suite}" in done.stdout

    assert agreed(STRONG)
    assert [suite for suite in WEAK if agreed(suite)] == []


def test_settings_are_closed_and_replication_commands_logged(production: Production) -> None:
    file = "/etc/postgresql/17/main/conf.d/50-provision.conf"
    assert on_host(production, f"stat -c '%U:%G %a' {file}") == "postgres:postgres 640"
    assert as_postgres(production, "SHOW log_replication_commands") == "on"


def test_audit_log_has_changes_of_objects_and_roles_but_no_rows(production: Production) -> None:
    as_owner(production, "CREATE TABLE audited (secret text)", "INSERT INTO audited VALUES ('of an agent')")
    as_owner(production, "DROP TABLE audited")
    as_postgres(production, "CREATE ROLE audited PASSWORD 'not for the log'; DROP ROLE audited")
    entries = on_host(production, "grep -h AUDIT: /var/log/postgresql/postgresql-17-main.log | tail -20")
    assert "DDL,CREATE TABLE,TABLE,public.audited" in entries
    assert "ROLE,CREATE ROLE" in entries
    assert "of an agent" not in entries
    assert "not for the log" not in entries


def doctor(production: Production, check: str) -> list[str]:
    shown = production.database.run("provision doctor --json").stdout
    return [each["seen"] for each in json.loads(shown)["findings"] if each["id"] == check]


def test_doctor_sees_an_audit_that_is_switched_off(production: Production) -> None:
    assert doctor(production, "pgaudit") == []
    as_postgres(production, "ALTER ROLE minion_app SET pgaudit.log = 'none'")
    as_postgres(production, "ALTER EVENT TRIGGER pgaudit_sql_drop DISABLE")
    try:
        assert doctor(production, "pgaudit") == [
            "event triggers are disabled: pgaudit_sql_drop",
            'ROLE "minion_app" sets pgaudit.log=none',
        ]
    finally:
        as_postgres(production, "ALTER ROLE minion_app RESET pgaudit.log")
        as_postgres(production, "ALTER EVENT TRIGGER pgaudit_sql_drop ENABLE")
    assert doctor(production, "pgaudit") == []


@pytest.fixture
def trap(production: Production) -> Iterator[str]:
    """A function of the owner that notes its caller, behind a name that the exporter's queries use."""
    as_owner(
        production,
        "CREATE SCHEMA trap",
        "CREATE TABLE trap.caught (who text); GRANT USAGE ON SCHEMA trap TO PUBLIC; GRANT ALL ON trap.caught TO PUBLIC",
        "CREATE FUNCTION trap.version() RETURNS text LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO trap.caught VALUES (current_user); RETURN pg_catalog.version(); END'",
        "ALTER DATABASE minion SET search_path = trap, pg_catalog, public",
    )
    yield "SELECT count(*) FROM trap.caught"
    as_owner(production, "ALTER DATABASE minion RESET search_path")
    as_owner(production, "DROP SCHEMA trap CASCADE")


def test_exporter_runs_no_function_of_the_owner(production: Production, trap: str) -> None:
    """Attack: the owner stores a search_path; the exporter asks for version() as a member of pg_monitor."""
    login = "runuser -u prometheus -- psql -XAtq 'host=/run/postgresql user=minion_monitor dbname=minion'"
    assert "PostgreSQL 17" in on_host(production, f"{login} -c 'SELECT version()'")
    assert as_postgres(production, trap) == "1"  # the attack is real
    on_host(production, "systemctl restart prometheus-postgres-exporter")
    # It asks for the version when it is scraped.
    assert until(lambda: value(scrape(production, 9187), "pg_up") == 1, 20)
    pinned = on_host(production, "systemctl show --property=Environment prometheus-postgres-exporter")
    assert "search_path=pg_catalog" in pinned
    assert as_postgres(production, trap) == "1"


def test_user_of_the_host_cannot_stop_archiving(production: Production) -> None:
    """Attack: after a boot the first user to make /tmp/pgbackrest owned the directory of pgBackRest's locks."""
    on_host(production, "rm -rf /tmp/pgbackrest && runuser -u nobody -- mkdir -m 700 /tmp/pgbackrest")
    try:
        on_host(production, "runuser -u postgres -- pgbackrest --stanza=prod1 check")
        assert on_host(production, "stat -c %U /var/spool/pgbackrest/lock") == "postgres"
    finally:
        on_host(production, "rm -rf /tmp/pgbackrest")


def test_rotation_of_logs_follows_no_link(production: Production) -> None:
    """Attack: postgres, which may change the logs' directory, plants a link where root's logrotate would write."""
    log = "/var/log/postgresql/postgresql-17-main.log"
    on_host(production, f"runuser -u postgres -- ln -sfn /etc/cron.d/planted {log}.1")
    production.database.run("logrotate -f /etc/logrotate.d/postgresql-common")
    try:
        assert production.database.run("test -e /etc/cron.d/planted").returncode == 1
        assert on_host(production, f"stat -c %U {log}") == "postgres"
    finally:
        on_host(production, f"find /var/log/postgresql -type l -delete; test -f {log}")


def test_reading_another_stanza_is_granted_by_account_and_not_by_directory(production: Production) -> None:
    """Attack: an account gives its directory the group of a third stanza, which a later restore is then granted."""
    made = (
        "useradd --system --user-group --no-create-home --home-dir / pgbackrest-victim;"
        " useradd --system --user-group --no-create-home --home-dir / pgbackrest-third;"
        f" install -d -m 750 -o pgbackrest-victim -g pgbackrest-third {FOREIGN}"
    )
    assert production.peer.run(made).returncode == 0
    arguments = {"path": "/var/lib/pgbackrest", "user": "pgbackrest-prod1", "stanza": "prod1", "reads": ["victim"]}
    words = ["-b", "-m", "minion.provision.host_repository", "-a", json.dumps(arguments)]
    try:
        refused = production.peer.ansible(*words)
        assert f"{FOREIGN} does not belong to pgbackrest-victim" in refused.stdout + refused.stderr
        assert "third" not in production.peer.run("id -Gn pgbackrest-prod1").stdout
        production.peer.run(f"chgrp pgbackrest-victim {FOREIGN}")
        assert production.peer.ansible(*words).returncode == 0
        assert "pgbackrest-victim" in production.peer.run("id -Gn pgbackrest-prod1").stdout.split()
    finally:
        production.peer.ansible(*words[:-1], json.dumps({**arguments, "reads": []}))
        production.peer.run(f"rm -rf {FOREIGN}; userdel pgbackrest-victim; userdel pgbackrest-third")
    assert "victim" not in production.peer.run("id -Gn pgbackrest-prod1").stdout


def test_sessions_of_a_database_host_are_bounded_on_the_backup_host(production: Production) -> None:
    place = f"pgbackrest-prod1@{production.peer.address}"
    session = (
        "pgbackrest --stanza=prod1 --repo1-path=/var/lib/pgbackrest --remote-type=repo --repo=1 --process=1 info:remote"
    )
    begun = f"runuser -u postgres -- sh -c 'sleep 20 | ssh -T {place} \"{session}\"' >/dev/null 2>&1 &"
    production.database.run(begun)
    found = 'for i in $(seq 50); do pid=$(pgrep -u pgbackrest-prod1 -x pgbackrest | head -1); [ -n "$pid" ] && break;'
    limits = production.peer.run(f"{found} sleep 0.2; done; grep processes /proc/$pid/limits").stdout.split()
    assert limits[2:4] == ["512", "512"], limits


def test_restore_test_leaves_nothing_in_its_sandbox(production: Production) -> None:
    assert production.database.run(f"test -e {SCRATCH}").returncode == 1
