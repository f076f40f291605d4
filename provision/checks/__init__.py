"""Checks as values: the same ones serve `doctor` on the host and `audit` from outside."""
