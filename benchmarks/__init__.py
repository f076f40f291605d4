"""Benchmarks: they print ratios of one run and never assert a time."""
