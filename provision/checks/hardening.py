"""How a hardened server looks, asked of the server itself: each check is a query for what is wrong. Read-only.

Needs pg_monitor at least; what only a superuser may see is named as unseen for others. Sources: the manual's chapters
on client authentication, roles and privileges, and CREATE FUNCTION ("Writing SECURITY DEFINER Functions Safely").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from provision.checks.finding import Finding, Severity, psql
from provision.database import Connection, guarded


@dataclass(frozen=True)
class Check:
    """`query` gives a row for each thing that is wrong: a text, and the statement that mends it where it knows one.

    `fix` stands in where it does not; `dev` says that development may do it.
    """

    id: str
    area: str
    query: str
    wanted: str
    why: str
    fix: str
    severity: Severity = Severity.WARNING
    dev: bool = False
    safe: bool = False


_SETTING = "SELECT name || ' = ' || setting FROM pg_settings WHERE name = '{name}' AND ({wrong})"


def _setting(name: str, wrong: str) -> str:
    return _SETTING.format(name=name, wrong=wrong)


SITE = "ansible-playbook site.yml -i inventories/prod"
_LISTENS = "SELECT setting FROM pg_settings WHERE name = 'listen_addresses'"
_RULE = (
    "SELECT format('pg_hba.conf line %s: %s %s %s %s %s', line_number, type, database, user_name, address, auth_method)"
)

CHECKS = (
    Check(
        "checksums", "storage", _setting("data_checksums", "setting <> 'on'"),
        "data_checksums on", "a page that the disk damaged is read as if it were right",
        "pg_checksums --enable on the stopped cluster",
    ),
    Check(
        "durability", "storage",
        "SELECT name || ' = ' || setting, 'ALTER SYSTEM RESET ' || name FROM pg_settings"
        " WHERE (name IN ('fsync', 'full_page_writes') AND setting = 'off')"
        " OR (name IN ('ignore_checksum_failure', 'zero_damaged_pages', 'ignore_system_indexes') AND setting = 'on')",
        "fsync and full_page_writes on, damage reported and not passed over",
        "a power cut can leave a cluster that does not start, and damage spreads unseen",
        "ALTER SYSTEM RESET fsync; ALTER SYSTEM RESET full_page_writes; SELECT pg_reload_conf()", Severity.CRITICAL,
    ),
    Check(
        "scram", "access", _setting("password_encryption", "setting <> 'scram-sha-256'"),
        "password_encryption scram-sha-256", "md5 verifiers can be replayed", f"{SITE} --tags postgresql",
    ),
    Check(
        "verifiers", "access",
        "SELECT 'role ' || rolname || ' has a password that is not SCRAM' FROM pg_authid"
        " WHERE rolpassword IS NOT NULL AND rolpassword NOT LIKE 'SCRAM-SHA-256$%'",
        "SCRAM verifiers alone", "an md5 verifier is as good as the password", f"{SITE} --tags database",
        Severity.CRITICAL,
    ),
    Check(
        "listen", "access", _setting("listen_addresses", "setting ~ '(^|,)\\s*(\\*|0\\.0\\.0\\.0|::)\\s*(,|$)'"),
        "the addresses that applications use", "a new network card is a new door",
        "name them in postgresql_listen_addresses", dev=True,
    ),
    Check(
        "tls", "access", _setting("ssl", "setting = 'off'"),
        "ssl on", "rows travel in the clear, and nobody knows to whom", f"{SITE} --tags tls,postgresql", dev=True,
    ),
    Check(
        "tls-version", "access",
        _setting("ssl_min_protocol_version", "setting NOT IN ('TLSv1.2', 'TLSv1.3')"),
        "TLSv1.2 or newer", "1.0 and 1.1 are broken (RFC 8996)", f"{SITE} --tags postgresql",
    ),
    Check(
        "hba-plain", "access",
        "SELECT format('pg_hba.conf line %s lets %s in from %s without TLS', r.line_number, r.user_name, r.address)"
        " FROM pg_hba_file_rules r WHERE r.type IN ('host', 'hostnossl') AND r.auth_method <> 'reject'"
        " AND r.address NOT IN ('127.0.0.1', '::1', 'samehost') AND NOT EXISTS (SELECT FROM pg_hba_file_rules e"
        " WHERE e.line_number < r.line_number AND e.type IN ('host', 'hostnossl') AND e.auth_method = 'reject'"
        " AND e.address = 'all' AND 'all' = ANY (e.user_name) AND 'all' = ANY (e.database))",
        "hostssl for everybody from outside", "rows travel in the clear", f"{SITE} --tags tls,postgresql", dev=True,
    ),
    Check(
        "hba-methods", "access",
        _RULE + " FROM pg_hba_file_rules WHERE auth_method IN ('trust', 'password', 'md5', 'ident')",
        "scram-sha-256, peer, cert or reject", "a method that lets in whom it does not know, or shows the password",
        f"{SITE} --tags postgresql", Severity.CRITICAL,
    ),
    Check(
        "hba-everywhere", "access",
        "SELECT format('pg_hba.conf line %s lets %s in from %s', line_number, user_name, address)"
        " FROM pg_hba_file_rules WHERE auth_method <> 'reject' AND type LIKE 'host%'"
        " AND (address IN ('0.0.0.0', '::', 'all') AND coalesce(netmask, '0.0.0.0') IN ('0.0.0.0', '::'))",
        "networks by name", "the whole internet may try passwords", "postgresql_allowed_networks", Severity.CRITICAL,
    ),
    Check(
        "hba-superuser", "access",
        "SELECT format('pg_hba.conf line %s lets a superuser in over TCP before anything rejects it', r.line_number)"
        " FROM pg_hba_file_rules r WHERE r.type LIKE 'host%' AND r.auth_method <> 'reject'"
        " AND (r.user_name && ARRAY['all', 'postgres']) AND NOT EXISTS (SELECT FROM pg_hba_file_rules e"
        " WHERE e.line_number < r.line_number AND e.type = 'host' AND e.auth_method = 'reject'"
        " AND e.address = 'all' AND 'postgres' = ANY (e.user_name))",
        "superusers over the socket alone", "a guessed password is the whole host", f"{SITE} --tags postgresql",
        Severity.CRITICAL,
    ),
    Check(
        "hba-errors", "access",
        "SELECT format('pg_hba.conf line %s: %s', line_number, error) FROM pg_hba_file_rules WHERE error IS NOT NULL",
        "a file that the server can read", "the server keeps the last good rules, and does not start again with these",
        f"{SITE} --tags postgresql", Severity.CRITICAL,
    ),
    Check(
        "superusers", "roles",
        "SELECT 'role ' || rolname || ' is a superuser', format('ALTER ROLE %I NOSUPERUSER', rolname)"
        " FROM pg_roles WHERE rolsuper AND oid <> 10",
        "one superuser, the system's own", "a superuser reads every file and runs programs",
        "ALTER ROLE ... NOSUPERUSER", Severity.CRITICAL,
    ),
    Check(
        "limits", "roles",
        "SELECT 'role ' || rolname || ' has no connection limit', format('ALTER ROLE %I CONNECTION LIMIT 10', rolname)"
        " FROM pg_roles"
        " WHERE rolcanlogin AND NOT rolsuper AND rolconnlimit < 0",
        "a limit for each login role", "one runaway client takes every connection", f"{SITE} --tags database", dev=True,
    ),
    Check(
        "timeouts", "roles",
        "SELECT format('role %s has no %s', r.rolname, w) FROM pg_roles r, unnest(ARRAY['statement_timeout',"
        " 'lock_timeout', 'idle_in_transaction_session_timeout']) w WHERE r.rolname ~ '_(app|readonly)$'"
        " AND r.rolcanlogin AND NOT EXISTS (SELECT FROM pg_db_role_setting s, unnest(s.setconfig) e"
        " WHERE s.setrole = r.oid AND s.setdatabase = 0 AND e LIKE w || '=%' AND e !~ '=0+ *[a-z]*$')",
        "time-outs for the application and the read-only role", "a forgotten transaction stops VACUUM and migrations",
        f"{SITE} --tags database", dev=True,
    ),
    Check(
        "public-create", "privileges",
        "SELECT 'PUBLIC may create in schema public', 'REVOKE CREATE ON SCHEMA public FROM PUBLIC' FROM pg_namespace n,"
        " aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) x"
        " WHERE n.nspname = 'public' AND x.grantee = 0 AND x.privilege_type = 'CREATE'",
        "no CREATE for PUBLIC", "anybody can plant a function that others run", f"{SITE} --tags database",
    ),
    Check(
        "public-connect", "privileges",
        "SELECT 'PUBLIC may ' || x.privilege_type || ' database ' || d.datname,"
        " format('REVOKE %s ON DATABASE %I FROM PUBLIC', x.privilege_type, d.datname) FROM pg_database d,"
        " aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) x"
        " WHERE d.datname = current_database() AND x.grantee = 0",
        "the roles that are named", "every login role of the cluster gets in", f"{SITE} --tags database",
    ),
    Check(
        "security-definer", "privileges",
        "SELECT format('function %s', p.oid::regprocedure),"
        " format('ALTER FUNCTION %s SET search_path = pg_catalog, public', p.oid::regprocedure)"
        " FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
        " WHERE p.prosecdef AND n.nspname NOT IN ('pg_catalog', 'information_schema')"
        " AND NOT coalesce(p.proconfig::text, '') LIKE '%search_path=%'",
        "a pinned search_path", "whoever makes a function of the same name runs as the owner",
        "ALTER FUNCTION ... SET search_path = pg_catalog, public", Severity.CRITICAL,
    ),
    Check(
        "logging", "logs",
        "SELECT name || ' = ' || setting FROM pg_settings WHERE name IN ('log_connections', 'log_disconnections',"
        " 'log_lock_waits') AND setting IN ('off', '')",
        "connections and lock waits in the log", "nobody can tell later who was there", f"{SITE} --tags postgresql",
    ),
    Check(
        "log-statement", "logs", _setting("log_statement", "setting NOT IN ('ddl', 'mod')"),
        "ddl", "none leaves no trace of schema changes; all writes what agents remember into the log",
        f"{SITE} --tags postgresql",
    ),
    Check(
        "archiving", "backup",
        "SELECT coalesce('archiving fails since ' || last_failed_time, 'nothing was archived yet')"
        " FROM pg_stat_archiver WHERE (SELECT setting FROM pg_settings WHERE name = 'archive_mode') <> 'off'"
        " AND (last_failed_time > coalesce(last_archived_time, '-infinity') OR last_archived_time IS NULL)"
        " UNION ALL SELECT 'archive_mode = off' FROM pg_settings WHERE name = 'archive_mode' AND setting = 'off'",
        "WAL that is archived", "no point in time can be restored, and the disk fills", "provision backup status",
        Severity.CRITICAL, dev=True,
    ),
    Check(
        "pending-restart", "settings", "SELECT name || ' waits for a restart' FROM pg_settings WHERE pending_restart",
        "settings that are in force", "the next restart changes more than is expected",
        f"{SITE} --tags postgresql -e postgresql_restart_allowed=true",
    ),
    Check(
        "shadowed", "settings",
        "SELECT DISTINCT name || ' is set by ALTER SYSTEM to ' || coalesce(setting, ''),"
        " format('ALTER SYSTEM RESET %s', name)"
        " FROM pg_file_settings WHERE sourcefile LIKE '%postgresql.auto.conf' ORDER BY 1",
        "settings from our own file", "what inventories say is not what runs", "ALTER SYSTEM RESET with its name",
    ),
    Check(
        "extension-files", "extensions",
        "SELECT format('extension %s is %s, its files are %s', e.extname, e.extversion, a.default_version)"
        " FROM pg_extension e JOIN pg_available_extensions a ON a.name = e.extname"
        " WHERE a.default_version <> e.extversion",
        "the same version in the database and on disk", "the library runs with functions of another version",
        f"{SITE} --tags pgvector,database",
    ),
    Check(
        "vector", "extensions",
        "SELECT 'type vector does not exist in ' || current_database()"
        " WHERE NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'vector')",
        "extension vector", "every search fails", f"{SITE} --tags pgvector,database", Severity.CRITICAL,
    ),
    Check(
        "invalid-index", "schema",
        "SELECT format('index %s is INVALID', indexrelid::regclass),"
        " CASE WHEN indexrelid::regclass::text ~ '_cc(new|old)[0-9]*$' THEN 'DROP INDEX CONCURRENTLY '"
        " ELSE 'REINDEX INDEX CONCURRENTLY ' END || indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid",
        "valid indexes", "it costs every write and serves no search", "DROP INDEX CONCURRENTLY, then build it again",
    ),
)  # fmt: skip


def examine(connection: Connection, checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """Run every check, and give what is wrong; what this role may not see comes as unseen. Changes nothing."""
    dev = not guarded(connection)
    database = connection.info.dbname
    found = []
    for check in checks:
        severity = Severity.ACCEPTED if dev and check.dev else check.severity
        try:
            rows = connection.execute(check.query.encode()).fetchall()
        except psycopg.errors.InsufficientPrivilege as error:
            severity, rows = Severity.UNSEEN, [(str(error).strip().partition("\n")[0],)]
        seen = "; ".join(str(row[0]) for row in rows[:5]) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
        statements = [str(row[1]) for row in rows if len(row) > 1]
        if any(each.startswith("ALTER SYSTEM") for each in statements):
            statements.append("SELECT pg_reload_conf()")
        fix = psql(database, *statements) if statements else check.fix
        if rows:
            found.append(Finding(check.id, check.area, severity, seen, check.wanted, check.why, fix, check.safe))
    return found
