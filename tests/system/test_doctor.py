"""Damage a production host in many ways: the doctor reports each with a command, and the commands fix it.

The host is shared, so all damage is done at once, then checked, fixed by the printed commands, and checked again.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Any

import pytest

from tests.system.production import Production

CONF = "/etc/postgresql/17/main"
DATA = "/var/lib/postgresql/17/main"
SITE = re.compile(r"ansible-playbook site\.yml (?:-i \S+ )+--limit prod1 --tags (\S+)")
# Known defects of Debian 13's pgvector 0.8.0; the tests' inventory does not accept them.
KNOWN = {"CVE-2026-3172", "pgvector-hnsw-vacuum"}


@dataclass(frozen=True)
class Damage:
    """The damage, the check that reports it, part of the text, and the command that cleans up where no fix does."""

    name: str
    done: str
    check: str
    seen: str
    clean: str = ""

    def __str__(self) -> str:
        return self.name


def sql(statement: str, database: str = "minion") -> str:
    return f'runuser -u postgres -- psql -qX -v ON_ERROR_STOP=1 -d {database} -c "{statement}"'


DAMAGES = (
    Damage(
        "settings file edited",
        f"echo '# by hand' >> {CONF}/conf.d/50-provision.conf",
        "files-changed",
        "conf.d/50-provision.conf was changed by hand",
    ),
    Damage("ALTER SYSTEM", sql("ALTER SYSTEM SET work_mem = '9MB'"), "shadowed", "work_mem is set by ALTER SYSTEM"),
    Damage(
        "restart pending",
        sql("ALTER SYSTEM SET max_connections = 77"),
        "pending-restart",
        "max_connections waits for a restart",
    ),
    Damage(
        "checksum failures ignored",
        sql("ALTER SYSTEM SET ignore_checksum_failure = on"),
        "durability",
        "ignore_checksum_failure = on",
    ),
    Damage(
        "timer stopped",
        "systemctl stop provision-backup-incr.timer",
        "timers",
        "provision-backup-incr.timer is stopped",
    ),
    Damage(
        "timer disabled",
        "systemctl disable -q provision-maintain-retention.timer",
        "timers",
        "provision-maintain-retention.timer does not start at boot",
    ),
    Damage(
        "timer with cron's syntax",
        "sed -i 's/^OnCalendar=.*/OnCalendar=0 3 * * */' /etc/systemd/system/provision-maintain-sessions.timer;"
        " systemctl daemon-reload",
        "timer-elapse",
        "provision-maintain-sessions.timer cannot be loaded (bad-setting)",
    ),
    Damage(
        "timer whose day never comes",
        "sed -i 's/^OnCalendar=.*/OnCalendar=*-02-30/' /etc/systemd/system/provision-maintain-index.timer;"
        " systemctl daemon-reload",
        "timer-elapse",
        "provision-maintain-index.timer has no next elapse time",
    ),
    Damage(
        "certificate expired",
        # Self-signed with its own key: PostgreSQL loads it without a warning.
        "cd /etc/provision/tls && openssl req -x509 -new -key server.key -subj /CN=prod1 -not_before 20240101000000Z"
        " -not_after 20240102000000Z -out /tmp/expired.crt && cat /tmp/expired.crt > server.crt; rm /tmp/expired.crt",
        "certificate",
        "expired on 2024-01-02",
    ),
    Damage(
        "unit failed",
        "mv /usr/local/bin/provision /usr/local/bin/away; systemctl start provision-maintain@sessions;"
        " mv /usr/local/bin/away /usr/local/bin/provision",
        "units-failed",
        "provision-maintain@sessions.service failed",
    ),
    Damage(
        "pg_hba without a password",
        f"echo 'host all all 192.0.2.0/24 trust' >> {CONF}/pg_hba.conf",
        "hba-methods",
        "trust",
    ),
    Damage(
        "pg_hba open to all",
        f"echo 'host all all 0.0.0.0/0 scram-sha-256' >> {CONF}/pg_hba.conf",
        "hba-everywhere",
        "allows {all} from 0.0.0.0",
    ),
    Damage(
        "grant revoked",
        sql("REVOKE INSERT ON memories FROM minion_app"),
        "access-drift",
        "table memories: GRANT INSERT TO minion_app",
    ),
    Damage(
        "grant too many",
        sql("GRANT DELETE ON memories TO minion_readonly"),
        "access-drift",
        "table memories: REVOKE DELETE FROM minion_readonly",
    ),
    Damage("login forbidden", sql("ALTER ROLE minion_app NOLOGIN"), "access-drift", "role minion_app: LOGIN"),
    Damage(
        "time-out gone",
        sql("ALTER ROLE minion_readonly RESET statement_timeout"),
        "access-drift",
        "role minion_readonly: statement_timeout = 30s",
    ),
    Damage(
        "superuser",
        sql("CREATE ROLE king LOGIN SUPERUSER CONNECTION LIMIT 1"),
        "superusers",
        "role king is a superuser",
        sql("DROP ROLE king"),
    ),
    Damage(
        "CREATE for PUBLIC",
        sql("GRANT CREATE ON SCHEMA public TO PUBLIC"),
        "public-create",
        "PUBLIC may create in schema public",
    ),
    Damage(
        "CONNECT for PUBLIC",
        sql("GRANT CONNECT ON DATABASE minion TO PUBLIC"),
        "public-connect",
        "PUBLIC may CONNECT database minion",
    ),
    Damage(
        "function as the owner",
        sql("CREATE FUNCTION trap() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'"),
        "security-definer",
        "function public.trap()",
        sql("DROP FUNCTION trap()"),
    ),
    Damage("HNSW index dropped", sql("DROP INDEX memories_embedding_idx"), "hnsw-missing", "has no HNSW index"),
    Damage(
        "index INVALID",
        sql("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'metrics_timestamp_idx'::regclass"),
        "invalid-index",
        "index public.metrics_timestamp_idx is INVALID",
    ),
    Damage(
        "trigger disabled",
        sql("ALTER TABLE agents DISABLE TRIGGER agents_set_updated_at"),
        "triggers-disabled",
        "trigger agents_set_updated_at of table public.agents is disabled",
    ),
    Damage(
        "extension dropped",
        sql("DROP EXTENSION pg_stat_statements"),
        "extensions-missing",
        "extension pg_stat_statements is missing",
    ),
    Damage("migration dirty", sql("UPDATE schema_migrations SET dirty = true"), "migrations-dirty", "version 2"),
    Damage("data directory opened", f"chmod 0750 {DATA}", "private-modes", f"{DATA} is postgres:postgres 0750"),
    Damage(
        "passphrase readable",
        "chmod 0644 /etc/pgbackrest/conf.d/50-provision-secrets.conf",
        "private-modes",
        "50-provision-secrets.conf is postgres:postgres 0644",
    ),
    Damage(
        "file's mode",
        "chmod 0666 /etc/provision/plan.json",
        "file-modes",
        "/etc/provision/plan.json is root:postgres 0666",
    ),
    Damage("file's owner", f"chown root {CONF}/pg_ident.conf", "file-modes", "pg_ident.conf is root:postgres"),
    Damage(
        "file removed",
        "rm /etc/postgresql-common/createcluster.d/50-provision.conf",
        "files-missing",
        "createcluster.d/50-provision.conf is gone",
    ),
    Damage("log opened", "chmod 0644 /var/log/postgresql/*.log", "log-modes", "is readable by every user"),
    Damage(
        "watch's evidence old",
        'sed -i \'s/"when": "20[0-9-]*/"when": "2020-01-01/\' /var/lib/provision/backup.json',
        "backup",
        "the backup watch ran",
    ),
    Damage(
        "maintenance failed",
        'echo \'{"jobs": {"retention": {"outcome": "failed", "why": "deadlock"}}}\' > /var/lib/provision/maintain.json',
        "maintenance",
        "retention failed: deadlock",
    ),
    Damage(
        "disk full",
        # /dev is the only small file system of a container.
        "mv /var/backups/provision /var/backups/away; mkdir /dev/small; ln -s /dev/small /var/backups/provision;"
        " head -c 100M /dev/zero > /dev/small/full 2>/dev/null; true",
        "disk",
        "the file system of /var/backups/provision has 0 % of its space left",
        "rm -r /var/backups/provision /dev/small; mv /var/backups/away /var/backups/provision",
    ),
    Damage(
        "package replaced",
        'sed -i \'s/"postgresql-common": "/&0~/\' /var/lib/provision/verified.json',
        "packages",
        "package postgresql-common is",
    ),
)


@dataclass
class Campaign:
    """The findings before, during and after the damage, and the fixes that failed."""

    before: list[dict[str, Any]]
    broken: list[dict[str, Any]]
    after: list[dict[str, Any]]
    failed: dict[str, str]
    seconds: float

    def of(self, damage: Damage) -> list[dict[str, Any]]:
        return [each for each in self.broken if each["id"] == damage.check and damage.seen in each["seen"]]


def ask(production: Production) -> list[dict[str, Any]]:
    done = production.database.run("provision doctor --json")
    assert done.returncode in (0, 3), done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    assert done.returncode == (3 if any(each["severity"] in ("critical", "warning") for each in found) else 0)
    return found


@pytest.fixture(scope="module")
def campaign(production: Production) -> Campaign:
    host = production.database
    begun = time.monotonic()
    # The first backup runs in the background; its alarms must not be among the findings.
    host.run(
        "while systemctl is-active -q 'provision-backup@full'; do sleep 0.5; done;"
        " systemctl start provision-backup-watch"
    )
    before = ask(production)
    failed = {}
    try:
        for damage in DAMAGES:
            done = host.run(damage.done)
            if done.returncode and "unit failed" not in damage.name:
                failed[f"breaking: {damage}"] = done.stderr
        host.run("systemctl reload postgresql@17-main; sleep 1")
        broken = ask(production)
    finally:
        for damage in DAMAGES:
            if damage.name == "disk full":
                host.run(damage.clean)
    commands = dict.fromkeys(each["fix"] for each in broken if each["severity"] in ("critical", "warning"))
    tags = set()
    for command in commands:
        site = SITE.search(command)
        if site:
            tags |= set(site[1].split(","))
        elif command.startswith(("runuser", "systemctl", "chown", "chmod")):
            done = host.run(command)
            if done.returncode:
                failed[command] = done.stdout + done.stderr
    run = production.play("--limit", "prod1", "--tags", ",".join(sorted(tags)))
    if run.code:
        failed["site.yml"] = run.output
    for damage in DAMAGES:
        if damage.clean and damage.name != "disk full":
            host.run(damage.clean)
    after = ask(production)
    return Campaign(before, broken, after, failed, time.monotonic() - begun)


def test_nothing_is_reported_on_an_untouched_host(campaign: Campaign) -> None:
    assert {each["seen"].partition(":")[0] for each in campaign.before} == KNOWN


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_damage_is_reported_with_its_fix(campaign: Campaign, damage: Damage) -> None:
    named = campaign.of(damage)
    assert named, [f"{each['id']}: {each['seen']}" for each in campaign.broken]
    assert all(each["fix"] and each["why"] and each["expected"] for each in named)
    assert named[0]["severity"] in ("critical", "warning")


def test_printed_commands_fix_everything(campaign: Campaign) -> None:
    assert campaign.failed == {}
    assert campaign.after == campaign.before
    print(f"{len(DAMAGES)} damages in {campaign.seconds:.0f} s")


def test_a_stopped_server_is_reported_and_fix_starts_it(production: Production) -> None:
    host = production.database
    host.run("systemctl stop postgresql@17-main")
    try:
        found = {each["id"]: each for each in ask(production)}
        assert found["service"]["fix"] == "systemctl start postgresql@17-main.service"
        assert "postgresql@17-main.service is inactive" in found["reach-socket"]["seen"]
        fixed = host.run("provision doctor --fix")
        assert "done: systemctl start postgresql@17-main.service" in fixed.stderr
        assert "reach-socket" not in fixed.stdout
    finally:
        host.run("systemctl start postgresql@17-main")


def test_a_planted_link_is_reported_and_its_target_is_unchanged(production: Production) -> None:
    host, file, log = production.database, f"{CONF}/pg_ident.conf", "/var/log/postgresql/planted.log"
    modes = "stat -c '%U:%G %a' /etc/shadow /etc/passwd"
    before = host.run(modes).stdout
    planted = host.run(
        f"runuser -u postgres -- sh -c 'mv {file} {file}.away && ln -s /etc/shadow {file} && ln -s /etc/passwd {log}'"
    )
    assert planted.returncode == 0, planted.stderr
    try:
        said = host.run("provision doctor --fix")
        assert f"{file} is a link of postgres to /etc/shadow" in said.stdout
        assert (said.returncode, host.run(modes).stdout) == (3, before)
    finally:
        host.run(f"mv {file}.away {file}; rm {log}")


def test_a_watch_without_evidence_is_reported_once_it_is_overdue(production: Production) -> None:
    host, plan, seen = production.database, "/etc/provision/plan.json", "/var/lib/provision/backup.json"
    host.run(f"systemctl stop provision-backup-watch.timer; mv {seen} {seen}.away; touch {plan}")
    try:
        assert "backup" not in {each["id"] for each in ask(production)}
        host.run(f"touch -d '1 hour ago' {plan}")
        assert "the backup watch has left no evidence" in {each["seen"] for each in ask(production)}
    finally:
        host.run(f"mv {seen}.away {seen}; systemctl start provision-backup-watch.timer")


def test_missing_privileges_of_the_owner_are_restored_by_the_fix(production: Production) -> None:
    host = production.database
    host.run(sql("REVOKE CREATE ON SCHEMA public FROM minion"))
    (found,) = [each for each in ask(production) if each["id"] == "schema-permission"]
    assert found["seen"] == "role minion may not create in schema public"
    assert "permission denied for schema public" in found["why"]
    assert host.run(found["fix"]).returncode == 0
    assert "schema-permission" not in {each["id"] for each in ask(production)}


def test_maintenance_runs_by_its_own_unit_and_leaves_evidence(production: Production) -> None:
    host = production.database
    host.run(sql("INSERT INTO metrics (name, value, timestamp) VALUES ('old', 1, now() - interval '31 days')"))
    told = json.loads(host.run("provision maintain retention --dry-run --json").stdout)
    assert {"what": "metrics", "rows": 1} in told[0]["steps"]
    assert host.run("systemctl start provision-maintain@retention").returncode == 0
    kept = json.loads(host.run("cat /var/lib/provision/maintain.json").stdout)["jobs"]["retention"]
    assert kept["outcome"] == "done"
    assert [step["rows"] for step in kept["steps"] if step["what"] == "metrics"] == [1]
    assert "metrics: rows 1" in host.run("journalctl -u provision-maintain@retention -o cat").stdout
