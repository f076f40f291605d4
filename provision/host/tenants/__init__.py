"""Tenants of a database: created, listed, used as their owner, exported and dropped. On the host, as postgres."""
