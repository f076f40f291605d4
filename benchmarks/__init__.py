"""Benchmarks: each prints ratios within one run and asserts nothing."""
