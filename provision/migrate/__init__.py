"""Migrations, interchangeable with golang-migrate: files (pure), ledger and runner (do IO)."""
