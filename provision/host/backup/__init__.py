"""Backups that are proved: taken by pgBackRest and pg_dump, restored to a point in time, drilled, watched.

Runs on the database host with the standard library, psycopg and click alone. `wal` and `targets` are pure; `tool` is
the only door to the programs, `provision.database` the only one to the server. Refuses to trust an exit code: the
tools' own `info`, `verify`, `pg_restore --list` and `psql -f` exit 0 on several kinds of damage, so what they print is
parsed and what was restored is compared.
"""
