"""Unfinished logins from the network at a prod host's own port: the host's operators and the pooler do not notice."""

from __future__ import annotations

import json
import select
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.system.production import Production
from tests.system.test_pgbouncer import connect, on_host

BODY = b"user\0minion_app\0database\0minion\0\0"
STARTUP = struct.pack("!ii", len(BODY) + 8, 196608) + BODY
ENCRYPT = struct.pack("!ii", 8, 80877103)
STRANGERS = 500
ATTEMPTS = 3
PSQL = "psql -XAtq -d minion -c 'SELECT 1'"
METRICS = "/var/lib/provision-metrics/provision.prom"


@contextmanager
def flooded(production: Production) -> Iterator[Callable[[], bool]]:
    """Begin logins at both ports from this machine, as many as they accept, and never send a password.

    Both want TLS first: a login without it would be refused at once. Yield a question: are all of them unfinished yet?
    """
    plan = json.loads(on_host(production, "cat /etc/provision/plan.json"))
    limit = plan["server"]["address_connections"]
    assert 0 < limit < plan["server"]["max_connections"] - plan["pooler"]["total"]
    # An application host is no flood.
    assert STRANGERS < plan["pooler"]["address_clients"] < plan["pooler"]["max_clients"]
    address = production.database.address
    tls = ssl.create_default_context(cafile=production.authority / "ca.crt")
    with ExitStack() as stack:
        ends, accepted = select.poll(), dict.fromkeys((6432, 5432), 0)  # the pooler waits longer than the server
        for port in accepted:
            for _ in range(STRANGERS):
                with suppress(ConnectionError, TimeoutError):
                    client = stack.enter_context(socket.create_connection((address, port), 5))
                    client.sendall(ENCRYPT)
                    assert client.recv(1) == b"S"
                    client = stack.enter_context(tls.wrap_socket(client, server_hostname=address))
                    client.sendall(STARTUP)
                    assert client.recv(1) == b"R"  # it asks for the password
                    ends.register(client, select.POLLRDHUP)
                    accepted[port] += 1
        assert accepted == {6432: STRANGERS, 5432: limit}
        yield lambda: not ends.poll(0)


def while_flooded(production: Production, log_in: Callable[[], object]) -> None:
    """Log in, again if that took longer than the unfinished logins last: 10 s at the server, 15 s at the pooler."""
    for _ in range(ATTEMPTS):
        with flooded(production) as unfinished:
            log_in()
            if unfinished():
                return
    pytest.fail("the unfinished logins ended before the others were done")


def findings(production: Production) -> dict[str, str]:
    shown = production.database.run("provision doctor --json").stdout
    return {each["id"]: each["seen"] for each in json.loads(shown)["findings"]}


@pytest.mark.parametrize(
    "command",
    [
        f"runuser -u postgres -- {PSQL}",
        f"runuser -u postgres -- {PSQL} -U minion_backup",
        f"runuser -u prometheus -- {PSQL} -h /var/run/postgresql -U minion_monitor",
    ],
    ids=["superuser", "backup", "monitor"],
)
def test_operators_log_in_while_500_logins_are_unfinished_on_both_ports(production: Production, command: str) -> None:
    def log_in() -> None:
        assert on_host(production, command) == "1"

    while_flooded(production, log_in)


def test_metrics_are_collected_while_500_logins_are_unfinished_on_both_ports(production: Production) -> None:
    collect = f"rm -f {METRICS} && systemctl start provision-metrics && grep -q pgbouncer_up {METRICS}"
    while_flooded(production, lambda: on_host(production, collect))


def test_applications_log_in_while_500_logins_are_unfinished_on_both_ports(production: Production) -> None:
    while_flooded(production, lambda: connect(production).close())


@pytest.mark.faults  # among the damages of test_doctor.py
def test_the_doctor_finds_a_flushed_firewall_and_loads_it_again(production: Production) -> None:
    assert "firewall" not in findings(production)
    on_host(production, "nft flush ruleset")
    assert findings(production)["firewall"] == (
        "no table inet provision: connections to port 5432 and 6432 are not limited"
    )
    on_host(production, "provision doctor --fix || true")
    assert "firewall" not in findings(production)


@pytest.mark.parametrize("command", ["restart nftables", "stop nftables && systemctl start nftables"])
def test_nftables_service_flushes_the_limits_and_loads_them_again(production: Production, command: str) -> None:
    on_host(production, f"systemctl {command}")
    assert "firewall" not in findings(production)


@pytest.mark.faults  # tests/integration/test_pooler_faults.py has a hung pooler
def test_a_frozen_pooler_is_a_critical_finding_and_a_metric(production: Production) -> None:
    on_host(production, "systemctl kill --signal=SIGSTOP --kill-whom=main pgbouncer")
    try:
        shown = production.database.run("provision doctor --json").stdout
        found = {each["id"]: each for each in json.loads(shown)["findings"]}["pooler"]
        assert found["severity"] == "critical"
        assert "the pooler runs but its console does not answer" in found["seen"]
        assert found["fix"] == "systemctl restart pgbouncer.service"
        reported = production.database.run("runuser -u postgres -- provision metrics")
        assert reported.returncode == 1  # the timer's unit fails too
        assert "pgbouncer_up 0" in reported.stdout
    finally:
        on_host(production, "systemctl kill --signal=SIGCONT --kill-whom=main pgbouncer")
    connect(production).close()
    assert "pooler" not in findings(production)
