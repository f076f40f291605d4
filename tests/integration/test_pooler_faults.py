"""A pooler that hangs, that remembers a failure whose cause is gone, or whose client is gone, with a real PgBouncer."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from provision.checks import pooler as checks
from provision.checks.finding import Severity
from provision.checks.registry import get
from provision.errors import DatabaseError
from provision.host.metrics import collect
from provision.host.pooler import console, login
from provision.plan import load
from provision.quoting import conninfo
from provision.tuning import Host, tune
from provision.tuning.choices import built_in
from tests import poolers
from tests.clusters import Cluster
from tests.plans import sample, write
from tests.until import until


@dataclass
class Pooler:
    """A running PgBouncer before a server of its own."""

    server: Cluster
    port: int
    process: subprocess.Popen[bytes]

    @property
    def place(self) -> console.Place:
        return console.Place(self.server.host, self.port)

    def url(self) -> str:
        return conninfo({"host": "127.0.0.1", "port": self.port, "dbname": "postgres"})


@pytest.fixture
def pooler() -> Iterator[Pooler]:
    server = Cluster.create()
    server.psql("CREATE ROLE minion LOGIN")
    databases = {"postgres": f"host={server.host} port={server.port}"}
    waits = {"server_login_retry": 1, "query_wait_timeout": 2}
    try:
        with poolers.running(
            server.root, databases, {"minion": "a"}, auth_type="trust", unix_socket_dir=server.host, **waits
        ) as found:
            yield Pooler(server, found.port, found.process)
            found.process.send_signal(signal.SIGCONT)
    finally:
        server.remove()


def test_hung_pooler_is_a_critical_finding_and_a_metric(
    pooler: Pooler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = sample(pooler={"enabled": True, "socket_directory": pooler.server.host, "port": pooler.port})
    monkeypatch.setattr(load, "PATH", write(tmp_path / "plan.json", plan))
    assert "pgbouncer_up 1" in collect.collect().text
    with pooler.place.console() as session:
        assert console.show(session, "VERSION")
    pooler.process.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(DatabaseError) as hung, pooler.place.console():
        pass
    assert time.monotonic() - begun < 15
    finding = get("pooler").finding(checks.no_answer(hung.value), plan.site)
    assert (finding.severity, finding.counts) == (Severity.CRITICAL, True)
    assert "runs but its console does not answer" in finding.seen
    assert "timeout" in finding.seen
    assert finding.fix == "systemctl restart pgbouncer.service"
    assert "pgbouncer_up 0" in collect.collect().text


def test_failure_that_the_pooler_remembers_does_not_fail_the_proof(pooler: Pooler) -> None:
    assert login.prove(pooler.url(), {"minion": "a"}) == ["minion logged in"]
    pooler.server.stop()
    for _ in range(3):
        with pytest.raises(DatabaseError):
            login.prove(pooler.url(), {"minion": "a"})
    with pytest.raises(DatabaseError) as refused:
        login.prove(pooler.url(), {"minion": "a"}, 2)
    assert login.CACHED in refused.value.seen
    pooler.server.start()
    assert login.prove(pooler.url(), {"minion": "a"}, 12) == ["minion logged in"]


def test_other_failures_are_not_repeated(pooler: Pooler) -> None:
    begun = time.monotonic()
    with pytest.raises(DatabaseError, match="cannot connect"):
        login.prove(pooler.url(), {"nobody": "a"}, 30)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooled"])
@pytest.mark.parametrize(("check_s", "left"), [(1, "0"), (0, "1")])
def test_statement_of_a_killed_client_ends_only_if_the_server_checks(
    pooler: Pooler, pooled: bool, check_s: int, left: str
) -> None:
    choices = replace(built_in("prod"), client_connection_check_s=check_s)
    setting = tune(Host(2048, 2), "prod", choices=choices)["client_connection_check_interval"]
    pooler.server.psql(f"ALTER SYSTEM SET {setting.name} = '{setting.text}'; SELECT pg_reload_conf()")
    active = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%'"
    place = f"{pooler.url()} user=minion" if pooled else pooler.server.url()
    command = [str(pooler.server.bin / "psql"), "-X", "-c", "SELECT pg_sleep(60)", place]
    client = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert until(lambda: pooler.server.psql(active) == "1", 10), "the statement does not run"
    client.kill()
    client.wait(10)
    time.sleep(3)  # three checks
    assert pooler.server.psql(active) == left
