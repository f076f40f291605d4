"""Tests of a fleet on hosts: they need a package of Citus (docs/fleet.md) and run with `make test-fleet`."""
