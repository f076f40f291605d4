"""Bundles: one file with everything that a host without network access needs.

`contents` lists the contents, `make` collects them, `repository` indexes and signs them, `verify` checks a file before
use. Controller only.
"""
