"""A cluster of three real hosts and a backup host: converged, attacked, switched over, restored, killed.

The tests run in order on the same hosts, and each leaves a complete cluster behind.
CLUSTER_OS chooses the hosts' system.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from provision.distributions import DEFAULT_KEY
from provision.plan.secrets import new_password
from tests.ledger import CREATE, Ledger
from tests.sandboxes import INSTALLED, Host, Hosts, provision
from tests.system.playbooks import ROOT, Run, kill_commands, play, watched, words
from tests.until import until

NAMES = ("db1", "db2", "db3")
EVERY = (*NAMES, "keeper")
OS = os.environ.get("CLUSTER_OS", DEFAULT_KEY)
OLD = OS == "debian12"
"""Its Patroni shows streaming replicas as running; its pgBackRest is too old for a repository on another host."""
STOP = "systemctl disable --now patroni provision-follow pgbouncer"
"""As docs/cluster.md says, on a host that leaves."""
KILLED_RESTART = """
setsid provision cluster restart 2>/run/restart &
timeout 120 sh -c 'until grep -q pausing /run/restart; do sleep 0.05; done'
kill -s KILL -- -$!
wait $!
"""
"""Kills a rolling restart as it pauses the poolers for the primary's turn."""
LEDGER = CREATE + "; TRUNCATE ledger; GRANT INSERT, SELECT ON ledger TO minion_app"
AGENTS = "SELECT count(*), md5(string_agg(id::text || name, ',' ORDER BY id)) FROM agents"
SSL_REQUEST = bytes.fromhex("0000000804d2162f")
"""A PostgreSQL server answers it with a letter (manual, "SSL Session Encryption")."""
TTL_S = 30
"""Patroni's longer ttl."""
FAILOVER_S = 60
"""A killed host is replaced after the ttl of 20 s and an election; this machine is busy."""


@dataclass(frozen=True)
class Members:
    """Three members, and the environment of their own beside the inventory that the sandbox generates."""

    hosts: dict[str, Host]
    environment: Path
    key: Path
    password: str

    def play(self, *arguments: str, playbook: str = "site.yml", without: tuple[str, ...] = ()) -> Run:
        """Run a playbook; hosts in `without` are missing from the inventory."""
        inventory = self.hosts["db1"].inventory
        if without:
            groups = yaml.safe_load(inventory.read_text())
            for group in groups["all"]["children"].values():
                group["hosts"] = {name: each for name, each in group["hosts"].items() if name not in without}
            inventory = self.environment.parent / "fewer.yml"
            inventory.write_text(yaml.safe_dump(groups))
        options = ("--vault-password-file", str(self.key))
        return play(playbook, inventory, *options, *arguments, environment=self.environment, timeout=900)

    def kill_run(self, task: str, *arguments: str, playbook: str = "site.yml") -> None:
        """Run a playbook and kill it, and its commands on the hosts, when a task begins."""
        options = ("--vault-password-file", str(self.key), *arguments)
        command = words(playbook, self.hosts["db1"].inventory, *options, environment=self.environment)
        with subprocess.Popen(command, cwd=ROOT, env=watched(), stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            assert any(f"TASK [{task}" in line for line in run.stdout)
            time.sleep(2)
            run.kill()
        for host in self.hosts.values():
            kill_commands(host)

    def view(self, name: str = "") -> list[dict[str, Any]]:
        """Return Patroni's list of members as a host that answers shows it."""
        for host in [self.hosts[name]] if name else self.hosts.values():
            done = host.run("runuser -u postgres -- patronictl -c /etc/patroni/config.yml list -f json")
            if done.returncode == 0 and done.stdout.strip():
                found: list[dict[str, Any]] = json.loads(done.stdout)
                return found
        return []

    def primary(self) -> str:
        return next((str(each["Member"]) for each in self.view() if each["Role"] == "Leader"), "")

    def complete(self, count: int = 3) -> bool:
        """Return whether all members run on one timeline, the replicas stream, and one of them may become primary."""
        rows = self.view()
        states = sorted(str(each["State"]) for each in rows)
        expected = ["running", *["running" if OLD else "streaming"] * (count - 1)]
        confirms = any(str(each["Role"]).endswith("Standby") for each in rows)
        return confirms and states == expected and len({each["TL"] for each in rows}) == 1

    def candidate(self) -> str:
        """Return a replica that may become primary: with synchronous mode on, the synchronous one."""
        return next(str(each["Member"]) for each in self.view() if str(each["Role"]).endswith("Standby"))

    def configure(self, *, cluster: bool, **more: object) -> None:
        """Write the environment's variables."""
        settings = {"cluster_enabled": cluster, "tls_enabled": True, "backup_physical": not OLD, **more}
        (self.environment / "group_vars/all/cluster.yml").write_text(yaml.safe_dump(settings))

    def url(self, port: int, names: tuple[str, ...] = NAMES, role: str = "minion_app") -> str:
        """Return a URL of several hosts, by name or address, as an application uses it."""
        addresses = [self.hosts[name].address if name in self.hosts else name for name in names]
        places = ",".join(f"{address}:{port}" for address in addresses)
        authority = self.environment / "tls/ca.crt"
        return (
            f"postgresql://{role}:{self.password}@{places}/minion?sslmode=verify-full&sslrootcert={authority}"
            "&connect_timeout=3&target_session_attrs=read-write"
        )

    def sql(self, name: str, query: str) -> str:
        return psql(self.hosts[name], query)


def psql(host: Host, query: str) -> str:
    done = host.run(f'runuser -u postgres -- psql -XAtd minion -c "{query}"')
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def gathered(hosts: dict[str, Host], folder: Path) -> Members:
    """Return hosts with an environment and secrets of their own."""
    environment = folder / "dev"
    (environment / "group_vars/all").mkdir(parents=True)
    for name in ("hosts.yml", "group_vars/all/main.yml"):
        (environment / name).write_text((ROOT / "inventories/dev" / name).read_text())
    key = folder / "password"
    key.write_text(new_password())
    made = provision("secrets", "init", environment, "--vault-password-file", key)
    assert made.returncode == 0, made.stderr
    from provision.controller.vault import Vault

    password = Vault(environment, key.read_text()).read()["database_credentials"]["minion_app"]["password"]
    return Members(hosts, environment, key, password)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    with Hosts.made(tmp_path_factory.mktemp("cluster"), INSTALLED if OS == DEFAULT_KEY else ()) as sandbox:
        hosts = {name: sandbox.up(name, os=OS) for name in NAMES}
        sandbox.up(EVERY[-1], group="backup", os=OS)
        found = gathered(hosts, tmp_path_factory.mktemp("environment"))
        found.configure(cluster=True)
        run = found.play()
        assert run.code == 0, run.output
        yield found


def test_three_members_stream_and_have_the_same_rows(members: Members) -> None:
    assert until(members.complete, 30), members.view()
    assert members.primary() == "db1"
    members.sql("db1", "INSERT INTO agents (name) SELECT 'agent ' || i FROM generate_series(1, 1000) i")
    expected = members.sql("db1", AGENTS)
    assert expected.startswith("1000|")
    assert until(lambda: {members.sql(name, AGENTS) for name in NAMES} == {expected}, 10)


def test_second_run_and_check_change_nothing(members: Members) -> None:
    run = members.play()
    assert run.code == 0, run.output
    assert {name: row.changed for name, row in run.recap.items()} == dict.fromkeys(EVERY, 0), run.output
    check = members.play("--check", "--diff")
    assert check.code == 0, check.output
    assert {name: row.changed for name, row in check.recap.items()} == dict.fromkeys(EVERY, 0), check.output


def test_doctor_finds_nothing_critical_on_a_member(members: Members) -> None:
    for name in NAMES:
        done = members.hosts[name].run("provision doctor --json")
        critical = [row for row in json.loads(done.stdout)["findings"] if row["severity"] == "critical"]
        assert critical == [], name


@pytest.mark.parametrize("port", [2379, 2380, 8008])
def test_ports_of_the_cluster_refuse_a_client_without_a_certificate(members: Members, port: int) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # in 1.3 the refusal arrives with the first answer
    with (
        socket.create_connection((members.hosts["db2"].address, port), timeout=5) as plain,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(plain)


def test_ordinary_user_of_a_member_reads_no_key_and_no_password(members: Members) -> None:
    files = "/etc/provision/tls/member.key /etc/provision/tls/etcd-client.key /etc/provision/cluster.json " \
            "/etc/provision/etcd.json /etc/patroni/config.yml"  # fmt: skip
    for path in files.split():
        seen = members.hosts["db1"].run(f"test -s {path} && ! runuser -u nobody -- cat {path}")
        assert seen.returncode == 0, path


def test_certificate_alone_opens_neither_etcd_nor_patroni_s_commands(members: Members) -> None:
    tls = "/etc/provision/tls"
    own = f"--cacert={tls}/ca.crt --cert={tls}/etcd-client.crt --key={tls}/etcd-client.key"
    address = members.hosts["db1"].address
    done = members.hosts["db1"].run(
        f"ETCDCTL_API=3 etcdctl --endpoints=https://{address}:2379 {own} get /service/ --prefix"
    )
    assert done.returncode != 0, done.stdout
    ask = (
        "import http.client, ssl; c = ssl.create_default_context(cafile='/etc/provision/tls/ca.crt');"
        "c.load_cert_chain('/etc/provision/tls/member.crt', '/etc/provision/tls/member.key');"
        f"h = http.client.HTTPSConnection('{address}', 8008, context=c); h.request('POST', '/restart', '{{}}');"
        "print(h.getresponse().status)"
    )
    assert members.hosts["db1"].run(f'python3 -c "{ask}"').stdout.strip() == "401"


@pytest.mark.parametrize(
    "unit", ["etcd.service", "patroni.service", "provision-dcs.service", "provision-follow.service"]
)
def test_unit_of_a_member_works_in_its_sandbox(members: Members, unit: str) -> None:
    host = members.hosts["db1"]
    done = host.run(f"systemctl start {unit} && systemd-analyze security --no-pager {unit} | tail -1")
    assert done.returncode == 0, host.run(f"journalctl -n 20 -u {unit}").stdout
    found = re.search(rf"exposure level for {re.escape(unit)}: ([0-9.]+) ", done.stdout)
    assert found, done.stdout
    assert float(found[1]) <= 4.0, done.stdout


def test_planned_switchover_loses_nothing_and_no_client_of_a_pooler_fails(members: Members) -> None:
    members.sql(members.primary(), LEDGER)
    target = members.candidate()
    ledger = Ledger({"pooler": members.url(6432)})
    with ledger.writing():
        run = members.play("-e", f"switchover_to={target}", playbook="switchover.yml")
        assert run.code == 0, run.output
    assert members.primary() == target
    (account,) = ledger.accounts(members.url(5432, (target,)))
    assert (account.lost, account.duplicates, account.errors) == ((), 0, ()), str(account)
    assert account.acknowledged > 100
    assert until(members.complete, 60), members.view()


@pytest.mark.faults
def test_restores_to_a_moment_after_a_switchover_with_the_same_rows_on_every_member(members: Members) -> None:
    table = "CREATE TABLE moments AS SELECT i, md5(i::text) AS text FROM generate_series(1, 1000) i"
    more = "INSERT INTO moments SELECT i, md5(i::text) FROM generate_series({}, {}) i"
    rows = "SELECT count(*), md5(string_agg(text, ',' ORDER BY i)) FROM moments"
    first = members.primary()
    members.sql(first, table)
    assert members.play("-e", "backup_type=full", playbook="backup.yml").code == 0
    run = members.play(playbook="switchover.yml")
    assert run.code == 0, run.output
    primary = members.primary()
    assert primary != first
    members.sql(primary, more.format(1001, 2000))
    taken = members.hosts[primary].run("provision backup take --type incr --json")
    assert taken.returncode == 0, taken.stderr
    expected, moment = members.sql(primary, rows), members.sql(primary, "SELECT clock_timestamp()")
    time.sleep(1)
    members.sql(primary, more.format(2001, 3000))
    replica = next(name for name in NAMES if name != primary)
    proved = members.hosts[replica].run("provision backup drill --type physical --json")
    assert proved.returncode == 0, proved.stderr
    assert json.loads(proved.stdout)["set"] == json.loads(taken.stdout)["label"]

    target = json.dumps({"restore_target": f"time:{moment}"})
    shown = members.play("-e", target, playbook="restore.yml")
    assert shown.code == 0, shown.output
    assert "restore_confirm=minion" in shown.output
    assert members.sql(primary, "SELECT count(*) FROM moments") == "3000"
    run = members.play("-e", target, "-e", "restore_confirm=minion", playbook="restore.yml")
    assert run.code == 0, run.output
    assert expected.startswith("2000|")
    assert until(members.complete, 60), members.view()
    assert until(lambda: {members.sql(name, rows) for name in NAMES} == {expected}, 10)
    status = members.hosts[primary].run("provision cluster status")
    assert status.returncode == 0, status.stdout


def test_killed_host_of_the_primary_is_replaced_and_returns(members: Members) -> None:
    old = members.primary()
    host = members.hosts[old]
    ledger = Ledger({"poolers of the others": members.url(6432, tuple(name for name in NAMES if name != old))})
    with ledger.writing():
        host.podman("kill")
        killed = time.monotonic()
        assert until(lambda: ledger.resumed(killed + 1), FAILOVER_S), members.view()
    new = members.primary()
    assert new not in ("", old)
    (account,) = ledger.accounts(members.url(5432, (new,)))
    assert (account.lost, account.duplicates) == ((), 0), str(account)
    host.podman("start")
    assert until(members.complete, 90), members.view()


@pytest.mark.faults
def test_unreachable_member_blocks_no_other_and_is_named(members: Members) -> None:
    absent = next(name for name in NAMES if name != members.primary())
    host = members.hosts[absent]
    run = members.play()  # grants on the tables that the tests before made
    assert run.code == 0, run.output
    host.podman("stop", "--time=10")
    try:
        run = members.play()
    finally:
        host.podman("start")
    others = {name: row for name, row in run.recap.items() if name != absent}
    assert run.recap[absent].unreachable == 1, run.output
    assert {name: (row.failed, row.unreachable, row.changed) for name, row in others.items()} == {
        name: (0, 0, 0) for name in EVERY if name != absent
    }, run.output
    assert until(members.complete, 120), members.view()


@pytest.mark.faults
def test_killed_run_and_killed_rolling_restart_lose_nothing_and_can_be_repeated(members: Members) -> None:
    members.sql(members.primary(), LEDGER)
    ledger = Ledger({"poolers": members.url(6432)})
    changed = json.dumps({"postgresql_settings": {"max_locks_per_transaction": 80, "log_min_duration_statement": "5s"}})
    with ledger.writing():
        for task in ("postgresql : Place settings", "patroni : Place Patroni", "pgbouncer : Place"):
            members.kill_run(task, "-e", changed)
        run = members.play("-e", changed)
        assert run.code == 0, run.output
        host = members.hosts["db2"]
        killed = host.run(KILLED_RESTART)
        assert killed.returncode == 137, killed.stderr
        time.sleep(TTL_S)  # the poolers resume without the command
        done = host.run("provision cluster restart")
        assert done.returncode == 0, done.stderr
    (account,) = ledger.accounts(members.url(5432, (members.primary(),)))
    print(account)
    assert (account.lost, account.duplicates) == ((), 0), str(account)
    assert until(members.complete, 60), members.view()
    assert {members.sql(name, "SHOW max_locks_per_transaction") for name in NAMES} == {"80"}
    run = members.play("-e", changed)
    assert {name: row.changed for name, row in run.recap.items()} == dict.fromkeys(EVERY, 0), run.output
    run = members.play()
    assert run.code == 0, run.output
    done = host.run("provision cluster restart")
    assert done.returncode == 0, done.stderr
    assert until(members.complete, 60), members.view()


@pytest.mark.faults
def test_host_is_added_and_removed_while_clients_write(members: Members) -> None:
    sandbox, primary = members.hosts["db1"].sandbox, members.primary()
    members.sql(primary, LEDGER)
    ledger = Ledger({"poolers": members.url(6432)})
    added = Host(sandbox, sandbox.up(["db4"], {"os": OS})[0])
    try:
        with ledger.writing():
            run = members.play()
            assert run.code == 0, run.output
            assert until(lambda: members.complete(4), 60), members.view()
            assert psql(added, AGENTS) == members.sql(primary, AGENTS)
            left = added.run(STOP)
            assert left.returncode == 0, left.stderr
            run = members.play(without=("db4",))
            assert run.code == 0, run.output
    finally:
        sandbox.down(["db4"])
    (account,) = ledger.accounts(members.url(5432, (primary,)))
    assert (account.lost, account.duplicates, account.errors) == ((), 0, ()), str(account)
    print(account)
    assert members.primary() == primary
    assert until(members.complete, TTL_S + 10), members.view()
    status = members.hosts[primary].run("provision cluster status")
    assert (status.returncode, "db4" in status.stdout) == (0, False), status.stdout
    assert added.address not in members.sql(primary, "SELECT string_agg(address, ' ') FROM pg_hba_file_rules")
    run = members.play(without=("db4",))
    assert {name: row.changed for name, row in run.recap.items()} == dict.fromkeys(EVERY, 0), run.output


@pytest.mark.faults
def test_cluster_becomes_a_single_host_and_a_cluster_again(members: Members) -> None:
    primary = members.primary()
    others = tuple(name for name in NAMES if name != primary)
    before = members.sql(primary, AGENTS)
    for name in others:
        left = members.hosts[name].run(STOP)
        assert left.returncode == 0, left.stderr
    time.sleep(TTL_S)
    members.configure(cluster=False)
    run = members.play(without=others)
    assert run.code == 0, run.output
    for name in others:
        members.hosts[name].run("systemctl disable --now etcd")
    host = members.hosts[primary]
    assert host.run("systemctl is-active 'postgresql@*-main.service' pgbouncer").stdout.split() == ["active", "active"]
    gone = host.run("systemctl is-active patroni etcd provision-follow").stdout.split()
    assert gone == ["inactive"] * 3, gone
    assert members.sql(primary, AGENTS) == before
    assert members.sql(primary, "SELECT count(*) FROM pg_replication_slots") == "0"
    assert members.sql(primary, "SHOW synchronous_standby_names") == ""
    members.sql(primary, "INSERT INTO agents (name) VALUES ('stored on the single host')")
    run = members.play(without=others)
    assert {name: row.changed for name, row in run.recap.items()} == {primary: 0, EVERY[-1]: 0}, run.output

    members.configure(cluster=True)
    run = members.play()
    assert run.code != 0
    assert "several members of a new cluster have a database" in run.text()
    assert members.sql(primary, "SHOW transaction_read_only") == "off"
    for name in others:
        moved = members.hosts[name].run('cd /var/lib/postgresql && for data in */main; do mv "$data" "$data.old"; done')
        assert moved.returncode == 0, moved.stderr
    run = members.play()
    assert run.code == 0, run.output
    assert until(members.complete, 60), members.view()
    assert members.primary() == primary
    assert members.sql(primary, AGENTS) != before
    assert until(lambda: len({members.sql(name, AGENTS) for name in NAMES}) == 1, 10)
    status = host.run("provision cluster status")
    assert status.returncode == 0, status.stdout


@pytest.mark.faults
def test_pooler_without_a_server_joins_and_no_client_fails_in_a_switchover(members: Members) -> None:
    sandbox = members.hosts["db1"].sandbox
    app = Host(sandbox, sandbox.up(["app1"], {"os": OS, "group": "pooler"})[0])
    try:
        run = members.play()
        assert run.code == 0, run.output
        again = members.play()
        assert {name: row.changed for name, row in again.recap.items()} == dict.fromkeys((*EVERY, "app1"), 0), (
            again.output
        )
        primary = members.primary()
        members.sql(primary, LEDGER)
        ledger = Ledger({"pooler of app1": members.url(6432, (app.address,))})
        with ledger.writing():
            run = members.play(playbook="switchover.yml")
            assert run.code == 0, run.output
        assert members.primary() not in ("", primary)
        (account,) = ledger.accounts(members.url(5432, (members.primary(),)))
        assert (account.lost, account.duplicates, account.errors) == ((), 0, ()), str(account)
        assert account.acknowledged > 100
        print(account)
        for command in ("cluster status", "pool status", "status", "doctor"):
            done = app.run(f"provision {command}")
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        assert (
            f"connects to {members.primary()}, the primary of the cluster minion" in app.run("provision status").stdout
        )
        secrets = json.loads(app.run("cat /etc/provision/cluster.json").stdout)
        assert list(secrets) == ["etcd"]
        assert list(secrets["etcd"]) == ["follower"]
        assert app.run("ls /usr/lib/postgresql /etc/provision/tls/member.key /etc/provision/etcd.json").stdout == ""
    finally:
        sandbox.down(["app1"])
    run = members.play()
    assert run.code == 0, run.output
    assert app.address not in members.sql(members.primary(), "SELECT string_agg(address, ' ') FROM pg_hba_file_rules")


@pytest.mark.faults
def test_address_of_the_balancers_moves_and_clients_lose_nothing(members: Members) -> None:
    address = members.hosts["db1"].address.rpartition(".")[0] + ".250"
    killed = ""

    def holders() -> list[str]:
        running = {name: host for name, host in members.hosts.items() if name != killed}
        rows = {name: host.run("ip -4 -oneline address show").stdout for name, host in running.items()}
        return [name for name, row in rows.items() if f" {address}/" in row]

    def moved(old: str) -> bool:
        return (found := holders()) != [old] and len(found) == 1

    members.configure(cluster=True, balancer_enabled=True, balancer_address=f"{address}/24")
    run = members.play()
    assert run.code == 0, run.output
    for mode in ((), ("--check",)):
        again = members.play(*mode)
        assert {name: row.changed for name, row in again.recap.items()} == dict.fromkeys(EVERY, 0), again.output
    assert until(lambda: len(holders()) == 1, 30), holders()
    time.sleep(10)
    assert members.hosts["db1"].run("journalctl -u patroni --since=-9s | grep -c Traceback").stdout.strip() == "0"
    with psycopg.connect(members.url(5001, (address,)).replace("read-write", "standby")) as session:
        assert session.execute("SELECT count(*) FROM agents").fetchone() != (0,)

    members.sql(members.primary(), LEDGER)
    ledger = Ledger({"address": members.url(5000, (address,))})
    with ledger.writing():
        first = holders()[0]
        members.hosts[first].run("systemctl stop haproxy")
        begun = time.monotonic()
        assert until(lambda: moved(first), 30), holders()
        assert until(lambda: ledger.resumed(begun + 1), 30)
        members.hosts[first].run("systemctl start haproxy")

        run = members.play("-e", f"switchover_to={members.candidate()}", playbook="switchover.yml")
        assert run.code == 0, run.output
        begun = time.monotonic()
        assert until(lambda: ledger.resumed(begun + 1), 30)

        second = holders()[0]
        host = members.hosts[second]
        host.podman("kill")
        begun = time.monotonic()
        killed = second
        assert until(lambda: moved(second), 30), holders()
        assert until(lambda: ledger.resumed(begun + 1), FAILOVER_S), members.view()
    host.podman("start")
    killed = ""
    assert until(members.complete, 90), members.view()
    (account,) = ledger.accounts(members.url(5432, (members.primary(),)))
    print(account)
    assert (account.lost, account.duplicates) == ((), 0), str(account)
    assert until(lambda: len(holders()) == 1, 30), holders()

    # Without the address, and closed to this machine.
    members.configure(cluster=True, balancer_enabled=True, postgresql_allowed_networks=["192.0.2.0/24"])
    run = members.play()
    assert run.code == 0, run.output
    assert holders() == []
    active = "systemctl is-active haproxy keepalived"
    assert members.hosts["db1"].run(active).stdout.split() == ["active", "inactive"]
    assert members.hosts["db1"].run("pg_isready -h db2 -p 5000").returncode == 0
    with socket.create_connection((members.hosts["db1"].address, 5000), timeout=5) as plain, suppress(ConnectionError):
        plain.sendall(SSL_REQUEST)
        assert plain.recv(1) == b"", "HAProxy forwards a client of a foreign network"
    members.configure(cluster=True)
    run = members.play()
    assert run.code == 0, run.output
    assert members.hosts["db1"].run(active).stdout.split() == ["inactive", "inactive"]
