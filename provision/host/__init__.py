"""Runs on database hosts: imports psycopg, click and the standard library only."""
