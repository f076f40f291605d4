"""Checks of hosts, servers and databases: one registry serves `doctor` on the host and `audit` on the controller.

A new check is one function with the decorator `registry.check` in any module of this package, and a test. The modules
are discovered, and `make docs` writes the entry in docs/a-check-fails.md.
"""
