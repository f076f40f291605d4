"""Turn a bare Debian-family host into a proved PostgreSQL + pgvector database for AI agents."""

__version__ = "0.11.1"
