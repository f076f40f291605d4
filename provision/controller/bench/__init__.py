"""`provision bench`: pgbench, HNSW builds and searches, and a mixed agent workload on the real schema.

Does IO, on the controller only (numpy and plotly are imported on use). Works in schema `provision_bench`, which it
always drops at the end. Refuses a production database with data, a pooler, a standby, and an existing schema of that
name that it did not create.
"""

from provision.controller.bench.run import Measured, Sizes, bench

__all__ = ["Measured", "Sizes", "bench"]
