"""Patroni on this host: adopt a running server, clone a new member, load its configuration. Does IO."""
