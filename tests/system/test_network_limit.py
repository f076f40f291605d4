"""Unfinished logins from the network at a prod host's own port: the host's operators and the pooler do not notice."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.system.production import Production
from tests.system.test_pgbouncer import connect, on_host

BODY = b"user\0minion_app\0database\0minion\0\0"
STARTUP = struct.pack("!ii", len(BODY) + 8, 196608) + BODY
STRANGERS = 500


@contextmanager
def strangers(production: Production, port: int, number: int = STRANGERS) -> Iterator[int]:
    """Begin logins from this machine and never send a password; yield how many the host accepted."""
    with ExitStack() as stack:
        accepted = 0
        for _ in range(number):
            with suppress(OSError):
                client = stack.enter_context(socket.create_connection((production.database.address, port), 5))
                client.sendall(STARTUP)
                accepted += 1
        yield accepted


@contextmanager
def unfinished() -> Iterator[None]:
    """Fail if the block lasts so long that the server has ended the first of these logins."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < 10, "the first unfinished logins ended meanwhile"


def findings(production: Production) -> dict[str, str]:
    shown = production.database.run("provision doctor --json").stdout
    return {each["id"]: each["seen"] for each in json.loads(shown)["findings"]}


def test_operators_and_applications_log_in_while_500_logins_are_unfinished_on_both_ports(
    production: Production,
) -> None:
    plan = json.loads(on_host(production, "cat /etc/provision/plan.json"))
    limit = plan["server"]["address_connections"]
    assert 0 < limit < plan["server"]["max_connections"] - plan["pooler"]["total"]
    on_host(production, "rm -f /var/lib/provision-metrics/provision.prom")
    with strangers(production, 5432) as direct, strangers(production, 6432) as pooled, unfinished():
        assert (direct, pooled) == (limit, STRANGERS)
        for login in ("", "-U minion_backup"):
            assert on_host(production, f"runuser -u postgres -- psql -XAtq {login} -d minion -c 'SELECT 1'") == "1"
        as_monitor = "runuser -u prometheus -- psql -XAtq -h /var/run/postgresql -U minion_monitor -d minion"
        on_host(production, f"{as_monitor} -c 'SELECT 1'")
        connect(production).close()
    # An application host is no flood.
    assert STRANGERS < plan["pooler"]["address_clients"] < plan["pooler"]["max_clients"]
    with strangers(production, 5432), strangers(production, 6432), unfinished():
        on_host(production, "systemctl start provision-metrics && grep -q pgbouncer_up /var/lib/provision-metrics/*")


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
