"""Hardening of the server, judged by the server's own catalogues. Read-only.

Each check is a query for deviations. Needs pg_monitor at least; for other roles, checks of superuser-only catalogues
are UNSEEN. Sources: the manual's chapters on client authentication, roles and privileges, and CREATE FUNCTION
("Writing SECURITY DEFINER Functions Safely").
"""

from __future__ import annotations

from provision.checks.finding import Severity
from provision.checks.registry import query
from provision.plan import names

_RULE = (
    "SELECT format('pg_hba.conf line %s: %s %s %s %s %s', line_number, type, database, user_name, address, auth_method)"
)


query(
    "checksum-failures",
    "SELECT format('%s: %s damaged pages read, last %s', coalesce(datname, 'shared catalogues'), checksum_failures,"
    " to_char(checksum_last_failure, 'YYYY-MM-DD HH24:MI TZ')) FROM pg_stat_database WHERE checksum_failures > 0",
    area="storage",
    severity=Severity.CRITICAL,
    expected="no page with a wrong checksum",
    why="the storage damages data, and new backups contain the damage",
    fix="# see docs/the-repository-is-damaged.md; after the repair: SELECT pg_stat_reset() in that database",
)

query(
    "verifiers",
    "SELECT 'role ' || rolname || ' has a password that is not SCRAM' FROM pg_authid"
    " WHERE rolpassword IS NOT NULL AND rolpassword NOT LIKE 'SCRAM-SHA-256$%'",
    area="access",
    severity=Severity.CRITICAL,
    expected="SCRAM verifiers only",
    why="an md5 verifier can be used in place of the password",
    tags="database",
)

query(
    "hba-plain",
    "SELECT format('pg_hba.conf line %s allows %s from %s without TLS', r.line_number, r.user_name, r.address)"
    " FROM pg_hba_file_rules r WHERE r.type IN ('host', 'hostnossl') AND r.auth_method <> 'reject'"
    " AND r.address NOT IN ('127.0.0.1', '::1', 'samehost') AND NOT EXISTS (SELECT FROM pg_hba_file_rules e"
    " WHERE e.line_number < r.line_number AND e.type IN ('host', 'hostnossl') AND e.auth_method = 'reject'"
    " AND e.address = 'all' AND 'all' = ANY (e.user_name) AND 'all' = ANY (e.database))",
    area="access",
    expected="hostssl for every remote address",
    why="traffic is unencrypted",
    tags="tls,postgresql",
    development=True,
)

query(
    "hba-methods",
    _RULE + " FROM pg_hba_file_rules WHERE auth_method IN ('trust', 'password', 'md5', 'ident')",
    area="access",
    severity=Severity.CRITICAL,
    expected="scram-sha-256, peer, cert or reject",
    why="the method does not authenticate, or exposes the password",
    tags="postgresql",
)

query(
    "hba-everywhere",
    "SELECT format('pg_hba.conf line %s allows %s from %s', line_number, user_name, address)"
    " FROM pg_hba_file_rules WHERE auth_method <> 'reject' AND type LIKE 'host%'"
    " AND (address IN ('0.0.0.0', '::', 'all') AND coalesce(netmask, '0.0.0.0') IN ('0.0.0.0', '::'))",
    area="access",
    severity=Severity.CRITICAL,
    expected="explicit networks",
    why="any address on the internet can try passwords",
    fix="{site}  # if the inventory has this network, correct postgresql_allowed_networks first",
    tags="postgresql",
)

query(
    "hba-superuser",
    "SELECT format('pg_hba.conf line %s allows a superuser over TCP before a reject rule', r.line_number)"
    " FROM pg_hba_file_rules r WHERE r.type LIKE 'host%' AND r.auth_method <> 'reject'"
    " AND NOT (r.auth_method = 'cert' AND r.options @> '{map=nodes}')"  # of a fleet, by certificate alone
    " AND (r.user_name && ARRAY['all', 'postgres']) AND NOT EXISTS (SELECT FROM pg_hba_file_rules e"
    " WHERE e.line_number < r.line_number AND e.type = 'host' AND e.auth_method = 'reject'"
    " AND e.address = 'all' AND 'postgres' = ANY (e.user_name))",
    area="access",
    severity=Severity.CRITICAL,
    expected="superusers over the socket only",
    why="a guessed superuser password gives control of the host",
    tags="postgresql",
)

query(
    "hba-errors",
    "SELECT format('pg_hba.conf line %s: %s', line_number, error) FROM pg_hba_file_rules WHERE error IS NOT NULL",
    area="access",
    severity=Severity.CRITICAL,
    expected="a pg_hba.conf without errors",
    why="a reload keeps the previous rules, and a restart fails",
    tags="postgresql",
)

query(
    "scratch-databases",
    "SELECT 'database ' || datname || ' was left by a killed command', format('DROP DATABASE %I', datname)"
    f" FROM pg_database WHERE datname ~ '^{names.SCRATCH.pattern}$'"
    # Of a database in a tablespace, there is no such file: its age is not known.
    " AND (pg_stat_file('base/' || oid || '/PG_VERSION', true)).modification < now() - interval '1 day'"
    " AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.datid = pg_database.oid)",
    area="storage",
    expected="no scratch database older than a day",
    why="it takes up disk space",
)

query(
    "superusers",
    "SELECT 'role ' || rolname || ' is a superuser', format('ALTER ROLE %I NOSUPERUSER', rolname)"
    " FROM pg_roles WHERE rolsuper AND oid <> 10",
    area="roles",
    severity=Severity.CRITICAL,
    expected="postgres as the only superuser",
    why="a superuser can read every file of postgres and run programs",
)

query(
    "limits",
    "SELECT 'role ' || rolname || ' has no connection limit', format('ALTER ROLE %I CONNECTION LIMIT 10', rolname)"
    " FROM pg_roles"
    " WHERE rolcanlogin AND NOT rolsuper AND rolconnlimit < 0",
    area="roles",
    expected="a connection limit for each login role",
    why="one faulty client can use up all connections",
    tags="database",
    development=True,
)

query(
    "timeouts",
    "SELECT format('role %s has no %s', r.rolname, w), format('ALTER ROLE %I SET %s = %L', r.rolname, w, v)"
    " FROM pg_roles r, (VALUES ('statement_timeout', '30s'), ('lock_timeout', '5s'),"
    " ('idle_in_transaction_session_timeout', '60s')) t (w, v) WHERE r.rolname ~ '_(app|readonly)$'"
    " AND r.rolcanlogin AND NOT EXISTS (SELECT FROM pg_db_role_setting s, unnest(s.setconfig) e"
    " WHERE s.setrole = r.oid AND s.setdatabase = 0 AND e LIKE w || '=%' AND e !~ '=0+ *[a-z]*$')",
    area="roles",
    expected="timeouts for the application and the read-only role",
    why="an idle transaction blocks VACUUM and migrations",
    tags="database",
    development=True,
)

query(
    "public-create",
    "SELECT 'PUBLIC may create in schema public', 'REVOKE CREATE ON SCHEMA public FROM PUBLIC' FROM pg_namespace n,"
    " aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) x"
    " WHERE n.nspname = 'public' AND x.grantee = 0 AND x.privilege_type = 'CREATE'",
    area="privileges",
    expected="no CREATE privilege for PUBLIC",
    why="any role can create a function that other roles call by mistake",
    tags="database",
)

query(
    "public-connect",
    "SELECT 'PUBLIC may ' || x.privilege_type || ' database ' || d.datname,"
    " format('REVOKE %s ON DATABASE %I FROM PUBLIC', x.privilege_type, d.datname) FROM pg_database d,"
    " aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) x"
    " WHERE d.datname = current_database() AND x.grantee = 0",
    area="privileges",
    expected="CONNECT for named roles only",
    why="every login role of the cluster can connect",
    tags="database",
)

query(
    "security-definer",
    # The fix is a constant: the stored path is its owner's text, which an administrator would paste.
    "SELECT format('function %s', p.oid::regprocedure) || CASE WHEN path IS NULL THEN '' ELSE"
    " format(' searches %s: temporary tables of its callers come first', path) END,"
    " format('ALTER ROUTINE %s SET search_path = pg_catalog, public, pg_temp', p.oid::regprocedure)"
    " FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace LEFT JOIN LATERAL"
    " (SELECT substr(e, 13) AS path FROM unnest(p.proconfig) e WHERE e LIKE 'search_path=%') s ON true"
    " WHERE p.prosecdef AND n.nspname NOT IN ('pg_catalog', 'information_schema')"
    " AND (path IS NULL OR (path !~ '(^|[ ,])\"?pg_temp\"?$' AND NOT EXISTS (SELECT FROM pg_depend d"
    " WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')))",
    area="privileges",
    severity=Severity.CRITICAL,
    expected="SECURITY DEFINER functions with a fixed search_path that ends with pg_temp",
    why="a caller can substitute a function or a table and use it with the owner's rights",
)

query(
    "pending-restart",
    "SELECT name || ' waits for a restart' FROM pg_settings WHERE pending_restart",
    area="settings",
    expected="no pending restart",
    why="the next restart changes settings unexpectedly",
    tags="postgresql",
    extra="-e postgresql_restart_allowed=true",
)

query(
    "shadowed",
    "SELECT DISTINCT name || ' is set by ALTER SYSTEM to ' || coalesce(setting, ''),"
    " format('ALTER SYSTEM RESET %s', name)"
    " FROM pg_file_settings WHERE sourcefile LIKE '%postgresql.auto.conf' ORDER BY 1",
    area="settings",
    expected="settings from conf.d/50-provision.conf",
    why="the server does not use the inventory's value",
)

query(
    "vector",
    "SELECT 'type vector does not exist in ' || current_database()"
    " WHERE NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'vector')",
    area="extensions",
    severity=Severity.CRITICAL,
    expected="the extension vector",
    why="every vector search fails",
    tags="pgvector,database",
)

query(
    "invalid-index",
    "SELECT format('index %s is INVALID', indexrelid::regclass),"
    " CASE WHEN indexrelid::regclass::text ~ '_cc(new|old)[0-9]*$' THEN 'DROP INDEX CONCURRENTLY '"
    " ELSE 'REINDEX INDEX CONCURRENTLY ' END || indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid",
    area="schema",
    expected="valid indexes",
    why="an INVALID index slows writes and serves no query",
)
