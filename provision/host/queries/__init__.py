"""What the server's time goes to: pg_stat_statements, now and between two moments.

`statements` reads the view, `snapshots` keeps readings on disk, `ranking` is pure, `planned` shows a statement's plan.
"""
