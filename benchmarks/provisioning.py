"""Compare site.yml with a bare apt-get install of the same packages, on identical fresh hosts.

Prints ratios and asserts nothing. Each round creates two hosts: one installs only the packages (a), the other runs
site.yml (b) and runs it again (c). Also prints the number of tasks executed on the host. The optional argument is the
number of rounds.
"""

from __future__ import annotations

import re
import statistics
import sys
import time

from benchmarks.hosts import BIN, run

PACKAGES = ("postgresql-17", "postgresql-client-17", "postgresql-17-pgvector", "python3-psycopg", "python3-click")
INSTALL = (
    "export DEBIAN_FRONTEND=noninteractive; apt-get -q update && "
    f"apt-get -qy install --no-install-recommends {' '.join(PACKAGES)}"
)
ROUNDS = 3
HOSTS = ("bench-bare", "bench-site")


def timed(*words: str) -> tuple[float, str]:
    """Run a command and return its seconds and output."""
    start = time.monotonic()
    output = run(*words)
    return time.monotonic() - start, output


def executed(output: str) -> int:
    """Count the tasks executed on the host, that is neither skipped nor run on the controller."""
    local = ("Validating arguments", "Load the profile", "Check the type", "Judge what", "Pack the command",
             "Keep the summary", "Make the folder of summaries", "Say what", "Warn of", "Name the")  # fmt: skip
    shown = re.findall(
        r"^(?:TASK|RUNNING HANDLER) \[(?:[^\]]*? : )?([^\]]+)\] \**\n(?:.*\n)*?(ok|changed):", output, re.M
    )
    return sum(not name.startswith(local) for name, _ in shown)


def main() -> None:
    """Run the rounds and print the table."""
    sandbox = str(BIN / "provision")
    inventories = ("-i", "inventories/dev", "-i", ".provision/sandbox/inventory.yml")
    site = (str(BIN / "ansible-playbook"), "site.yml", *inventories, "--limit", HOSTS[1])
    rows = []
    for number in range(1, (int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS) + 1):
        run(sandbox, "sandbox", "up", *HOSTS)
        try:
            bare, _ = timed(sandbox, "sandbox", "exec", HOSTS[0], "--", "sh", "-c", INSTALL)
            first, first_output = timed(*site)
            second, second_output = timed(*site)
        finally:
            run(sandbox, "sandbox", "down", *HOSTS)
        rows.append((bare, first, second))
        print(f"round {number}: (a) apt-get {bare:5.1f} s  (b) first {first:5.1f} s = {first / bare:4.2f} x a  "
              f"(c) again {second:5.1f} s = {second / bare:4.2f} x a", flush=True)  # fmt: skip
    print(f"medians: (b) {statistics.median(b / a for a, b, _ in rows):4.2f} x a   "
          f"(c) {statistics.median(c / a for a, _, c in rows):4.2f} x a")  # fmt: skip
    print(f"tasks executed on the host: first {executed(first_output)}, again {executed(second_output)}")


if __name__ == "__main__":
    main()
