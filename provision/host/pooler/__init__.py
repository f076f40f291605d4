"""PgBouncer on its host: console, reload and pending restarts, configuration tests, and login tests."""
