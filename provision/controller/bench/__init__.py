"""What `provision bench` measures: pgbench, HNSW builds and searches, and agents at work on the real schema.

Does IO, on the controller only (numpy and plotly are imported where they are used). Everything that it makes lives in
the schema `provision_bench` of the database, which it drops at its end whatever happened. Refuses a production
database that holds data, a pooler, a standby, and a schema of that name that is not its own.
"""

from provision.controller.bench.run import Measured, Sizes, bench

__all__ = ["Measured", "Sizes", "bench"]
