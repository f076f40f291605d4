"""Time site.yml against a bare apt-get install of the same packages, on identical fresh hosts, in one run.

    python -m benchmarks.provisioning [--rounds 3] [--only apt-dev first-dev second-dev]

Prints seconds, the controller's CPU seconds, ratios and task counts, and asserts no time. The package lists are read
from hosts that site.yml converged: every package that the host has and a fresh host has not. These unmeasured runs
also warm the caches of this machine and of the mirror. Each round times four groups, in an order that rotates from
round to round, and each group gets fresh Debian 13 hosts of its own, whose creation is not timed:

- apt: `apt-get update` and one `apt-get install` of the list, on a host that has run neither;
- site, for dev and prod: the first and the second run of site.yml on one host;
- fleet: the second run of site.yml with dev on one of five hosts, and on all five. The hosts share the CPUs of this
  machine with the controller, so five of them need five times the CPU time here; the controller's part is printed;
- cluster: the first and the second run with dev and TLS on one host, and on the three members of a cluster.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from benchmarks.hosts import BIN, Fresh, fresh_hosts, production_inventory, run

ROUNDS = 3
PROFILES = ("dev", "prod")
FLEET = tuple(f"db{number}" for number in range(1, 6))
MEMBERS = FLEET[:3]
TLS = ("-e", "tls_enabled=true")
LIST = "dpkg-query -Wf '${db:Status-Abbrev} ${binary:Package}\\n' | sed -n 's/^ii *//p'"
# No second host is measured, so the repository of backups is on the host itself.
PROD = {"backup_allow_local_only": True, "backup_repository_inventory_name": "", "backup_repository_host": ""}
RECAP = re.compile(r"^\S+ +: ok=(\d+) +changed=(\d+) .* skipped=(\d+)", re.M)
TITLES = {
    "apt-dev": "(a) apt-get, packages of dev",
    "first-dev": "(b) site.yml, dev, first run",
    "second-dev": "(c) site.yml, dev, second run",
    "apt-prod": "    apt-get, packages of prod",
    "first-prod": "(d) site.yml, prod, first run",
    "second-prod": "(e) site.yml, prod, second run",
    "fleet-1": "(f) site.yml, dev, second run, 1 of 5 hosts",
    "fleet-5": "    site.yml, dev, second run, 5 hosts",
    "first-1": "(g) site.yml, dev and TLS, first run, 1 host",
    "first-3": "    site.yml, cluster of 3 hosts, first run",
    "second-1": "    site.yml, dev and TLS, second run, 1 host",
    "second-3": "    site.yml, cluster of 3 hosts, second run",
}
BASES = {**dict.fromkeys(TITLES, "apt-dev"), "first-prod": "apt-prod", "second-prod": "apt-prod"}
"""Row that a row is compared with: the bare install of the same packages."""


@dataclass
class Row:
    """Seconds and the controller's CPU seconds of each round; of the last, the recap of the first host."""

    seconds: list[float] = field(default_factory=list)
    controller: list[float] = field(default_factory=list)
    tasks: tuple[int, int, int] | None = None


Table = dict[str, Row]
Site = Callable[..., str]


def timed(row: Row, work: Callable[[], str]) -> None:
    """Run the work and add its seconds to the row."""
    start, before = time.monotonic(), _cpu()
    output = work()
    row.seconds.append(time.monotonic() - start)
    row.controller.append(_cpu() - before)
    found = RECAP.search("\n".join(line for line in output.splitlines() if not line.startswith("localhost ")))
    row.tasks = (int(found[1]), int(found[2]), int(found[3])) if found else None


def _cpu() -> float:
    """Return the CPU seconds of finished child processes: Ansible, but not the hosts, which systemd started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def site(profile: str, hosts: Fresh) -> Iterator[Site]:
    """Give a function that runs site.yml with a profile against the hosts and returns its output."""
    command = (str(BIN / "ansible-playbook"), "site.yml")
    if profile == "dev":
        yield lambda *words: run(*command, "-i", "inventories/dev", "-i", str(hosts.inventory), *words)
        return
    with production_inventory() as (inventory, key):
        secret = ("--vault-password-file", str(key), "-e", json.dumps(PROD))
        yield lambda *words: run(*command, "-i", str(inventory), "-i", str(hosts.inventory), *secret, *words)


def packages(profile: str) -> tuple[str, ...]:
    """Converge a fresh host and return the packages that this added."""
    with fresh_hosts("db1") as hosts, site(profile, hosts) as converge:
        before = set(hosts.run(LIST).split())
        converge()
        return tuple(sorted(set(hosts.run(LIST).split()) - before))


def time_apt(profile: str, names: Iterable[str], table: Table, _number: int) -> None:
    """Time the bare install."""
    install = f"apt-get -q update && apt-get -qy install --no-install-recommends {' '.join(names)}"
    with fresh_hosts("db1") as hosts:
        timed(table[f"apt-{profile}"], lambda: hosts.run(f"export DEBIAN_FRONTEND=noninteractive; {install}"))


def time_site(profile: str, table: Table, _number: int) -> None:
    """Time the first and the second run on one host."""
    with fresh_hosts("db1") as hosts, site(profile, hosts) as converge:
        timed(table[f"first-{profile}"], converge)
        timed(table[f"second-{profile}"], converge)


def time_fleet(table: Table, number: int) -> None:
    """Time the second run on one and on five hosts; which comes first alternates."""
    with fresh_hosts(*FLEET) as hosts, site("dev", hosts) as converge:
        converge()
        rows = {"fleet-1": ("--limit", f"{FLEET[0]},localhost"), "fleet-5": ()}
        for name in sorted(rows, reverse=bool(number % 2)):
            timed(table[name], partial(converge, *rows[name]))


def time_cluster(table: Table, number: int) -> None:
    """Time the first and the second run on one host and on three members; which comes first alternates."""
    sizes = {"1": (MEMBERS[:1], TLS), "3": (MEMBERS, (*TLS, "-e", "cluster_enabled=true"))}
    for size, (names, words) in sorted(sizes.items(), reverse=bool(number % 2)):
        with fresh_hosts(*names) as hosts, site("dev", hosts) as converge:
            timed(table[f"first-{size}"], partial(converge, *words))
            timed(table[f"second-{size}"], partial(converge, *words))


def groups(only: set[str]) -> list[Callable[[Table, int], None]]:
    """Return the groups that hold the requested rows; reads the package lists of those that need one."""
    found: list[Callable[[Table, int], None]] = []
    for profile in PROFILES:
        if f"apt-{profile}" in only:
            names = packages(profile)
            print(f"{profile}: site.yml adds {len(names)} packages to a fresh host", flush=True)
            found.append(partial(time_apt, profile, names))
        if only & {f"first-{profile}", f"second-{profile}"}:
            found.append(partial(time_site, profile))
    if only & {"fleet-1", "fleet-5"}:
        found.append(time_fleet)
    if only & {"first-1", "first-3", "second-1", "second-3"}:
        found.append(time_cluster)
    return found


def lines(table: Table, only: Iterable[str]) -> Iterator[str]:
    """Format the table. A ratio is the median of the rounds' ratios, so that a slow round does not distort it."""
    heads = f"{'median s':>9}{'min':>7}{'max':>7}{'CPU s':>7}{'x apt-get':>11}{'ok':>5}{'changed':>9}{'skipped':>9}"
    yield f"{'':<46}{heads}"
    for name in only:
        row, base = table[name], table[BASES[name]].seconds
        ratio = f"{ratios(row.seconds, base):.2f}" if base else "-"
        seconds = f"{statistics.median(row.seconds):>9.1f}{min(row.seconds):>7.1f}{max(row.seconds):>7.1f}"
        seconds += f"{statistics.median(row.controller):>7.1f}"
        tasks = "".join(f"{count:>{width}}" for count, width in zip(row.tasks or (), (5, 9, 9), strict=False))
        yield f"{TITLES[name]:<46}{seconds}{ratio:>11}{tasks}"
    pairs = {
        "second run, 5 hosts against 1": ("fleet-5", "fleet-1"),
        "first run, 3 members of a cluster against 1 host": ("first-3", "first-1"),
        "second run, 3 members of a cluster against 1 host": ("second-3", "second-1"),
    }
    for title, (several, one) in pairs.items():
        if table[several].seconds and table[one].seconds:
            yield f"{title}: {ratios(table[several].seconds, table[one].seconds):.2f} x"


def ratios(seconds: list[float], base: list[float]) -> float:
    """Return the median of the ratios of two rows, round by round."""
    return statistics.median(one / other for one, other in zip(seconds, base, strict=True))


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description="Time site.yml against a bare apt-get install of the same packages.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds [default: %(default)s]")
    parser.add_argument(
        "--only", nargs="+", choices=TITLES, default=list(TITLES), metavar="ROW", help=", ".join(TITLES)
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # hosts are removed on the way out
    table: Table = {name: Row() for name in TITLES}
    works = groups(set(options.only))
    for number in range(options.rounds):
        first = number % len(works)
        for work in works[first:] + works[:first]:
            work(table, number)
        shown = ", ".join(f"{name} {row.seconds[-1]:.1f} s" for name, row in table.items() if row.seconds)
        print(f"round {number + 1}: {shown}", file=sys.stderr, flush=True)
    print("\n".join(lines(table, options.only)))


if __name__ == "__main__":
    main()
