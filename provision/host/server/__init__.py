"""The PostgreSQL server of this host: make its cluster, start it, load its configuration, apply kernel settings."""
