"""Database maintenance: retention in short batches, ANALYZE, and REINDEX (CONCURRENTLY) of bloated indexes.

`batches` and `indexes` do the work; `run` guards it against other runs and migrations and keeps evidence.
"""
