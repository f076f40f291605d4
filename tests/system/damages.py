"""How to break a prod host for each check, so that the command printed for it can be pasted and the check asked again.

`DAMAGES` are done together, `ALONE` one by one, because they stop a server or hide each other. `UNTESTED` says of each
other check why its fix is not pasted by tests/system/test_doctor.py. A contract test compares them with the registry.
"""

from __future__ import annotations

from dataclasses import dataclass

CONF = "/etc/postgresql/17/main"
DATA = "/var/lib/postgresql/17/main"
POOLER = "/etc/pgbouncer/provision"
MIGRATIONS = "/usr/local/share/provision/migrations"


@dataclass(frozen=True)
class Damage:
    """The damage, the check that reports it, part of the text, and the command that cleans up where no fix does.

    `choice` begins the alternative in the fix's comment that a person would choose; `answers` are typed by that person.
    `page`: the fix shows the cause, and `clean` removes it. `url`: the check is asked with `doctor --database URL`.
    """

    name: str
    done: str
    check: str
    seen: str
    clean: str = ""
    choice: str = ""
    answers: str = ""
    page: bool = False
    url: str = ""

    def __str__(self) -> str:
        return self.name


def sql(statement: str, database: str = "minion") -> str:
    return f'runuser -u postgres -- psql -qX -v ON_ERROR_STOP=1 -d {database} -c "{statement}"'


def system(setting: str) -> str:
    return sql(f"ALTER SYSTEM SET {setting}")


DAMAGES = (
    Damage(
        "settings file edited",
        f"echo '# by hand' >> {CONF}/conf.d/50-provision.conf",
        "files-changed",
        "conf.d/50-provision.conf was changed by hand",
    ),
    Damage("ALTER SYSTEM", system("work_mem = '9MB'"), "shadowed", "is set by ALTER SYSTEM to"),
    Damage(
        "restart pending",
        system("max_connections = 77"),
        "pending-restart",
        "max_connections waits for a restart",
    ),
    Damage(
        "checksum failures ignored",
        system("ignore_checksum_failure = on"),
        "durability",
        "ignore_checksum_failure = on",
    ),
    Damage("MD5 passwords", system("password_encryption = 'md5'"), "scram", "password_encryption = md5"),
    Damage(
        "TLS 1.1",
        system("ssl_min_protocol_version = 'TLSv1.1'"),
        "tls-version",
        "ssl_min_protocol_version = TLSv1.1",
    ),
    Damage("every statement logged", system("log_statement = 'all'"), "log-statement", "log_statement = all"),
    Damage("connections not logged", system("log_disconnections = off"), "logging", "log_disconnections = off"),
    Damage(
        "setting of ours set again",
        f"echo \"log_checkpoints = 'off'\" > {CONF}/conf.d/98-by-hand.conf; chmod 0644 {CONF}/conf.d/98-by-hand.conf",
        "overridden",
        "again in /etc/postgresql/17/main/conf.d/98-by-hand.conf line 1, and runs as off",
        f"rm {CONF}/conf.d/98-by-hand.conf",
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
        "pg_hba without TLS",
        f"sed -i '1i host all all 198.51.100.0/24 scram-sha-256' {CONF}/pg_hba.conf",
        "hba-plain",
        "allows {all} from 198.51.100.0 without TLS",
    ),
    Damage(
        "pg_hba for superusers over TCP",
        f"sed -i '1i hostssl all postgres 203.0.113.7/32 scram-sha-256' {CONF}/pg_hba.conf",
        "hba-superuser",
        "allows a superuser over TCP",
    ),
    Damage(
        "pg_hba with an error",
        f"echo 'nonsense all all' >> {CONF}/pg_hba.conf",
        "hba-errors",
        "invalid connection type",
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
        "role without a limit", sql("CREATE ROLE crowd LOGIN"), "limits", "role crowd has no connection limit",
        sql("DROP ROLE crowd"),
    ),
    Damage(
        "application without time-outs",
        sql("CREATE ROLE other_app LOGIN CONNECTION LIMIT 1"),
        "timeouts",
        "role other_app has no idle_in_transaction_session_timeout, lock_timeout, statement_timeout",
        sql("DROP ROLE other_app"),
    ),
    Damage(
        "MD5 verifier",
        f"{sql('CREATE ROLE old LOGIN CONNECTION LIMIT 1')};"
        " runuser -u postgres -- psql -qX -d minion -c \"SET password_encryption = 'md5'\""
        " -c \"ALTER ROLE old PASSWORD 'x'\"",
        "verifiers",
        "role old has a password that is not SCRAM",
        sql("DROP ROLE old"),
        answers="a new one\na new one\n",
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
    Damage(
        "audit trigger disabled",
        sql("ALTER EVENT TRIGGER pgaudit_ddl_command_end DISABLE"),
        "pgaudit",
        "event triggers are disabled: pgaudit_ddl_command_end",
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
        "constraint not validated",
        sql("ALTER TABLE tools ADD CONSTRAINT named CHECK (name <> 'x') NOT VALID"),
        "constraints-unchecked",
        "constraint named of table public.tools is not validated",
        sql("ALTER TABLE tools DROP CONSTRAINT named"),
    ),
    Damage(
        "extension dropped",
        sql("DROP EXTENSION pg_stat_statements"),
        "extensions-missing",
        "extension pg_stat_statements is missing",
    ),
    Damage(
        "extension older than its files",
        sql("CREATE EXTENSION pg_trgm VERSION '1.5'"),
        "extension-files",
        "extension pg_trgm of database minion is 1.5",
        sql("DROP EXTENSION pg_trgm"),
    ),
    Damage(
        "migration dirty",
        sql("UPDATE schema_migrations SET dirty = true"),
        "migrations-dirty",
        "version 2",
        choice="if all of it is: ",
    ),
    Damage(
        "migration edited on the host",
        # Not the up file: while it is damaged, the fix of the dirty version would record its checksum.
        f"echo '-- by hand' >> $(ls {MIGRATIONS}/*.down.sql | head -1)",
        "files-changed",
        f"{MIGRATIONS}/001",
    ),
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
    Damage(
        "manifest damaged",
        "echo '{' > /etc/provision/files.d/monitoring.json",
        "manifest-damaged",
        "/etc/provision/files.d/monitoring.json cannot be read",
    ),
    Damage("log opened", "chmod 0644 /var/log/postgresql/*.log", "log-modes", "is readable by every user"),
    Damage(
        "watch's evidence old",
        # Every five minutes the timer would write a new one.
        "systemctl stop provision-backup-watch.timer provision-backup-watch.service;"
        ' sed -i \'s/"when": "20[0-9-]*/"when": "2020-01-01/\' /var/lib/provision/backup.json',
        "backup",
        "the backup watch ran",
    ),
    Damage(
        "restore test failed",
        "echo '{\"when\": \"2026-11-24T04:30:00+00:00\", \"passed\": false, \"failure\": \"no space\"}'"
        " > /var/lib/provision/drill.json",
        "drill",
        "the last restore test failed: no space",
    ),
    Damage(
        "restore test of a dump failed",
        "systemctl start provision-backup@logical; echo '{\"dump\": \"x\", \"passed\": false, \"failure\": \"bad\"}'"
        " > /var/lib/provision/dump-drill.json",
        "dump-drill",
        "the restore test of dump x failed: bad",
    ),
    Damage(
        "maintenance failed",
        'echo \'{"jobs": {"retention": {"outcome": "failed", "why": "deadlock"}}}\' > /var/lib/provision/maintain.json',
        "maintenance",
        "retention failed: deadlock",
    ),
    Damage(
        "scratch database left",
        f"{sql('CREATE DATABASE minion_verify_0123456789ab', 'postgres')}; touch -d '2 days ago' {DATA}/base/$("
        "runuser -u postgres -- psql -XAtc \"SELECT oid FROM pg_database WHERE datname LIKE 'minion_verify%'\""
        ")/PG_VERSION",
        "scratch-databases",
        "database minion_verify_0123456789ab was left by a killed command",
    ),
    Damage(
        "slot forgotten",
        sql("SELECT pg_create_physical_replication_slot('gone', true)")
        + "; for i in $(seq 17); do "
        + sql("SELECT pg_logical_emit_message(false, 'x', 'y'), pg_switch_wal()")
        + " >/dev/null; done",
        "replication-slots",
        "physical slot gone has no consumer and keeps ",
    ),
    Damage(
        "disk full",
        # /dev is the only small file system of a container.
        "mv /var/backups/provision /var/backups/away; mkdir /dev/small; ln -s /dev/small /var/backups/provision;"
        " head -c 100M /dev/zero > /dev/small/full 2>/dev/null; true",
        "disk",
        "the file system of /var/backups/provision has 0 % of its space left",
        "rm -r /var/backups/provision /dev/small; mv /var/backups/away /var/backups/provision",
        page=True,
    ),
    Damage(
        "package replaced",
        'sed -i \'s/"postgresql-common": "/&0~/\' /var/lib/provision/verified.json',
        "packages",
        "package postgresql-common is",
    ),
    Damage("firewall flushed", "nft delete table inet provision", "firewall", "no table inet provision"),
    Damage("pooler's file opened", f"chmod 0644 {POOLER}/hba.conf", "pooler-files", f"{POOLER}/hba.conf is 0644"),
    *(
        Damage(name, f"echo '{line}' >> {POOLER}/tls.ini", check, seen)
        for name, line, check, seen in (
            ("pooler without TLS", "client_tls_sslmode = allow", "pooler-client-tls", "client_tls_sslmode = allow"),
            ("pooler with TLS 1.0", "client_tls_protocols = all", "pooler-tls-version", "client_tls_protocols = all"),
            ("pooler with clear passwords", "auth_type = plain", "pooler-auth-type", "auth_type = plain"),
            ("pooler that finds superusers", "auth_query = SELECT usename, passwd FROM pg_shadow WHERE usename = $1",
             "pooler-auth-query", "auth_query = SELECT usename, passwd FROM pg_shadow"),
            ("pooler that trusts servers", "server_tls_sslmode = require", "pooler-server-tls", "without verify-full"),
            ("pooler with administrators", "admin_users = minion", "pooler-admins", "admin_users = minion"),
            ("pooler where clients wait for ever", "query_wait_timeout = 0", "pooler-wait", "query_wait_timeout = 0"),
        )
    ),
    Damage(
        "pooler with a password in a file",
        f"echo 'scratch = host=127.0.0.1 password=x' >> {POOLER}/databases.ini; systemctl reload pgbouncer",
        "pooler-secrets",
        "scratch has a password",
    ),
)  # fmt: skip

ALONE = (
    Damage(
        "server stopped",
        "systemctl stop postgresql@17-main",
        "service",
        "postgresql@17-main.service is down",
    ),
    Damage("server unreachable", "systemctl stop postgresql@17-main", "reach-socket", "postgresql@17-main.service is"),
    Damage(
        "sessions of administrators redirected",
        sql("ALTER DATABASE minion SET default_transaction_read_only = on", "postgres"),
        "stored-settings",
        'DATABASE "minion" sets default_transaction_read_only = on',
    ),
    Damage("pooler stopped", "systemctl stop pgbouncer", "pooler", "the pooler is down"),
    Damage(
        "server on every interface",
        system("listen_addresses = '*'") + "; systemctl restart postgresql@17-main",
        "listen",
        "listen_addresses = *",
    ),
    Damage(
        "server without TLS", f"{system('ssl = off')}; systemctl reload postgresql@17-main; sleep 1", "tls", "ssl = off"
    ),
    Damage(
        "archiving off",
        f"{system('archive_mode = off')}; systemctl restart postgresql@17-main",
        "archiving",
        "archive_mode = off",
    ),
    Damage(
        "cluster without checksums",
        "systemctl stop postgresql@17-main;"
        f" runuser -u postgres -- /usr/lib/postgresql/17/bin/pg_checksums --disable -D {DATA};"
        " systemctl start postgresql@17-main",
        "checksums",
        "data_checksums = off",
    ),
    Damage(
        "unknown setting in a file",
        f"echo \"no_such_setting = '1'\" > {CONF}/conf.d/99-by-hand.conf; chmod 0644 {CONF}/conf.d/99-by-hand.conf;"
        " systemctl reload postgresql@17-main; sleep 1",
        "not-read",
        "99-by-hand.conf line 1: unrecognized configuration parameter",
        f"rm {CONF}/conf.d/99-by-hand.conf",
    ),
    Damage(
        "pooler on every interface",
        f"echo 'listen_addr = *' >> {POOLER}/tls.ini; systemctl restart pgbouncer",
        "pooler-listen",
        "listen_addr = *",
    ),
    Damage(
        "pooler's socket opened",
        f"echo 'unix_socket_mode = 0777' >> {POOLER}/tls.ini; systemctl restart pgbouncer",
        "pooler-socket",
        "unix_socket_mode = 0777",
    ),
    Damage(
        "port taken",
        "systemctl stop prometheus-node-exporter; systemd-run -q --unit=thief python3 -m http.server 9100"
        " --bind 127.0.0.1; sleep 1; systemctl reset-failed prometheus-node-exporter; true",
        "ports",
        "port 9100 of prometheus-node-exporter.service is held by python3",
    ),
    Damage(
        "connections of a role used up",
        sql("ALTER ROLE minion CONNECTION LIMIT 1", "postgres")
        + "; systemd-run -q --unit=crowd --uid=postgres sh -c 'sleep 120 | psql -d minion -U minion'; sleep 1",
        "connections",
        "role minion uses 1 of its 1 connections, 1 of them idle",
        "systemctl stop crowd",
    ),
    Damage(
        "database closed",
        sql("ALTER DATABASE minion ALLOW_CONNECTIONS false", "postgres"),
        "reach-closed-database",
        "is not currently accepting connections",
    ),
    Damage(
        "login of a role forbidden",
        sql("ALTER ROLE minion NOLOGIN"),
        "reach-nologin",
        "is not permitted to log in",
        url="host=/var/run/postgresql dbname=minion user=minion",
    ),
    Damage(
        "owner may not connect",
        sql("REVOKE CONNECT ON DATABASE minion FROM minion", "postgres"),
        "reach-connect",
        "permission denied for database",
        url="host=/var/run/postgresql dbname=minion user=minion",
    ),
    Damage(
        "server without TLS for a client that requires it",
        f"{system('ssl = off')}; systemctl reload postgresql@17-main; sleep 1",
        "reach-tls-missing",
        "server does not support SSL",
        url="host=127.0.0.1 dbname=minion user=minion sslmode=require",
    ),
    Damage(
        "server stopped, for a client of its port",
        "systemctl stop postgresql@17-main",
        "reach-refused",
        "Connection refused",
        url="host=127.0.0.1 dbname=minion user=minion",
    ),
    Damage(
        "owner may not create",
        sql("REVOKE CREATE ON SCHEMA public FROM minion"),
        "schema-permission",
        "role minion may not create in schema public",
    ),
    Damage(
        "migration pending",
        f"echo 'SELECT 1;' | tee {MIGRATIONS}/900_add_nothing.up.sql > {MIGRATIONS}/900_add_nothing.down.sql",
        "migrations-pending",
        "not applied: 900 add_nothing",
        f"runuser -u postgres -- provision migrate down 1 --path {MIGRATIONS} --yes-destroy minion --without-backup"
        " --database 'host=/var/run/postgresql dbname=minion user=minion'; rm "
        f"{MIGRATIONS}/900_add_nothing.*",
    ),
    Damage(
        "link planted",
        f"runuser -u postgres -- sh -c 'mv {CONF}/pg_ident.conf {CONF}/pg_ident.away && ln -s /etc/shadow"
        f" {CONF}/pg_ident.conf'",
        "links",
        "pg_ident.conf is a link of postgres to /etc/shadow",
        f"rm -f {CONF}/pg_ident.away",
    ),
    Damage(
        "restore of a dump killed",
        'echo \'{"scratch": "minion_restoring_0123456789ab", "oid": 1}\' > /var/lib/provision/restore-dump.json',
        "restore-dump",
        "a restore of a dump was killed",
    ),
)

SHOWN = {
    "reach-certificate": ("host=127.0.0.1 user=minion dbname=minion sslmode=verify-full sslrootcert=/etc/hosts",
                          "notAfter="),
    "reach-closed": ("", "postgresql"),
    "reach-database": ("", "minion"),
    "reach-limit": ("", "usename"),
    "reach-name": ("host=no-such-host.invalid user=minion dbname=minion", ""),
    "reach-password": ("host=127.0.0.1 user=minion_app dbname=minion password=wrong", "the password of minion_app"),
    "reach-pooler": ("", "pgbouncer.service"),
    "reach-starting": ("", "postgresql"),
    "reach-unknown": ("", "checks, "),
}  # fmt: skip
"""Check whose command shows a cause outside of this host or in the client's URL: the URL that leads to the finding,
where the command depends on it, and part of what the command prints."""

UNTESTED = {
    "advisories": "a comment: the remedy is a version or a decision in the inventory",
    "certificate-age": "tests/system/test_tls.py renews a certificate that is due; the command is the same",
    "checksum-failures": "a comment: damaged storage has no command, the page leads through it",
    "command-differs": "tests/system/test_audit.py pastes it",
    "doctor-failed": "tests/system/test_audit.py pastes it",
    "not-converged": "tests/system/test_audit.py pastes it",
    "unreachable": "tests/system/test_audit.py pastes it: it shows the cause, which is outside of the host",
    "huge-pages": "containers share the kernel's huge pages, so a sandbox host has none",
    "kernel": "containers share the kernel's settings, so a sandbox host places none",
    "migrations-differ": "the command shows the difference; whether to restore or to force a file is a decision",
    "migrations-unreadable": "the command shows the version table; which version is right is a decision",
    "cluster": "its findings need several hosts; tests/integration/test_failover.py plays them",
    "fleet-rights": "needs a fleet, and so Citus; tests/fleet/test_fleet.py reports it",
    "fleet-groups": "needs a fleet, and so Citus; tests/fleet/test_fleet.py reports it",
    "prewarm": "the server writes the list again within minutes; tests/integration/test_host_checks.py reports it",
    "pooler-user": "PgBouncer refuses to run as root; the check is for other builds of it",
    "pooler-version": "needs a package of a fixed version, which no archive of the tests has",
    "server-binary": "needs two minor versions of PostgreSQL, which no archive of the tests has",
    "tables-missing": "a comment: the data is lost, the page leads to the backup",
    **dict.fromkeys(
        ("tenant-locks", "tenant-migrations", "tenant-schema", "tenant-size"),
        "no tenant in that host's inventory; tests/integration/test_tenants.py reports each and runs the commands",
    ),
    "updates": "tests/system/test_update.py runs the command; tests/integration/test_host_checks.py reports it",
    "upgrade": "going on, going back or deleting the old cluster is a decision; tests/unit/test_upgrade.py reports it",
    "collation": "a comment: when to rebuild every index is a decision; tests/integration/test_doctor.py reports it",
    "vector": "dropping it drops the data; tests/integration/test_doctor.py reports it",
    "reach-hba": "the command of hba-methods; tests/unit/test_reach.py recognises it",
    "reach-timeout": "tests/system/test_doctor.py pastes it for a server that does not answer",
    "reach-role": "no rule lets a client without its role pass the login; tests/unit/test_reach.py recognises it",
    "reach-tls-required": "a comment: the remedy is in the client's URL",
}  # fmt: skip
"""Check to the reason why its fix is not pasted."""
