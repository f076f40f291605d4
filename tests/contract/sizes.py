"""Make the tables of host sizes in README.md and docs/sizing.md from the calculator of `provision tune`."""

from __future__ import annotations

import yaml

from provision.tuning import Host, Tuning, tune, vector
from provision.tuning.model import Choices
from tests.contract.repository import ROOT, between

BEGIN, END = "<!-- sizes: made by `make docs` -->", "<!-- end of sizes -->"
SIZES = ((2, 2), (4, 2), (8, 4), (16, 4), (32, 8), (64, 16), (256, 32))
"""Memory in GB, and CPUs."""
SETTINGS = (
    "shared_buffers",
    "effective_cache_size",
    "work_mem",
    "maintenance_work_mem",
    "max_connections",
    "max_wal_size",
)
MAJOR, PGVECTOR = 17, "0.8.6"
EXPECTED_VECTORS = 100_000  # default of postgresql_expected_vectors
CARRIED = ((2, 2), (8, 4), (32, 8), (128, 32))
"""Sizes of docs/sizing.md."""
DIMENSIONS = 1536
PAGE_KB = 8  # an element of 1536 dimensions fills one page of an HNSW index


def _tuned(memory_gb: int, cpus: int) -> Tuning:
    choices = Choices.of(yaml.safe_load((ROOT / "profiles/prod.yml").read_text())["postgresql"])
    host = Host(memory_mb=memory_gb * 1024, cpus=cpus, storage="ssd")
    return tune(
        host, "prod", postgresql_major=MAJOR, pgvector_version=PGVECTOR, vectors=EXPECTED_VECTORS, choices=choices
    )


def table() -> str:
    """Return the settings of a prod host with an SSD, of each size."""
    lines = [f"| memory | CPUs | {' | '.join(f'`{name}`' for name in SETTINGS)} |", f"|{'---|' * (len(SETTINGS) + 2)}"]
    for memory, cpus in SIZES:
        tuning = _tuned(memory, cpus)
        lines.append(f"| {memory} GB | {cpus} | {' | '.join(tuning[name].text for name in SETTINGS)} |")
    return "\n".join(lines)


def carried() -> str:
    """Return what prod hosts with an SSD carry without a disk read or a spilled build."""
    lines = [
        "| memory | CPUs | index in `shared_buffers` | index in memory | build in memory | connections "
        "| pool connections |",
        "|---|---|---|---|---|---|---|",
    ]
    for memory, cpus in CARRIED:
        tuning = _tuned(memory, cpus)
        cached, known = (
            int(tuning[name].value) * 1024 // PAGE_KB for name in ("shared_buffers", "effective_cache_size")
        )
        built = vector.capacity(int(tuning["maintenance_work_mem"].value), DIMENSIONS)
        counts = " | ".join(f"{rounded(count):,}" for count in (cached, known, built))
        lines.append(f"| {memory} GB | {cpus} | {counts} | {tuning['max_connections'].text} | {tuning.pool_limit} |")
    return "\n".join(lines)


def rounded(count: int) -> int:
    """Round down to two digits."""
    step = int("1" + "0" * (len(str(count)) - 2))
    return count // step * step


def with_table(readme: str) -> str:
    """Give the README with the table."""
    return between(readme, BEGIN, END, table())


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(with_table(page.read_text()))
    sizing = ROOT / "docs/sizing.md"
    sizing.write_text(between(sizing.read_text(), BEGIN, END, carried()))
