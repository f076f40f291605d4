"""Metrics that no exporter has: backups, restore tests, certificates, bloat, retention, pools.

`exposition` renders the text format, the other modules read one source each, `collect` combines them.
"""
