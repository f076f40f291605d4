"""A cluster of three hosts is updated, from packages that were repackaged with a lower version, while clients write.

The tests run in order on the same hosts, which are those of test_cluster: it converges them here a second time.
"""

from __future__ import annotations

import re

import pytest

from provision.distributions import DEFAULT_KEY, by_key
from tests.ledger import Ledger
from tests.sandboxes import Host
from tests.system import test_cluster
from tests.system.playbooks import Run
from tests.system.test_cluster import EVERY, LEDGER, NAMES, OS, Members
from tests.system.test_update import BROKEN, OLDER
from tests.until import until

pytestmark = pytest.mark.faults
MAJOR = by_key(DEFAULT_KEY).postgresql
PACKAGES = (f"postgresql-{MAJOR}", f"postgresql-{MAJOR}-pgvector", "patroni", "etcd-server")
BESIDE = "app1"
ALL = (*NAMES, BESIDE)
POLICY = "/usr/sbin/policy-rc.d"
NO_RESTART = f"printf '#!/bin/sh\\nexit 101\\n' > {POLICY}; chmod 0755 {POLICY}"
CONFIGURATION = BROKEN.replace("/17/", f"/{MAJOR}/")
KILLED_RESTART = """
setsid provision member restart 2>/run/restart &
timeout 120 sh -c 'until grep -q "restart Patroni" /run/restart; do sleep 0.05; done'
kill -s KILL -- -$!
wait $!
"""
"""Kills a restart of Patroni while automatic failover is off."""
APPLY = ("-e", "update_apply=yes")
members = test_cluster.members


@pytest.fixture(scope="module")
def older(members: Members) -> Members:
    """Give the cluster, with a pooler on a host of its own, and older packages whose files the services use."""
    sandbox = members.hosts["db1"].sandbox
    app = Host(sandbox, sandbox.up([BESIDE], {"os": OS, "group": "pooler"})[0])
    run = members.play()
    assert run.code == 0, run.output
    members.hosts[BESIDE] = app
    done = app.run(OLDER.format(names="pgbouncer"))
    assert done.returncode == 0, done.stdout + done.stderr
    for name in NAMES:
        host = members.hosts[name]
        done = host.run("\n".join([NO_RESTART, OLDER.format(names=" ".join(PACKAGES)), f"rm {POLICY}"]))
        assert done.returncode == 0, done.stdout + done.stderr
        done = host.run("provision dcs restart && provision member restart")
        assert done.returncode == 0, done.stderr
    done = members.hosts["db1"].run("provision cluster restart --all")
    assert done.returncode == 0, done.stderr
    assert until(members.complete, 60), members.view()
    return members


def update(members: Members, *arguments: str) -> Run:
    return members.play(*arguments, playbook="update.yml")


def versions(members: Members) -> dict[str, str]:
    """Return by host whether its packages are older, new, or some of each."""
    found = {}
    for name in ALL:
        packages = " ".join(PACKAGES if name in NAMES else ["pgbouncer"])
        shown = members.hosts[name].run(f"dpkg-query --show --showformat='${{Version}}\\n' {packages}")
        lines = shown.stdout.split()
        old = [line for line in lines if line.endswith("~older")]
        found[name] = "older" if old == lines else "some of each" if old else "new"
    return found


def started(members: Members, name: str) -> str:
    return members.sql(name, "SELECT pg_postmaster_start_time()")


def timeline(members: Members) -> int:
    (found,) = {int(each["TL"]) for each in members.view()}
    return found


def replicas(members: Members) -> list[str]:
    """Return the replicas in the order of the inventory."""
    primary = members.primary()
    return [name for name in NAMES if name != primary]


@pytest.mark.parametrize("role", ["replica", "primary"])
def test_patroni_restarts_while_its_server_goes_on_also_after_a_kill(older: Members, role: str) -> None:
    name = older.primary() if role == "primary" else replicas(older)[0]
    host, since, before = older.hosts[name], started(older, name), timeline(older)
    pid = host.run("systemctl show --property=MainPID --value patroni").stdout
    assert host.run(KILLED_RESTART).returncode == 137
    assert "automatic failover is off" in host.run("provision cluster status").stdout
    done = host.run("provision member restart")
    assert done.returncode == 0, done.stderr
    assert host.run("systemctl show --property=MainPID --value patroni").stdout != pid
    assert (started(older, name), timeline(older)) == (since, before)
    assert "automatic failover is off" not in host.run("provision cluster status").stdout
    assert until(older.complete, 30), older.view()


def test_unreachable_member_refuses_the_update_before_anything_changes(older: Members) -> None:
    absent = replicas(older)[-1]
    host = older.hosts[absent]
    host.podman("stop", "--time=10")
    try:
        run = update(older, *APPLY)
    finally:
        host.podman("start")
    assert run.code != 0
    assert f"Patroni on {absent} does not answer" in run.text(), run.output
    assert until(older.complete, 120), older.view()
    assert versions(older) == dict.fromkeys(ALL, "older")


def test_failure_on_the_first_replica_stops_the_run_and_leaves_a_complete_cluster(older: Members) -> None:
    first, *others = [*replicas(older), older.primary()]
    host, since = older.hosts[first], started(older, first)
    host.run(f"echo 'work_mem = broken' > {CONFIGURATION}")
    run = update(older, *APPLY)
    host.run(f"rm {CONFIGURATION}")
    assert run.code != 0
    assert "the cluster is complete" in run.text(), run.output
    assert re.search(rf"versions before the update: etcd-server \S+~older, patroni .*postgresql-{MAJOR} ", run.text())
    assert f"provision cluster restart --only {first}" in run.text()
    assert versions(older) == dict.fromkeys(ALL, "older") | {first: "new"}
    assert (older.primary(), started(older, first)) == (others[-1], since)
    assert until(older.complete, 10), older.view()


def test_killed_and_repeated_update_loses_nothing_and_no_client_of_a_pooler_fails(older: Members) -> None:
    primary, before = older.primary(), timeline(older)
    since = {name: started(older, name) for name in NAMES}
    older.sql(primary, LEDGER)
    older.sql(primary, "CREATE EXTENSION hstore VERSION '1.4'")
    ledger = Ledger({f"pooler of {name}": older.url(6432, (name,)) for name in NAMES})
    with ledger.writing():
        older.kill_run("update : Install the update", *APPLY, playbook="update.yml")
        run = update(older, *APPLY)
        assert run.code == 0, run.output
    accounts = ledger.accounts(older.url(5432))
    print(*accounts, sep="\n")
    assert versions(older) == dict.fromkeys(ALL, "new")
    assert all(started(older, name) > since[name] for name in NAMES)
    assert (older.primary() == primary, timeline(older)) == (False, before + 1)
    assert until(older.complete, 30), older.view()
    status = older.hosts["db1"].run("provision cluster status")
    assert status.returncode == 0, status.stdout
    new = older.primary()
    assert older.sql(new, "SELECT extversion > '1.4' FROM pg_extension WHERE extname = 'hstore'") == "t"
    older.sql(new, "DROP EXTENSION hstore; DROP TABLE ledger")  # site.yml would grant rights on the table
    for account in accounts:
        assert (account.lost, account.duplicates, account.errors) == ((), 0, ()), str(account)
        assert account.acknowledged > 1000


def test_second_update_changes_nothing(older: Members) -> None:
    since, before = {name: started(older, name) for name in NAMES}, timeline(older)
    run = update(older, *APPLY)
    assert run.code == 0, run.output
    assert {name: row.changed for name, row in run.recap.items()} == dict.fromkeys(ALL, 0), run.output
    assert ({name: started(older, name) for name in NAMES}, timeline(older)) == (since, before)
    run = older.play()
    assert run.code == 0, run.output
    assert {name: row.changed for name, row in run.recap.items()} == dict.fromkeys((*EVERY, BESIDE), 0), run.output
