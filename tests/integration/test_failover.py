"""Switchover and failover of a real cluster of three members, judged by a ledger of acknowledged rows.

One cluster for all tests, each of which must leave it complete. Tests that take long are marked `faults`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from provision.checks import cluster as checks
from provision.host.cluster import access, hold, orders
from provision.host.cluster.dcs import Dcs, DcsError, RejectedError
from tests import ledger
from tests.clusters import as_server_user
from tests.ledger import Ledger
from tests.members import DATABASE, FOLLOW, USER, Host, Members, running

CLIENTS = 20
MANY, SWITCHOVERS = 100, 20
ROWS = 100
"""Acknowledged rows of each writer before a fault begins."""
CLOCK = """
import runpy, sys, time
from pathlib import Path
offset, machine = Path(sys.argv.pop(1)), time.time
time.time = lambda: machine() + float(offset.read_text() or 0)
runpy.run_module("patroni", run_name="__main__", alter_sys=True)
"""
"""Patroni with a wall clock that a file moves."""
GAP_S = 30
"""More than ttl 20 and what follows it."""


@pytest.fixture(scope="module")
def members() -> Iterator[Members]:
    with running() as found:
        with found.superuser(found.leader(), DATABASE) as session:
            session.execute(ledger.CREATE)
            session.execute(f"ALTER TABLE ledger OWNER TO {USER}".encode())
        yield found


@pytest.fixture(autouse=True)
def left_complete(members: Members) -> Iterator[None]:
    """Wait until a test's cluster is complete, for a primary that dies before that is not replaced but restarted.

    Patroni fails over to a replica that may confirm commits alone; a switchover is reported before it has admitted one.
    """
    yield
    members.until(members.complete, 120, "the test left a cluster that is not complete")


def routes(members: Members) -> dict[str, str]:
    """The ways to the primary, by name: a pooler, several poolers, and the servers themselves."""
    hosts = list(members.hosts.values())
    everyone = ",".join(host.member.address for host in hosts)
    rest = f"dbname={DATABASE} user={USER} connect_timeout=2 tcp_user_timeout=5000 keepalives_idle=5"
    return {
        "pooler of db3": hosts[2].url(hosts[2].member.pooler_port),
        "poolers": f"host={everyone} port={hosts[0].member.pooler_port} {rest}",
        "balancer": hosts[1].url(members.balancer_port),
        "servers": f"host={everyone} port={hosts[0].member.port} target_session_attrs=read-write {rest}",
    }


def judged(members: Members, act: Callable[[], object], *, within_s: float = GAP_S) -> list[ledger.Account]:
    """Write through all routes while something happens; nothing acknowledged may be lost or written twice."""
    with members.superuser(members.leader(), DATABASE) as session:
        session.execute(b"TRUNCATE ledger")
    book = Ledger(routes(members))
    with book.writing(settle_s=1):
        members.until(lambda: book.written(ROWS), 60, "a writer is not served")
        begun = time.monotonic()
        act()
        since = max(begun + 1, time.monotonic())  # a writer may have been served for a moment after the fault began
        members.until(lambda: book.resumed(since), within_s + 60, "a writer has no acknowledgement")
    members.until(members.complete, 120, "the cluster is not complete")
    leader = members.leader()
    accounts = book.accounts(f"host={leader.home} port={leader.member.port} user=postgres dbname={DATABASE}")
    print("\n".join(map(str, accounts)), file=sys.stderr)
    for account in accounts:
        assert account.lost == (), account
        assert account.duplicates == 0, account
        assert account.acknowledged > ROWS, account
        assert account.gap_s < within_s, account
    return accounts


def switch(members: Members, to: Host, *words: str) -> subprocess.CompletedProcess[str]:
    return members.hosts["db3"].provision("cluster", "switchover", "--to", to.name, "--json", *words)


def pgbench(
    members: Members, clients: int, seconds: int, host: Host | None = None, log: Path | None = None
) -> subprocess.Popen[str]:
    """Start transactions without retries through the pooler of a host, by default of db2; log each into a directory."""
    pooler = host or members.hosts["db2"]
    place = ["-h", pooler.member.address, "-p", str(pooler.member.pooler_port), "-U", USER]
    subprocess.run(["pgbench", *place, "-i", "-q", "-s", "1", DATABASE], check=True, capture_output=True)
    options = ["-n", "-c", str(clients), "-j", "2", "-T", str(seconds), "--max-tries=1", "-r", "-P", "1"]
    options += ["-l", f"--log-prefix={log / 'log'}"] if log else []
    return subprocess.Popen(
        ["pgbench", *place, *options, DATABASE], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_switchover_fails_no_transaction_of_a_pooler(members: Members) -> None:
    source, target = members.leader(), members.candidate()
    bench = pgbench(members, CLIENTS, 12)
    time.sleep(3)
    done = switch(members, target)
    output, _ = bench.communicate(timeout=60)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["source"], facts["target"], facts["streaming"]) == (source.name, target.name, True)
    assert facts["poolers"] == ["db1", "db2", "db3"]
    assert facts["paused_s"] < 15
    assert bench.returncode == 0, output[-3000:]
    assert "number of failed transactions: 0 (0.000%)" in output, output[-3000:]
    assert int(re.findall(r"number of transactions actually processed: (\d+)", output)[0]) > 500
    assert members.leader() is target


def test_switchover_loses_no_row_and_breaks_no_pooler_session(members: Members) -> None:
    source, target = members.leader(), members.candidate()
    accounts = judged(members, lambda: switch(members, target), within_s=20)
    assert [account.errors for account in accounts if account.writer.startswith("pooler")] == [(), ()]
    assert members.leader() is target
    (third,) = (host for host in members.hosts.values() if host not in (source, target))
    changes = re.findall(r'"primary_conninfo" changed to "(.*)"', (third.home / "patroni.log").read_text())
    ours = [change for change in changes if "channel_binding=disable" in change]
    assert f"host={target.member.address} " in ours[-1], changes
    own = third.data / "postgresql.auto.conf"
    members.until(lambda: "primary_conninfo" not in own.read_text(), 30, "Patroni has not replaced the setting")


def test_every_pooler_leads_to_the_primary(members: Members) -> None:
    done = members.hosts["db2"].provision("cluster", "status", "--json")
    facts = json.loads(done.stdout)
    assert (done.returncode, facts["problems"]) == (0, [])
    leader = members.leader().name
    assert {each["pooler"]: each["target"] for each in facts["poolers"]} == dict.fromkeys(("db1", "db2", "db3"), leader)


def test_refuses_a_switchover_before_the_pause(members: Members) -> None:
    leader = members.leader()
    for name, expected in {
        leader.name: f"{leader.name} is the primary already",
        "db9": "db9 is not a member of the cluster",
    }.items():
        done = members.hosts["db1"].provision("cluster", "switchover", "--to", name)
        assert done.returncode == 1
        assert expected in done.stderr
        assert "pausing" not in done.stderr


def test_long_transaction_stops_the_switchover_and_the_poolers_resume(members: Members) -> None:
    leader, target = members.leader(), members.candidate()
    pooler = members.hosts["db1"]
    with psycopg.connect(pooler.url(pooler.member.pooler_port)) as session:
        session.execute("SELECT 1")
        done = switch(members, target, "--wait", "1")
        assert done.returncode == 1
        assert "transactions did not end within 1 s; nothing was switched and the poolers resume" in done.stderr
        assert "db1: 1 transactions run" in done.stderr
        session.execute("SELECT 1")  # the transaction goes on
    assert members.leader() is leader
    assert all(members.reaches(host) for host in members.hosts.values())


def test_killed_switchover_leaves_no_pooler_paused(members: Members) -> None:
    leader, target = members.leader(), members.candidate()
    pooler = members.hosts["db1"]
    with psycopg.connect(pooler.url(pooler.member.pooler_port)) as session:
        session.execute("SELECT 1")  # holds the command in its pause
        words = ["cluster", "switchover", "--to", target.name, "--wait", "60"]
        command = as_server_user("/usr/bin/python3", "-S", "-c", FOLLOW, str(pooler.home), *words)
        process = subprocess.Popen(command, cwd=pooler.home, env=pooler.environment, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        while "pausing" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(1)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        process.stderr.close()
        other = members.hosts["db2"]
        took = members.until(lambda: members.reaches(other), 25, "the pooler of db2 is still paused")
        assert took < 20
    assert members.leader() is leader


def test_killed_postmaster_is_replaced_within_seconds(members: Members) -> None:
    leader = members.leader()
    judged(members, leader.kill_server, within_s=20)
    assert members.leader() is not leader


@pytest.mark.faults
def test_doctor_names_the_problems_of_the_cluster(members: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    host, replica = members.hosts["db1"], members.replicas()[-1]
    monkeypatch.setattr(access, "SECRETS", host.home / "cluster.json")
    assert list(checks.unhealthy(host.plan)) == []
    replica.kill("follow")
    replica.kill("patroni", signal.SIGTERM)  # which stops the server
    try:
        wanted = f"{replica.name} is "
        members.until(lambda: any(str(row).startswith(wanted) for row in checks.unhealthy(host.plan)), 60, "not named")
    finally:
        replica.start("patroni")
        replica.start("follow")
    members.until(members.healthy, 60, "the cluster is not healthy")
    members.until(lambda: not list(checks.unhealthy(host.plan)), 30, "a problem stays")


@pytest.mark.faults
def test_follower_that_dies_is_named_and_stops_a_switchover(members: Members) -> None:
    host, target = members.hosts["db2"], members.candidate()
    host.kill("follow")
    problem = "the pooler of db2 has no running follower"
    try:
        members.until(lambda: problem in host.provision("cluster", "status").stdout, 30, "status does not name it")
        done = switch(members, target)
        assert done.returncode == 1
        assert "poolers have no running follower" in done.stderr
        assert members.reaches(host)  # its pooler goes on
    finally:
        host.start("follow")
    members.until(lambda: problem not in host.provision("cluster", "status").stdout, 30, "the follower is missing")


def test_rolling_restart_breaks_no_pooler_session(members: Members) -> None:
    leader = members.leader()
    assert members.hosts["db1"].provision("cluster", "restart").stdout == "no pending restart\n"
    unknown = members.hosts["db1"].provision("cluster", "restart", "--only", "db9")
    assert (unknown.returncode, "db9 is not a member of the cluster" in unknown.stderr) == (1, True), unknown.stderr
    members.patroni().configure(leader.member, {"postgresql": {"parameters": {"shared_buffers": "72MB"}}})

    def pending() -> list[bool]:
        return [each.pending_restart for each in members.view().members]

    members.until(lambda: pending() == [True] * 3, 20, "no restart is pending")
    others = sorted(host.name for host in members.replicas())

    def restart() -> None:
        done = members.hosts["db1"].provision("cluster", "restart", "--json")
        assert done.returncode == 0, done.stderr
        restarted = json.loads(done.stdout)["restarted"]
        assert sorted(restarted[:2]) == others
        assert restarted[2] == leader.name

    accounts = judged(members, restart, within_s=20)
    assert [account.errors for account in accounts if account.writer.startswith("pooler")] == [(), ()]
    assert members.leader() is leader
    assert pending() == [False] * 3


def test_poolers_are_held_longer_than_an_order_lives_without_an_error(members: Members) -> None:
    leader = members.leader()
    reach, seconds = access.of(leader.plan, leader.home / "cluster.json"), orders.LEASE_S + 3

    def held() -> None:
        with hold.poolers(reach, lambda _text: None, seconds=60, wait_s=10):
            time.sleep(seconds)

    accounts = judged(members, held, within_s=seconds + 15)
    through = [account for account in accounts if account.writer.startswith("pooler")]
    assert [account.errors for account in through] == [(), ()]
    assert all(account.gap_s > seconds for account in through), through
    assert members.leader() is leader


def test_maintenance_pause_stops_a_failover_and_is_named(members: Members) -> None:
    host = members.hosts["db1"]
    assert host.provision("cluster", "pause").stdout == "automatic failover is off\n"
    assert host.provision("cluster", "pause").stdout == "automatic failover was off already\n"
    done = host.provision("cluster", "status")
    assert (done.returncode, "automatic failover is off" in done.stdout) == (3, True)
    assert host.provision("cluster", "resume").stdout == "automatic failover is on\n"
    assert host.provision("cluster", "status").returncode == 0


def test_failover_stays_off_during_a_major_upgrade(members: Members) -> None:
    host = members.hosts["db1"]
    dcs, key = Dcs.of(access.of(host.plan, host.home / "cluster.json")), orders.upgrade_key("minion")
    assert host.provision("cluster", "pause").returncode == 0
    dcs.put(key, "db2 is being moved from PostgreSQL 15 to 17")
    try:
        refused = host.provision("cluster", "resume")
        assert refused.returncode == 1
        assert "db2 is being moved from PostgreSQL 15 to 17" in refused.stderr
        status = host.provision("cluster", "status").stdout
        assert "db2 is being moved from PostgreSQL 15 to 17; automatic failover stays off" in status
        assert "provision cluster resume" not in status
    finally:
        dcs.delete(key)
    assert host.provision("cluster", "resume").stdout == "automatic failover is on\n"


@pytest.mark.faults
def test_reinitialises_a_replica_and_refuses_the_primary(members: Members) -> None:
    leader, host = members.leader(), members.replicas()[0]
    done = members.hosts["db1"].provision("cluster", "reinitialise", leader.name, "--yes-destroy", leader.name)
    assert (done.returncode, f"{leader.name} is the primary" in done.stderr) == (1, True)
    done = members.hosts["db1"].provision("cluster", "reinitialise", host.name, "--yes-destroy", "db9")
    assert done.returncode != 0
    before = (host.data / "PG_VERSION").stat().st_ino
    done = members.hosts["db1"].provision("cluster", "reinitialise", host.name, "--yes-destroy", host.name)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{host.name} streams\n"
    assert (host.data / "PG_VERSION").stat().st_ino != before


def test_etcd_gone_and_back_stops_no_client(members: Members) -> None:
    leader = members.leader()
    judged(members, lambda: all_etcd(members, 8), within_s=10)
    assert members.leader() is leader  # failsafe mode


def test_login_without_a_quorum_of_etcd_is_not_called_a_wrong_password(members: Members) -> None:
    replicas = members.replicas()
    for host in replicas:
        host.kill("etcd")
    try:
        client = Dcs.of(members.access(members.leader()), timeout_s=12)
        with pytest.raises(DcsError) as seen:
            client.read("/service/minion/leader")
    finally:
        for host in replicas:
            host.start("etcd")
    assert not isinstance(seen.value, RejectedError), seen.value


def paused_host(members: Members, seconds: float) -> Callable[[], None]:
    """Return an act: stop every process of the primary's host for some seconds, then continue them."""

    def act() -> None:
        host = members.leader()
        host.signal_all(signal.SIGSTOP)
        time.sleep(seconds)
        host.signal_all(signal.SIGCONT)

    return act


def killed_host(members: Members) -> None:
    host = members.leader()
    host.kill_all()
    time.sleep(30)
    host.start_all()


def killed(members: Members, program: str, *, leader: bool) -> None:
    """Kill one program of the primary's host, or of another, and start it again as systemd would."""
    host = members.leader() if leader else members.replicas()[0]
    host.kill(program)
    time.sleep(2)
    host.start(program)


def frozen_patroni(members: Members) -> None:
    """Stop Patroni alone: the primary goes on until its key expires, and nothing stops it."""
    process = members.leader().running["patroni"]
    process.send_signal(signal.SIGSTOP)
    time.sleep(40)
    process.send_signal(signal.SIGCONT)


def lost_replica(members: Members) -> None:
    host = members.replicas()[0]
    host.kill_all()
    time.sleep(10)
    host.start_all()


def planned(members: Members) -> None:
    target = members.candidate()
    done = switch(members, target)
    assert done.returncode == 0, done.stderr
    assert members.leader() is target
    print(f"clients waited {json.loads(done.stdout)['paused_s']:.2f} s", file=sys.stderr)


def all_etcd(members: Members, seconds: float) -> None:
    """Kill every etcd member, and start them again after some seconds."""
    for host in members.hosts.values():
        host.kill("etcd")
    time.sleep(seconds)
    for host in members.hosts.values():
        host.start("etcd")


def partition(members: Members) -> None:
    """Cut the primary off from the other members for 40 s, while clients still reach every member."""
    old = members.leader()
    with members.cut(old):
        others = [host for host in members.hosts.values() if host is not old]
        members.until(lambda: any(members.writable(host) for host in others), 60, "no other primary")
        members.until(lambda: not members.writable(old), 60, "the old primary accepts writes")
        time.sleep(10)
    # Until its Patroni reaches etcd again, it shows the cluster as it was before.
    members.until(lambda: members.replaced(old), 60, "the old primary is the leader again")


def slow_replica(members: Members) -> None:
    """Let the server of a replica work a tenth of the time, as with a disk that is too slow, for 20 s."""
    host = members.replicas()[0]
    until = time.monotonic() + 20
    while time.monotonic() < until:
        for how, seconds in ((signal.SIGSTOP, 0.9), (signal.SIGCONT, 0.1)):
            for pid in host.server_processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, how)
            time.sleep(seconds)


def full_disk(members: Members) -> None:
    """Fill the disk of the primary's data directory until another member is primary, then free it."""
    old = members.leader()
    assert os.path.ismount(old.disk), "the fault needs the right to mount a disk"
    fill = old.disk / "fill"
    with suppress(OSError), fill.open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 2**20)
    try:
        with suppress(psycopg.Error), members.superuser(old, DATABASE) as session:
            # WAL alone: a table that cannot grow is an error of one transaction, and the server goes on.
            session.execute("SELECT pg_logical_emit_message(false, 'fill', repeat('x', 1000000))"
                            " FROM generate_series(1, 300)")  # fmt: skip
        members.until(lambda: members.replaced(old), 90, "no failover")
    finally:
        fill.unlink()


def clock_set(members: Members, seconds: int) -> None:
    """Set the clock of the primary's Patroni, and let it run on for 40 s; etcd and the server keep the machine's.

    It is first started again with a time.time() that can be moved: a process alone has no wall clock of its own.
    """
    host = members.leader()
    offset, command = host.home / "clock", host.commands["patroni"]
    offset.write_text("0")

    def restart(*words: object) -> None:
        host.commands["patroni"] = [str(word) for word in words]
        host.kill("patroni")
        host.start("patroni")
        time.sleep(5)  # until then, the others show the state from before
        members.until(members.complete, 120, "the cluster is not complete")

    try:
        restart(*command[: command.index("-m")], "-c", CLOCK, offset, command[-1])
        offset.write_text(str(seconds))
        time.sleep(40)
        members.until(members.complete, 120, "the cluster is not complete under the other clock")
    finally:
        restart(*command)


FAULTS: dict[str, Callable[[Members], object]] = {
    "planned switchover": planned,
    "postmaster killed": lambda members: members.leader().kill_server(),
    "Patroni killed": lambda members: killed(members, "patroni", leader=True),
    "Patroni frozen for 40 s": frozen_patroni,
    "etcd of the primary killed": lambda members: killed(members, "etcd", leader=True),
    "etcd of a replica killed": lambda members: killed(members, "etcd", leader=False),
    "replica lost": lost_replica,
    "primary's host killed": killed_host,
    "primary's host paused for 60 s": lambda members: paused_host(members, 60)(),
    "all of etcd killed for 20 s": lambda members: all_etcd(members, 20),
    "primary cut off from the others": partition,
    "replica slowed to a tenth": slow_replica,
    "disk of the primary full": full_disk,
    "clock of the primary set forward by an hour": lambda members: clock_set(members, 3600),
    "clock of the primary set back by an hour": lambda members: clock_set(members, -3600),
}
ROUNDS = int(os.environ.get("FAULT_ROUNDS", "5"))


@pytest.mark.faults
@pytest.mark.parametrize("fault", FAULTS)
def test_no_acknowledged_row_is_lost(members: Members, fault: str) -> None:
    for number in range(1, ROUNDS + 1):
        print(f"{fault}, round {number}", file=sys.stderr)
        judged(members, lambda: FAULTS[fault](members), within_s=90)


@pytest.mark.faults
def test_logical_slot_survives_a_switchover_if_patroni_knows_it(members: Members) -> None:
    leader = members.leader()
    slot = {"type": "logical", "database": DATABASE, "plugin": "test_decoding"}
    members.patroni().configure(leader.member, {"postgresql": {"parameters": {"wal_level": "logical"}}})
    members.until(lambda: members.view().members[0].pending_restart, 30, "no restart is pending")
    done = members.hosts["db1"].provision("cluster", "restart")
    assert done.returncode == 0, done.stderr
    members.until(members.complete, 120, "the cluster is not complete")

    def slots(host: Host) -> set[str]:
        with suppress(psycopg.Error), members.superuser(host, DATABASE) as session:
            return {str(name) for (name,) in session.execute("SELECT slot_name FROM pg_replication_slots")}
        return set()  # a replica restarts when a slot is copied to it

    with members.superuser(leader, DATABASE) as session:
        session.execute("SELECT pg_create_logical_replication_slot('by_hand', 'test_decoding')")
    members.patroni().configure(leader.member, {"slots": {"events": slot}})
    members.until(lambda: all("events" in slots(host) for host in members.hosts.values()), 120, "a member has no slot")
    members.until(members.complete, 120, "the cluster is not complete")
    with members.superuser(leader, DATABASE) as session:
        session.execute("INSERT INTO ledger (writer, id) SELECT 'slot', i FROM generate_series(1, 100) i")
    target = members.candidate()
    done = switch(members, target)
    assert done.returncode == 0, done.stderr
    with members.superuser(target, DATABASE) as session:
        read = "SELECT data FROM pg_logical_slot_get_changes('events', NULL, NULL) WHERE data LIKE '%INSERT%''slot''%'"
        assert len(session.execute(read).fetchall()) == 100
    members.until(lambda: "by_hand" not in slots(leader) | slots(target), 60, "a slot is left")
    members.patroni().configure(target.member, {"slots": None})


@pytest.mark.faults
def test_twenty_switchovers_fail_no_transaction_of_a_hundred_clients(members: Members, tmp_path: Path) -> None:
    waits = []
    for number in range(1, SWITCHOVERS + 1):
        target = members.candidate()
        log = tmp_path / str(number)
        log.mkdir()
        bench = pgbench(members, MANY, 12, log=log)
        time.sleep(3)
        done = switch(members, target)
        output, _ = bench.communicate(timeout=120)
        assert done.returncode == 0, done.stderr
        assert bench.returncode == 0, output[-3000:]
        assert "number of failed transactions: 0 (0.000%)" in output, output[-3000:]
        facts = json.loads(done.stdout)
        lines = [line for part in log.glob("log.*") for line in part.read_text().splitlines()]
        waits.append(max(int(line.split()[2]) for line in lines) / 1e6)  # until a replica has confirmed the commit
        parts = ", ".join(f"{name} {facts[name]:.2f}" for name in ("drained_s", "promoted_s", "resumed_s"))
        count = re.findall(r"number of transactions actually processed: (\d+)", output)[0]
        pause = f"pause {facts['paused_s']:.2f} s ({parts})"
        print(f"switchover {number}: waited {waits[-1]:.2f} s, {pause}, {count} transactions", file=sys.stderr)
        members.until(members.healthy, 60, "the cluster is not healthy")
    print(f"longest wait {max(waits):.2f} s, median {sorted(waits)[len(waits) // 2]:.2f} s", file=sys.stderr)


@pytest.fixture(scope="module")
def beside(members: Members) -> Iterator[Host]:
    """Give a host of the group pooler, which the tests below add to the cluster."""
    with members.beside() as found:
        yield found


def test_switchover_fails_no_transaction_of_a_pooler_without_a_server(members: Members, beside: Host) -> None:
    target = members.candidate()
    bench = pgbench(members, CLIENTS, 8, beside)
    time.sleep(2)
    done = switch(members, target)
    output, _ = bench.communicate(timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["poolers"] == ["app1", "db1", "db2", "db3"]
    assert bench.returncode == 0, output[-3000:]
    assert "number of failed transactions: 0 (0.000%)" in output, output[-3000:]
    assert members.leader() is target


def test_pooler_without_a_server_follows_a_failover(members: Members, beside: Host) -> None:
    leader = members.leader()
    leader.kill_server()
    members.until(lambda: members.replaced(leader), GAP_S, "no other primary")
    took = members.until(lambda: members.reaches(beside), 15, "the pooler has no primary")
    print(f"the pooler of app1 led to the new primary {took:.1f} s after it was elected", file=sys.stderr)


def test_host_without_a_server_shows_the_cluster_and_may_not_change_it(beside: Host) -> None:
    shown = beside.provision("cluster", "status", "--json")
    facts = json.loads(shown.stdout)
    assert (shown.returncode, facts["problems"]) == (0, [])
    assert {each["pooler"] for each in facts["poolers"]} == {"app1", "db1", "db2", "db3"}
    for words in (["switchover"], ["restart"], ["pause"], ["resume"], ["reinitialise", "db1", "--yes-destroy", "db1"]):
        done = beside.provision("cluster", *words)
        assert (done.returncode, "this host may not control the cluster" in done.stderr) == (1, True), words


def test_password_of_a_follower_reads_and_writes_nothing_else(beside: Host) -> None:
    dcs = Dcs.of(access.of(beside.plan, beside.home / "cluster.json"))
    scope = "minion"
    assert orders.leader_key(scope) in dcs.read(orders.leader_key(scope), orders.order_key(scope))
    for key in ("/service/", f"/service/{scope}/config", f"/provision/{scope}/", f"/provision/{scope}/backup/"):
        with pytest.raises(RejectedError, match="etcd rejected the request"):
            dcs.read(key)
    for key in (orders.order_key(scope), orders.leader_key(scope), f"/provision/{scope}/backup/drill"):
        with pytest.raises(RejectedError):
            dcs.put(key, "forged")


def test_follower_without_a_server_that_dies_is_named_and_stops_a_switchover(members: Members, beside: Host) -> None:
    target = members.candidate()
    beside.kill("follow")
    problem = "the pooler of app1 has no running follower"
    try:
        members.until(lambda: problem in members.hosts["db1"].provision("cluster", "status").stdout, 30, "not named")
        done = switch(members, target)
        assert done.returncode == 1
        assert "poolers have no running follower, so their clients would get errors" in done.stderr
        assert "app1" in done.stderr
        assert members.leader() is not target
    finally:
        beside.start("follow")
    members.until(lambda: problem not in beside.provision("cluster", "status").stdout, 30, "the follower is missing")


def test_pooler_without_a_server_asks_the_members_while_etcd_is_silent(members: Members, beside: Host) -> None:
    leader = members.leader()
    for host in members.hosts.values():
        host.kill("etcd")
    beside.kill("follow")
    try:
        file = beside.home / "pooler/follow/databases.ini"
        file.write_text("")
        beside.start("follow")
        members.until(lambda: leader.member.address in file.read_text(), 30, "the members do not answer")
    finally:
        for host in members.hosts.values():
            host.start("etcd")
    members.until(lambda: members.reaches(beside), 30, "the pooler has no primary")
