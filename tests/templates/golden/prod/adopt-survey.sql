--
-- Ansible managed
--
-- templates/adopt/survey.sql.j2: describes the cluster before its adoption; read-only.
SET search_path = pg_catalog, pg_temp; -- the superuser must call the server's own functions only
SELECT format('database %s: %s, %s, collation %s, owner %s', datname, pg_size_pretty(pg_database_size(oid)),
    pg_encoding_to_char(encoding), datcollate, datdba::regrole)
  FROM pg_database WHERE datname = current_database();
SELECT 'other databases are unchanged, but pg_hba.conf applies to them too: ' || string_agg(datname, ', ' ORDER BY datname)
  FROM pg_database WHERE NOT datistemplate AND datname NOT IN (current_database(), 'postgres')
  HAVING count(*) > 0;
SELECT format('table %s.%s: %s, about %s rows, owner %s', n.nspname, c.relname,
    pg_size_pretty(pg_total_relation_size(c.oid)), greatest(c.reltuples, 0)::bigint, c.relowner::regrole)
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^(pg_|information_schema$)' ORDER BY n.nspname, c.relname;
SELECT 'extensions: ' || string_agg(extname || ' ' || extversion, ', ' ORDER BY extname) FROM pg_extension;
SELECT CASE WHEN to_regclass('public.schema_migrations') IS NULL
  THEN 'no schema_migrations: the schema is compared with migrations/ and adopted only if it is equal'
  ELSE 'schema_migrations exists: the schema is compared with its version' END;
SELECT 'superusers other than postgres (login roles of the database lose superuser): ' || string_agg(rolname, ', ')
  FROM pg_roles WHERE rolsuper AND rolname <> 'postgres' HAVING count(*) > 0;
SELECT format('%s is kept; conf.d overrides these settings where it sets them too: %s', sourcefile,
    string_agg(format('%s = %s', name, setting), ', ' ORDER BY seqno))
  FROM pg_file_settings
  WHERE applied AND sourcefile !~ '/(conf\.d/.*|postgresql\.auto\.conf)$'
    AND name !~ '^(data_directory|hba_file|ident_file|external_pid_file|cluster_name|unix_socket_directories|lc_.*)$'
  GROUP BY sourcefile;
SELECT 'set by ALTER SYSTEM, which still overrides conf.d: ' || string_agg(format('%s = %s', name, setting), ', ' ORDER BY seqno)
  FROM pg_file_settings WHERE sourcefile LIKE '%/postgresql.auto.conf' HAVING count(*) > 0;
SELECT 'checksums: ' || current_setting('data_checksums')
  || CASE current_setting('data_checksums') WHEN 'on' THEN ''
     ELSE '; -e adopt_enable_checksums=true enables them; the server is stopped meanwhile' END;
