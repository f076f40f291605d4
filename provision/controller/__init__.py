"""Runs on the controller: sandboxes, bootstrap, audit, bundles, vaults. Never packed for hosts."""
