"""Migrations, interchangeable with golang-migrate on the same files, table and locks, at any moment.

files, sql, steps, drift: pure. directory reads files; ledger, session, execute, watch talk to the server; runner
puts them together: under both locks, refuse first, then for each step: mark dirty, run the file, mark clean.
"""
