"""Backups with pgBackRest and pg_dump: take, restore to a point in time, restore-test, monitor.

Runs on the database host with the standard library, psycopg and click only. `wal` and `targets` are pure; programs run
through `tool` and SQL through `provision.database`. Exit codes are not trusted: pgBackRest's `info` and `verify`,
`pg_restore --list` and `psql -f` exit 0 on several kinds of damage, so their output is parsed and restored data is
compared.
"""
