"""The harness of `provision bench --settings` on clusters of the tests, and the loss of the kernel's cache. Does IO."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from provision.controller.bench.harness import Bench
from provision.controller.bench.run import Sizes
from tests.clusters import Cluster, free_port, install


def placed(programs: Path | None = None) -> Cluster:
    """Return a cluster without data in a directory of its own; `programs` is the `bin` directory of another cluster."""
    root = Path(tempfile.mkdtemp(prefix="provision-bench-", dir="/var/tmp"))
    if os.geteuid() == 0:
        shutil.chown(root, "postgres", "postgres")
    return Cluster(programs or install(root), root, free_port())


@contextmanager
def benched(sizes: Sizes) -> Iterator[Bench[Cluster]]:
    """Make a cluster with fsync on, and its bench; remove it at the end."""
    cluster = placed()
    try:
        cluster.initialise({"listen_addresses": "127.0.0.1"})
        yield Bench(sizes, cluster, print)
    finally:
        cluster.remove()


def forget(data: Path) -> None:
    """Drop the files of a stopped server from the kernel's cache (posix_fadvise(2)); other files stay cached."""
    for path in data.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
