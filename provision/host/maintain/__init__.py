"""The database's house-keeping: retention in short batches, ANALYZE, and REINDEX (CONCURRENTLY) where bloat says so.

`plan` reads what this host wants, `batches` and `indexes` do it, `run` guards them and keeps the evidence.
"""
