"""Minor updates of a host's packages: plan, install, restart behind a paused pooler, verify. On its host, as root."""
