"""Settings computed from a host and a profile; pure, each with its value, unit and reason."""
