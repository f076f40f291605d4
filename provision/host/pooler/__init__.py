"""PgBouncer on its host: its console, what it waits for, a rehearsal of its configuration, and logins through it."""
