"""Compare 500 clients through the pooler with 500 direct connections, on one fresh host with the prod profile.

    python -m benchmarks.pool [SECONDS]

Prints transactions per second, latencies, errors, memory, and ratios to direct connections; asserts nothing. Both use
TLS (verify-full) and SCRAM, and run on the host itself, so no network is measured. The load is pgbench's select-only
transaction, first with persistent connections, then with a new connection per transaction. Rounds alternate; results
are medians. Memory is the peak of all server and pooler processes in a round: proportional set size (Pss) and page
tables, which grow with connections and shared_buffers.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from benchmarks.hosts import ROOT, BenchHost, production_host

NAME = "bench-pool"
CLIENTS = 500
ROUNDS = 3
SECONDS = 12
ROUTES = {"direct": 5432, "pooler": 6432}
VARIABLES = {
    "backup_physical": False,
    "postgresql_settings": {"max_connections": CLIENTS + 100},
    "postgresql_network_connections": 0,  # all of them come from one address
    "pgbouncer_pools": {"minion_app": 25},
}
# Memory of all server and pooler processes (same user), in kB. A process may end during the loop.
MEMORY = """
for pid in $(pgrep -x postgres; pgrep -x pgbouncer); do
  awk '/^(Pss|VmPTE):/ {print $2}' /proc/$pid/smaps_rollup /proc/$pid/status 2>/dev/null || true
done | awk '{sum += $1} END {print int(sum / 1024)}'
"""
ROUND = """
cd $(mktemp -d)
export PGPASSFILE=/var/lib/postgresql/.pgpass PGSSLMODE=verify-full PGSSLROOTCERT=/etc/provision/tls/ca.crt
/usr/lib/postgresql/17/bin/pgbench -n -S -c {clients} -j 2 -T {seconds} -l {words} \
  -h 127.0.0.1 -p {port} -U minion_app minion >said 2>&1 || true
awk '/transactions actually processed/ {{print $NF}}' said
awk '/without initial connection time|including reconnection times/ {{print $3}}' said
cut -d' ' -f3 pgbench_log.* | sort -n >times
lines=$(wc -l <times)
for share in 500 950 990 999; do sed -n "$((lines * share / 1000))p" times; done
echo "$(grep -c 'error\\|aborted' said || true) $(awk '/number of failed/ {{print $5}}' said)"
rm -rf "$PWD"
"""


@dataclass(frozen=True)
class Round:
    """Results of pgbench: transactions per second, latencies in ms, errors; and memory in MiB."""

    tps: float
    p50: float
    p95: float
    p99: float
    p999: float
    errors: float
    memory: float


def prepare(host: BenchHost) -> None:
    """Remove the application role's connection limit, and load pgbench's tables."""
    host.run(
        f"umask 077; echo '*:*:*:*:{host.passwords['minion_app']}' >~/.pgpass;"
        " psql -qXd minion -c 'ALTER ROLE minion_app CONNECTION LIMIT -1';"
        " /usr/lib/postgresql/17/bin/pgbench -i -q -s 10 -U minion minion"
    )


def measure(host: BenchHost, route: str, seconds: int, *words: str) -> Round:
    """Run pgbench once, directly or through the pooler, and sample the memory."""
    script = ROUND.format(clients=CLIENTS, seconds=seconds, words=" ".join(words), port=ROUTES[route])
    with subprocess.Popen(host.words(script), cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        memory = []
        while running.poll() is None:
            # As the user postgres: in a container, root cannot read these files.
            memory.append(float(host.run(MEMORY)))
            time.sleep(seconds / 4)
        said = running.communicate()[0].split("\n")
    times = (int(text) / 1000 for text in said[2:6])
    return Round(float(said[1]), *times, sum(int(text) for text in said[6].split()), max(memory))


def table(host: BenchHost, title: str, seconds: int, *words: str) -> None:
    """Alternate between direct and pooled connections; print medians and ratios."""
    rounds: dict[str, list[Round]] = {route: [] for route in ROUTES}
    for number in range(ROUNDS):
        for route in sorted(ROUTES, reverse=bool(number % 2)):
            rounds[route].append(measure(host, route, seconds, *words))
    names = list(Round.__dataclass_fields__)
    medians = {
        route: {name: statistics.median(getattr(each, name) for each in found) for name in names}
        for route, found in rounds.items()
    }
    print(
        f"\n{title}\n{'':<10}"
        + "".join(f"{name:>12}" for name in ("tps", "p50 ms", "p95 ms", "p99 ms", "p99.9 ms", "errors", "MiB"))
    )
    for route in ROUTES:
        print(f"{route:<10}" + "".join(f"{medians[route][name]:>12,.1f}" for name in names))
    shares = (medians["pooler"][name] / medians["direct"][name] if medians["direct"][name] else 0 for name in names)
    print(f"{'ratio':<10}" + "".join(f"{share:>12.2f}" for share in shares), flush=True)


def main() -> None:
    """Run both measurements."""
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    with production_host(NAME, "8g", VARIABLES) as host:
        prepare(host)
        table(host, f"{CLIENTS} clients, persistent connections", seconds)
        table(host, f"{CLIENTS} clients, a new connection per transaction", seconds, "-C")


if __name__ == "__main__":
    main()
