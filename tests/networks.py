"""Two hosts on a network of their own, as network namespaces: a server and its clients. Does IO as root."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clusters import run

SERVER = "192.0.2.1"
SERVER_6 = "2001:db8::1"
LOGINS = """
import json, psycopg, sys
conninfo, number = json.loads(sys.argv[1])
held = [psycopg.connect(conninfo) for _ in range(number)]
print(json.dumps(len(held)), flush=True)
sys.stdin.read()
"""
CONNECTIONS = """
import json, socket, sys
address, port, sources, number, body = json.loads(sys.argv[1])
held, counts = [], {}
for source in sources:
    counts[source] = 0
    for _ in range(number):
        try:
            held.append(socket.create_connection((address, port), 10, (source, 0)))
            held[-1].sendall(bytes.fromhex(body))
            counts[source] += 1
        except OSError:
            pass
print(json.dumps(counts), flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Network:
    """The namespaces, as files that nsenter takes."""

    server: Path
    clients: Path

    def at_server(self, *words: str | Path) -> str:
        """Run a program in the server's namespace and return its output."""
        return run("nsenter", f"--net={self.server}", *words)

    def at_clients(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program in the clients' namespace."""
        command = ["nsenter", f"--net={self.clients}", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    @contextlib.contextmanager
    def connected(
        self, sources: list[str], port: int, number: int, first: bytes, address: str = SERVER
    ) -> Iterator[dict[str, int]]:
        """Hold `number` connections from each address, each with a first message; yield how many each one got."""
        with self._holding(CONNECTIONS, address, port, sources, number, first.hex()) as counts:
            yield counts

    @contextlib.contextmanager
    def logged_in(self, conninfo: str, number: int) -> Iterator[int]:
        """Hold sessions; yield their number."""
        with self._holding(LOGINS, conninfo, number) as count:
            yield count

    @contextlib.contextmanager
    def _holding(self, script: str, *given: object) -> Iterator[Any]:
        command = ["nsenter", f"--net={self.clients}", sys.executable, "-c", script, json.dumps(given)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield json.loads(process.stdout.readline())
            finally:
                process.kill()


@contextlib.contextmanager
def network(name: str) -> Iterator[Network]:
    """Make both namespaces, named after `name` (up to 10 characters), and remove them."""
    ends = {f"{name}s": (f"{SERVER}/24", f"{SERVER_6}/32"), f"{name}c": clients()}
    made = []
    try:
        for each in ends:
            run("ip", "netns", "add", each)
            made.append(each)
        first, second = ends
        run(
            "ip", "link", "add", f"{name}v", "netns", first, "type", "veth", "peer", "name", f"{name}v", "netns", second
        )
        for each, addresses in ends.items():
            for address in addresses:
                duplicates = ["nodad"] if ":" in address else []
                run("ip", "-n", each, "address", "add", address, "dev", f"{name}v", *duplicates)
            for device in ("lo", f"{name}v"):
                run("ip", "-n", each, "link", "set", device, "up")
        yield Network(*(Path("/run/netns", each) for each in ends))
    finally:
        for each in made:
            run("ip", "netns", "delete", each)


def clients() -> tuple[str, ...]:
    """Return the clients' addresses: nine of IPv4, two of one IPv6 network, and one of another."""
    return (
        *(f"192.0.2.{n}/24" for n in range(2, 11)),
        "2001:db8:0:1::2/32",
        "2001:db8:0:1::3/32",
        "2001:db8:0:2::2/32",
    )
