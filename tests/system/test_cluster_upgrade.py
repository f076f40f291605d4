"""A cluster of three hosts moves from PostgreSQL 15 to 17 while clients write, goes back, and is killed on the way.

The tests run in order on the same hosts, which tests/pairs.py describes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.ledger import Account, Ledger
from tests.pairs import FIFTEEN
from tests.sandboxes import Hosts
from tests.system.playbooks import Run
from tests.system.test_cluster import AGENTS, EVERY, LEDGER, NAMES, Members, gathered
from tests.until import until

pytestmark = pytest.mark.faults
SCOPE = "minion"
CONFIRM = ("-e", f"upgrade_confirm={SCOPE}")
MAJOR = "SHOW server_version_num"
PLACES = "ls -d /var/lib/postgresql/15/main /etc/postgresql/15/main 2>/dev/null"


@dataclass
class Upgraded:
    """The cluster, its variables with each major, and the file with those that are given to playbooks."""

    members: Members
    given: Path
    variables: dict[int, dict[str, object]]

    def choose(self, major: int) -> None:
        """Give the variables of a major from now on."""
        self.given.write_text(yaml.safe_dump(self.variables[major]))

    def site(self) -> Run:
        return self.members.play("-e", f"@{self.given}")

    def upgrade(self, method: str, *arguments: str) -> Run:
        return self.members.play(*self.options(method), *arguments, playbook="upgrade.yml")

    def options(self, method: str) -> tuple[str, ...]:
        return "-e", f"@{self.given}", "-e", "upgrade_to=17", "-e", f"upgrade_method={method}"

    def majors(self) -> set[str]:
        return {self.members.sql(name, MAJOR)[:2] for name in NAMES}

    def serves(self, major: int) -> None:
        """Assert that every member has a major and the same rows, and that a second run changes nothing."""
        assert until(self.members.complete, 60), self.members.view()
        assert self.majors() == {str(major)}
        primary = self.members.primary()
        expected = self.members.sql(primary, AGENTS)
        assert until(lambda: {self.members.sql(name, AGENTS) for name in NAMES} == {expected}, 10)
        status = self.members.hosts[primary].run("provision cluster status")
        assert status.returncode == 0, status.stdout + status.stderr
        run = self.site()
        assert {name: row.changed for name, row in run.recap.items()} == dict.fromkeys(EVERY, 0), run.output


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgraded]:
    with Hosts.made(tmp_path_factory.mktemp("cluster")) as sandbox:
        hosts = {name: sandbox.up(name, os="debian13") for name in NAMES}
        sandbox.up(EVERY[-1], group="backup", os="debian13")
        folder = tmp_path_factory.mktemp("environment")
        old, new = [FIFTEEN.variables(host, folder) for host in hosts.values()][-1]
        found = Upgraded(gathered(hosts, folder), folder / "given.yml", {15: old, 17: {**old, **new}})
        found.members.configure(cluster=True)
        found.choose(15)
        run = found.site()
        assert run.code == 0, run.output
        members = found.members
        members.sql(members.primary(), "INSERT INTO agents (name) SELECT 'agent ' || i FROM generate_series(1, 1000) i")
        found.choose(17)
        yield found


def written(upgraded: Upgraded, ledger: Ledger) -> list[Account]:
    accounts = ledger.accounts(upgraded.members.url(5432))
    print(*accounts, sep="\n")
    return accounts


def ledger_of(upgraded: Upgraded) -> Ledger:
    members = upgraded.members
    members.sql(members.primary(), LEDGER)
    return Ledger({f"pooler of {name}": members.url(6432, (name,)) for name in NAMES})


def test_check_changes_no_member(upgraded: Upgraded) -> None:
    run = upgraded.upgrade("copy")
    assert run.code == 0, run.output
    text = run.text()
    assert "PostgreSQL 15 can be upgraded to 17 by copy" in text
    assert text.count("this replica can be cloned with PostgreSQL 17") == 2
    assert upgraded.majors() == {"15"}
    assert until(upgraded.members.complete, 30)
    wrong = upgraded.upgrade("copy", "-e", "upgrade_confirm=db1")
    assert "this must be confirmed with the name of the cluster" in wrong.text()
    few = upgraded.upgrade("copy", *CONFIRM, "--limit", "db1,db2")
    assert "missing: db3" in few.text()
    assert upgraded.majors() == {"15"}


def test_copy_loses_nothing_and_goes_back(upgraded: Upgraded) -> None:
    ledger, members = ledger_of(upgraded), upgraded.members
    before = members.primary()
    with ledger.writing():
        run = upgraded.upgrade("copy", *CONFIRM)
        assert run.code == 0, run.output
    accounts = written(upgraded, ledger)
    print(members.hosts[before].run("provision upgrade status").stdout)
    assert members.primary() == before
    members.sql(before, "DROP TABLE ledger")  # site.yml would grant rights on the table
    upgraded.serves(17)
    for account in accounts:
        assert (account.lost, account.duplicates, account.errors) == ((), 0, ()), str(account)
        assert account.acknowledged > 1000
    taken = members.hosts[before].run("provision backup take --type incr")
    assert taken.returncode == 0, taken.stderr
    switched = members.hosts[before].run("provision cluster switchover")
    assert switched.returncode == 0, switched.stderr
    elsewhere = upgraded.upgrade("copy", "-e", "upgrade_rollback=yes", *CONFIRM, "-e", "upgrade_confirm_loss=discard")
    assert "an upgrade and its rollback begin on the primary" in elsewhere.text()
    switched = members.hosts[before].run(f"provision cluster switchover --to {before}")
    assert switched.returncode == 0, switched.stderr
    assert until(members.complete, 60)
    kept = upgraded.upgrade("copy", "-e", "upgrade_rollback=yes", *CONFIRM)
    assert "everything written since PostgreSQL 17 started is lost" in kept.text()
    back = upgraded.upgrade("copy", "-e", "upgrade_rollback=yes", *CONFIRM, "-e", "upgrade_confirm_loss=discard")
    assert back.code == 0, back.output
    upgraded.choose(15)
    run = upgraded.site()
    assert run.code == 0, run.output
    members.sql(members.primary(), "DROP TABLE ledger")
    upgraded.serves(15)


def test_killed_runs_continue_and_a_link_upgrade_is_released(upgraded: Upgraded) -> None:
    upgraded.choose(17)
    ledger, members = ledger_of(upgraded), upgraded.members
    with ledger.writing():
        for task in ("upgrade : Upgrade", "upgrade : Stop the replicas", "patroni : Place Patroni"):
            members.kill_run(task, *upgraded.options("link"), *CONFIRM, playbook="upgrade.yml")
            if "replicas" in task:
                resumed = members.hosts["db2"].run("provision cluster resume")
                assert "automatic failover stays off during a major upgrade" in resumed.stderr
                assert "the replicas have not left the other cluster" in upgraded.site().text()
        run = upgraded.upgrade("link", *CONFIRM)
        assert run.code == 0, run.output
    accounts = written(upgraded, ledger)
    members.sql(members.primary(), "DROP TABLE ledger")
    upgraded.serves(17)
    for account in accounts:
        assert (account.lost, account.duplicates) == ((), 0), str(account)
    refused = upgraded.upgrade("link", "-e", "upgrade_rollback=yes", *CONFIRM)
    assert "a link upgrade has no way back" in refused.text()
    assert [members.hosts[name].run(PLACES).stdout.count("15/main") for name in NAMES] == [2, 2, 2]
    run = upgraded.upgrade("link", "-e", "upgrade_release=yes", *CONFIRM)
    assert run.code == 0, run.output
    assert [members.hosts[name].run(PLACES).stdout for name in NAMES] == ["", "", ""]
    upgraded.serves(17)
