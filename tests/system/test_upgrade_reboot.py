"""A host is rebooted during an upgrade by logical replication, before and after its end, and once it is released.

Only postgres may log in over the socket, so every login of the upgrade is one of postgres. Needs a quarter of an hour,
so it runs with `make test-faults`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from tests import upgraded as steps
from tests.pairs import FIFTEEN
from tests.system import handmade
from tests.system.playbooks import ROOT, terminal, words
from tests.until import until
from tests.upgraded import Upgraded

pytestmark = pytest.mark.faults
STATES = "systemctl is-active postgresql@15-main postgresql@17-main pgbouncer"
STARTS = "systemctl is-enabled postgresql@15-main postgresql@17-main"
LISTENS = "SELECT setting = '' FROM pg_settings WHERE name = 'listen_addresses'"


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgraded]:
    folder, project = map(tmp_path_factory.mktemp, ("upgrade", "project"))
    small = {"megabytes": 50, "vectors": 500}
    with steps.converged(FIFTEEN, folder, project, **small, postgresql_local_users="^postgres$") as made:
        yield made


def of_closed(upgraded: Upgraded, query: str, name: str = "old", port: int = 50015) -> str:
    """Ask a closed server, by the one socket that it has."""
    place = f"-h /var/lib/postgresql/upgrade-17/{name} -p {port}"
    return upgraded.host.run(f'runuser -u postgres -- psql -XAtqc "{query}" {place} minion').stdout.strip()


def lines(upgraded: Upgraded, command: str) -> list[str]:
    return upgraded.host.run(command).stdout.split()


def findings(upgraded: Upgraded) -> set[str]:
    return {each["id"] for each in json.loads(upgraded.host.run("provision doctor --json").stdout)["findings"]}


def test_reboot_during_the_copy_leaves_the_old_server_and_the_command_continues(upgraded: Upgraded) -> None:
    check = upgraded.upgrade("logical")
    assert check.code == 0, check.output
    login = "psql --host=/var/run/postgresql --username=minion --dbname=minion"
    assert upgraded.host.run(f"runuser -u nobody -- {login}").returncode != 0  # postgresql_local_users does not name it
    upgraded.killed("logical", "copying")
    upgraded.reboot()
    upgraded.serves(15)
    assert of_closed(upgraded, LISTENS, "new", 50017) == "t"
    refused = upgraded.play("site.yml", upgraded.old)
    assert "an upgrade from 15 to 17 has not finished (copying)" in refused.text()
    run = upgraded.upgrade("logical", *upgraded.confirm)
    assert run.code == 0, run.output
    upgraded.serves(17)


def test_both_servers_come_back_after_a_reboot_and_the_old_one_receives_every_row(upgraded: Upgraded) -> None:
    before = findings(upgraded)
    upgraded.reboot()
    assert lines(upgraded, STATES) == ["active"] * 3
    assert of_closed(upgraded, LISTENS) == "t"
    upgraded.serves(17)
    upgraded.sql("INSERT INTO notes SELECT 1000000 + n, 'after the reboot' FROM generate_series(1, 100) n")
    upgraded.sql("UPDATE memories SET content = 'changed', embedding = embedding WHERE content = 'memory 7'")
    count = "SELECT count(*) FROM notes WHERE t = 'after the reboot'"
    received = until(lambda: of_closed(upgraded, count) == "100", 60)
    assert received, upgraded.host.run("provision upgrade status").stdout
    assert upgraded.sql("SELECT count(*), bool_and(active) FROM pg_replication_slots") == "1|t"
    assert findings(upgraded) <= before
    assert upgraded.host.run("pg_lsclusters -h | grep -c online").stdout.strip() == "2"
    steps.converges_without_a_change(upgraded)


def test_rollback_after_the_reboot_has_every_row_and_the_new_server_stays_down(upgraded: Upgraded) -> None:
    upgraded.rows = handmade.checksums(upgraded.host)
    steps.goes_back(upgraded)
    upgraded.reboot()
    assert lines(upgraded, STATES) == ["active", "inactive", "active"]
    assert lines(upgraded, STARTS)[1:] == ["disabled"]
    upgraded.serves(15)
    assert upgraded.sql("SELECT count(*) FROM notes WHERE t = 'after the reboot'") == "100"


def test_killed_playbook_is_repeated_while_its_command_still_runs_on_the_host(upgraded: Upgraded) -> None:
    options = ("-e", f"@{upgraded.new}", "-e", "upgrade_to=17", "-e", "upgrade_method=logical", *upgraded.confirm)
    command = words("upgrade.yml", upgraded.host.inventory, *options)
    with subprocess.Popen(command, cwd=ROOT, env=terminal(), stdout=subprocess.DEVNULL) as playbook:
        begun = upgraded.host.run(
            "timeout 300 sh -c 'until provision upgrade status | grep -q copying; do sleep 0.2; done'"
        )
        assert begun.returncode == 0, upgraded.host.run("provision upgrade status").stdout
        playbook.kill()
    run = upgraded.upgrade("logical", *upgraded.confirm)
    assert run.code == 0, run.output
    upgraded.serves(17)


def test_release_ends_the_replication_and_the_old_server_never_starts_again(upgraded: Upgraded) -> None:
    released = upgraded.play("upgrade.yml", upgraded.new, "-e", "upgrade_release=yes", *upgraded.confirm)
    assert released.code == 0, released.output
    upgraded.reboot()
    assert lines(upgraded, STATES) == ["inactive", "active", "active"]
    assert lines(upgraded, "systemctl --failed --plain --no-legend | grep postgres") == []
    assert lines(upgraded, "find /etc/systemd /run/systemd -name 'postgresql@15*'") == []
    places = "/var/lib/postgresql/15/main /etc/postgresql/15/main /var/lib/postgresql/upgrade-17"
    assert lines(upgraded, f"ls -d {places} 2>/dev/null") == []
    left = "SELECT (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_publication)"
    assert upgraded.sql(left) == "0|0"
    assert upgraded.sql("SELECT count(*) FROM pg_class WHERE relreplident = 'f'") == "0"
    upgraded.serves(17)
    assert "upgrade" not in findings(upgraded)
    steps.converges_without_a_change(upgraded)
