"""Major upgrades of a single host by pg_upgrade: check, run, go back, release the old cluster. On its host, as root."""
