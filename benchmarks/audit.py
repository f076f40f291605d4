"""Compare `provision audit` of five hosts with an audit of one, and with `site.yml --check` of the five.

Prints ratios and asserts nothing. The hosts are sandboxes converged with the dev profile; unlike real hosts, they share
this machine's CPUs. The optional argument is the number of rounds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
HOSTS = tuple(f"bench-audit{number}" for number in range(1, 6))
INVENTORIES = ("-i", "inventories/dev", "-i", ".provision/sandbox/inventory.yml")
ROUNDS = 3


def timed(*words: str, allowed: tuple[int, ...] = (0,)) -> float:
    """Run a command in the repository and return its seconds. Another exit code than `allowed` ends the benchmark."""
    start = time.monotonic()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in allowed:
        raise SystemExit(f"{' '.join(words)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return time.monotonic() - start


def audit(*hosts: str) -> float:
    """Time an audit of these hosts; exit code 3 means findings."""
    return timed(str(BIN / "provision"), "audit", *INVENTORIES, "--limit", ",".join(hosts), "--json", allowed=(0, 3))


def main() -> None:
    """Create the hosts, run the rounds, print the table, remove the hosts."""
    provision, playbook = str(BIN / "provision"), str(BIN / "ansible-playbook")
    timed(provision, "sandbox", "up", *HOSTS, "--memory", "1g")
    try:
        site = (playbook, "site.yml", *INVENTORIES, "--limit", ",".join(HOSTS))
        timed(*site)
        rows = []
        for number in range(1, (int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS) + 1):
            one, five, check = audit(HOSTS[0]), audit(*HOSTS), timed(*site, "--check")
            rows.append((one, five, check))
            print(f"round {number}: (a) audit of 1 {one:5.1f} s  (b) audit of 5 {five:5.1f} s = {five / one:4.2f} x a"
                  f"  (c) site.yml --check of 5 {check:5.1f} s, b = {five / check:4.2f} x c", flush=True)  # fmt: skip
        print(f"medians: b = {statistics.median(five / one for one, five, _ in rows):4.2f} x a (target: 2), "
              f"{statistics.median(five / check for _, five, check in rows):4.2f} x c (target: 0.25)")  # fmt: skip
    finally:
        timed(provision, "sandbox", "down", *HOSTS)


if __name__ == "__main__":
    main()
