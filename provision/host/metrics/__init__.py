"""What a host can tell Prometheus and no exporter does: backups, drills, certificates, bloat, retention, pools.

`exposition` writes the text format, the other modules read one thing each, `collect` puts them together.
"""
