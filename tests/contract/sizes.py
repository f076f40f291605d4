"""Make README's table of host sizes from the calculator behind `provision tune`: `make docs`."""

from __future__ import annotations

import yaml

from provision.tuning import Host, tune
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
MAJOR, PGVECTOR = 17, "0.8.0"


def table() -> str:
    """Return the settings of a prod host with an SSD, of each size."""
    choices = Choices.of(yaml.safe_load((ROOT / "profiles/prod.yml").read_text())["postgresql"])
    lines = [f"| memory | CPUs | {' | '.join(f'`{name}`' for name in SETTINGS)} |", f"|{'---|' * (len(SETTINGS) + 2)}"]
    for memory, cpus in SIZES:
        host = Host(memory_mb=memory * 1024, cpus=cpus, storage="ssd")
        tuning = tune(host, "prod", postgresql_major=MAJOR, pgvector_version=PGVECTOR, choices=choices)
        lines.append(f"| {memory} GB | {cpus} | {' | '.join(tuning[name].text for name in SETTINGS)} |")
    return "\n".join(lines)


def with_table(readme: str) -> str:
    """Give the README with the table."""
    return between(readme, BEGIN, END, table())


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(with_table(page.read_text()))
