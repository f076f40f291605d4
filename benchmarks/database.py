"""Compare settings: our prod profile's, the contract's, a reference's and those of other systems, as ratios to stock.

    python -m benchmarks.database [--rounds R] [--only NAME ...] [--set NAME=VALUE ...] [--report DIRECTORY]
    python -m benchmarks.database --combine FILE ... [--base NAME]

Does IO: runs one cluster with two data sets on this machine, restarted with each configuration in turn, in another
order each round. Every ratio has a 95 % interval (bootstrap over rounds). CPU time per transaction is the steadier
measure on a busy machine. Writes comparison.json after each step, so that a run that ends early is not lost. Asserts
nothing.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.harness import benched
from benchmarks.peers import all_peers
from provision import system
from provision.compatibility import PARALLEL_BUILD, parallel_build_allowed
from provision.controller.bench.comparison import NUMBERS, write
from provision.controller.bench.harness import Configuration
from provision.controller.bench.results import Results, combined, load, markdown, save, text
from provision.controller.bench.run import Sizes
from provision.controller.bench.settings import OURS, STOCK, ours
from provision.errors import UsageError
from provision.tuning import Host
from provision.tuning.detect import detect

HERE = Path(__file__).parent
CONTRACT = """
max_connections = 100
shared_buffers = 256MB
effective_cache_size = 1GB
work_mem = 16MB
random_page_cost = 1.1
effective_io_concurrency = 200
"""
PARALLEL = "prod, parallel builds"
COUNTED = "shared_preload_libraries = 'pg_stat_statements'\n"


def configurations(major: int, pgvector: str, vectors: int, servers: int = 1) -> dict[str, Configuration]:
    """Return the configurations to compare, on one of so many servers of this machine; ours as the role computes it."""
    facts = detect()
    memory = int(str(facts["memory_mb"])) // servers
    host = Host(**{**facts, "container": False, "memory_mb": memory})  # type: ignore[arg-type]
    reference = (HERE / "reference-prod.conf").read_text()
    found = {
        STOCK: Configuration(""),
        OURS: ours(host, major, pgvector, vectors),
        "reference": Configuration(reference + COUNTED, int(reference.split("nr_hugepages=")[1].split()[0])),
        "contract": Configuration(CONTRACT),
    }
    if not parallel_build_allowed(pgvector, "", ()):
        found[PARALLEL] = ours(host, major, pgvector, vectors, PARALLEL_BUILD)
    for peer in all_peers():
        found[peer.name] = Configuration(peer.conf(host, major), peer.huge_pages(host))
    return found


def chosen(known: dict[str, Configuration], only: list[str], changes: list[str], base: str) -> dict[str, Configuration]:
    """Return the base, the named configurations and prod with each single change. Raises UsageError."""
    wrong = [name for name in [*only, base] if name not in known]
    if wrong:
        raise UsageError("unknown configuration", seen=", ".join(wrong), allowed=", ".join(known))
    names = [base, *only] if only or changes else list(known)
    found = {name: known[name] for name in dict.fromkeys(names)}
    return found | {f"{OURS}, {change}": known[OURS].changed(change) for change in changes}


def measure(options: argparse.Namespace) -> Results:
    """Load, build and measure."""
    with benched(Sizes(scale=options.scale, vectors=options.vectors, seconds=options.seconds)) as bench:
        bench.load()
        known = configurations(bench.major, bench.pgvector, options.vectors)
        rows = chosen(known, options.only, options.set, options.base)
        if options.ablate:
            each = bench.differing(known[OURS])
            rows |= {OURS: known[OURS]} | {f"{OURS} without {name}": known[OURS].without(name) for name in each}
        found = bench.results(rows)
        print(
            f"PostgreSQL {found.server}, pgvector {found.pgvector}, {options.vectors:,} vectors of each set", flush=True
        )

        def keep(what: str) -> None:
            if options.report:
                save(found, options.report / NUMBERS)
            print(f"{system.stamp()} {what}", flush=True)

        bench.compare(
            rows, found, rounds=options.rounds, builds=options.builds, only=tuple(options.stages),
            built_only=(PARALLEL,), keep=keep,
        )  # fmt: skip
        return found


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vectors", type=int, default=20_000, help="Vectors in each of the two data sets.")
    parser.add_argument("--seconds", type=float, default=4, help="Duration of each stage.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--builds", type=int, default=1, help="Index builds of each configuration.")
    parser.add_argument("--scale", type=int, default=20, help="pgbench scale factor.")
    parser.add_argument("--only", nargs="*", default=[], help="Configurations to compare with the base.")
    parser.add_argument("--set", nargs="*", default=[], help="Single changes of prod, each a row of its own.")
    parser.add_argument("--ablate", action="store_true", help="Add prod with each setting in turn at its default.")
    parser.add_argument("--stages", nargs="*", default=[], help="Stages to measure; all by default.")
    parser.add_argument("--base", default=STOCK, help="Configuration that the ratios refer to.")
    parser.add_argument("--report", type=Path, help="Directory for comparison.html and comparison.json.")
    parser.add_argument(
        "--combine", type=Path, nargs="*", default=[], help="Show earlier results instead of measuring."
    )
    parser.add_argument("--markdown", action="store_true", help="Print the tables for a page of docs/.")
    return parser


def main() -> None:
    """Measure or combine; print ratios to the base."""
    options = arguments().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that pages, server and files are cleaned up
    try:
        found = combined(map(load, options.combine)) if options.combine else measure(options)
    except UsageError as error:
        raise SystemExit(str(error)) from None
    print((markdown if options.markdown else text)(found, options.base))
    if options.report:
        for path in write(found, options.base, options.report):
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
