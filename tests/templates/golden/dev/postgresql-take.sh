#
# Ansible managed
#
# templates/postgresql/take.sh.j2: reload what is newer than the server's last look, then tell what is wrong,
# shadowed or pending.
set -eu
# The running server's own port, which is not the wanted one while a new port waits for a restart.
port=$(sed -n 4p /var/lib/postgresql/14/main/postmaster.pid)
# Nobody's functions but the server's own: this is the superuser.
ask() { PGOPTIONS='-c search_path=pg_catalog,pg_temp' runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -d postgres -p "$port" -c "$1"; }
newest=$(stat -c %.Y /etc/postgresql/14/main/conf.d/50-provision.conf /etc/postgresql/14/main/pg_hba.conf /etc/postgresql/14/main/pg_ident.conf | sort -n | tail -n 1)
stale() { [ "$(ask "SELECT pg_conf_load_time() < to_timestamp($newest)")" = t ]; }
if stale; then
  pg_ctlcluster 14 main reload
  # The postmaster reads its files when it gets to it.
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    stale || break
    sleep 0.3
  done
  echo reloaded
fi
# What waits for a restart is told below; a setting that was taken out waits as an error without a file.
wrong=$(ask "SELECT format('pg_hba.conf line %s: %s', line_number, error) FROM pg_hba_file_rules WHERE error IS NOT NULL
  UNION ALL SELECT format('%s line %s: %s', sourcefile, sourceline, error) FROM pg_file_settings
    WHERE error IS NOT NULL AND error <> 'setting could not be applied'
      AND error NOT LIKE '%cannot be changed without restarting the server'
  UNION ALL SELECT 'postgresql.conf does not include conf.d: put back its line include_dir'
    WHERE NOT EXISTS (SELECT FROM pg_file_settings WHERE sourcefile = '/etc/postgresql/14/main/conf.d/50-provision.conf')")
if [ -n "$wrong" ]; then
  echo "in /etc/postgresql/14/main: $wrong" >&2
  exit 1
fi
ask "SELECT 'pending ' || name FROM pg_settings WHERE pending_restart ORDER BY name"
ask "SELECT DISTINCT 'shadowed ' || name FROM pg_file_settings AS theirs WHERE sourcefile LIKE '%/postgresql.auto.conf'
  AND EXISTS (SELECT FROM pg_file_settings AS ours WHERE sourcefile = '/etc/postgresql/14/main/conf.d/50-provision.conf' AND ours.name = theirs.name)
  ORDER BY 1"
# What an administrator's lines after include_dir set again: our file is there, and does not rule.
ask "SELECT DISTINCT format('overruled %s is set again in %s line %s', theirs.name, theirs.sourcefile, theirs.sourceline)
  FROM pg_file_settings AS theirs JOIN pg_file_settings AS ours ON ours.name = theirs.name AND ours.seqno < theirs.seqno
  WHERE ours.sourcefile = '/etc/postgresql/14/main/conf.d/50-provision.conf' AND theirs.applied AND theirs.sourcefile NOT LIKE '%/postgresql.auto.conf'
  ORDER BY 1"
