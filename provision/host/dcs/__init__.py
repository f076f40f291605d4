"""etcd on this host: start it as a new or a joining member, protect it, restart it one member at a time. Does IO."""
