"""A host with PostgreSQL 15 of Debian 12 becomes one with Debian 13's 17, goes back, and is killed on the way.

Needs half an hour, so it runs with `make test-faults`. tests/older.py describes the host.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import yaml

from tests import older
from tests.sandboxes import Host, Hosts
from tests.system.playbooks import ROOT, Run, play
from tests.waits import Load, Pooler

pytestmark = pytest.mark.faults
SHARED = {
    "backup_physical": True,
    "backup_allow_local_only": True,
    "backup_repository_passphrase": "a passphrase of this test",
    "postgresql_settings": {"wal_level": "logical"},
}
MEGABYTES, VECTORS = 500, 5000
DIGEST = "SELECT count(*), md5(string_agg(m::text, '' ORDER BY id)) FROM memories m"
BEFORE = ("prepared", "stopped", "transferred")
"""States of the journal in which the new server has not started."""


@dataclass
class Upgraded:
    """A host, its variables before and after, and what was in the database."""

    host: Host
    old: Path
    new: Path
    rows: str = ""

    def play(self, playbook: str, variables: Path, *arguments: str) -> Run:
        return play(playbook, self.host.inventory, "-e", f"@{variables}", *arguments, timeout=1800)

    def upgrade(self, method: str, *arguments: str) -> Run:
        return self.play("upgrade.yml", self.new, "-e", "upgrade_to=17", "-e", f"upgrade_method={method}", *arguments)

    def back(self, *arguments: str) -> Run:
        return self.play("upgrade.yml", self.new, "-e", "upgrade_rollback=yes", *self.confirm, *arguments)

    def words(self, command: str) -> list[str]:
        """Return the words that run a shell command as root on the host."""
        return self.host.sandbox.words(self.host.container, "sh", "-c", command)

    @property
    def pooler(self) -> Pooler:
        """Return the host's pooler, for a load through it."""
        vault = yaml.safe_load((ROOT / "inventories/dev/group_vars/all/vault.yml").read_text())
        password = vault["database_credentials"]["minion_app"]["password"]
        return Pooler(lambda script: self.words(f"runuser -u postgres -- bash -euc {shlex.quote(script)}"), password)

    @property
    def confirm(self) -> tuple[str, str]:
        return "-e", f"upgrade_confirm={self.host.name}"

    def sql(self, query: str) -> str:
        done = self.host.run(f'runuser -u postgres -- psql -XAtqc "{query}" minion')
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @property
    def major(self) -> str:
        return self.sql("SHOW server_version_num")[:2]


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgraded]:
    folder = tmp_path_factory.mktemp("upgrade")
    with Hosts.made(tmp_path_factory.mktemp("project")) as hosts:
        host = hosts.up("up1", os="debian13", memory="2g")
        made = Upgraded(host, folder / "old.yml", folder / "new.yml")
        made.old.write_text(yaml.safe_dump({**SHARED, **older.prepare(host, folder)}))
        made.new.write_text(yaml.safe_dump({**SHARED, **older.NEW}))
        run = made.play("site.yml", made.old)
        assert run.code == 0, run.output
        made.pooler.fill(MEGABYTES, VECTORS)
        made.rows = made.sql(DIGEST)
        yield made


def test_check_shows_the_stages_and_leaves_the_old_server(upgraded: Upgraded) -> None:
    run = upgraded.upgrade("copy")
    assert run.code == 0, run.output
    assert "PostgreSQL 15 can be upgraded to 17 by copy" in run.text()
    assert upgraded.major == "15"
    refused = upgraded.play("site.yml", upgraded.new)
    assert "set postgresql_version: 15 to keep it, or upgrade with ansible-playbook upgrade.yml" in refused.text()


def test_migrations_work_on_both_majors_of_the_host(upgraded: Upgraded) -> None:
    before = upgraded.sql("SELECT string_agg(datname, ',' ORDER BY oid) FROM pg_database")
    path = "--path /usr/local/share/provision/migrations"
    done = upgraded.host.run(f"provision migrate verify --from 15 --to 17 {path}")
    assert done.returncode == 0, done.stdout + done.stderr
    older, newer, schemas = done.stdout.splitlines()
    assert "(vector 0.5.1, uuid-ossp 1.1): 6 steps up, down and up again: 0 differences" in older
    assert "(vector 0.8.0, uuid-ossp 1.1): 6 steps up, down and up again: 0 differences" in newer
    assert schemas == "schemas of 15 and 17: equal"
    assert upgraded.sql("SELECT string_agg(datname, ',' ORDER BY oid) FROM pg_database") == before


@pytest.mark.parametrize(
    ("method", "state"),
    [*product(("copy", "link"), BEFORE), *product(("logical",), ("copying", *BEFORE[1:]))],
)
def test_command_killed_before_the_new_server_goes_back(upgraded: Upgraded, method: str, state: str) -> None:
    command = f"provision upgrade run --method {method} --confirm {upgraded.host.name}"
    with subprocess.Popen(upgraded.words(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        _kill(upgraded, state)
        assert run.wait(60) != 0
    back = upgraded.host.run(f"provision upgrade rollback --confirm {upgraded.host.name}")
    assert back.returncode == 0, back.stderr
    assert (upgraded.major, upgraded.sql(DIGEST)) == ("15", upgraded.rows)


def test_command_killed_after_the_start_of_the_new_server_continues_and_goes_back(upgraded: Upgraded) -> None:
    command = f"provision upgrade run --method copy --confirm {upgraded.host.name}"
    with subprocess.Popen(upgraded.words(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        _kill(upgraded, "started")
        assert run.wait(60) != 0
    again = upgraded.host.run(command)
    assert again.returncode == 0, again.stderr
    assert (upgraded.major, upgraded.sql(DIGEST)) == ("17", upgraded.rows)
    refused = upgraded.host.run(f"provision upgrade rollback --confirm {upgraded.host.name}")
    assert "everything written since PostgreSQL 17 started is lost" in refused.stderr
    back = upgraded.host.run(f"provision upgrade rollback --confirm {upgraded.host.name} --confirm-loss discard")
    assert back.returncode == 0, back.stderr
    assert (upgraded.major, upgraded.sql(DIGEST)) == ("15", upgraded.rows)


def _kill(upgraded: Upgraded, state: str) -> None:
    """Kill the host's command, and pg_upgrade, once the journal has reached a state."""
    script = (
        "until pid=$(pgrep -f '^[^ ]*python3? [^ ]*provision upgrade run'); do sleep 0.1; done; "
        f'until grep -qs \'"state": "{state}"\' /var/lib/provision/upgrade.json; do sleep 0.01; done; '
        "kill -9 $pid; kill -9 $(pgrep -x pg_upgrade) 2>/dev/null; true"
    )
    done = upgraded.host.run(f"timeout 600 sh -c {shlex.quote(script)}")
    assert done.returncode != 124, f"the upgrade did not reach the state {state}"


def test_clients_of_the_pooler_wait_for_a_copy_that_can_go_back(upgraded: Upgraded) -> None:
    _upgrade_under_load(upgraded, "copy")
    back = upgraded.back("-e", "upgrade_confirm_loss=discard")
    assert back.code == 0, back.output
    site = upgraded.play("site.yml", upgraded.old)
    assert site.code == 0, site.output
    assert (upgraded.major, upgraded.sql(DIGEST)) == ("15", upgraded.rows)


def _upgrade_under_load(upgraded: Upgraded, method: str) -> None:
    """Upgrade while pgbench writes through the pooler: no transaction fails, and no acknowledged row is lost."""
    found: list[Load] = []
    with upgraded.pooler.loaded(found):
        run = upgraded.upgrade(method, *upgraded.confirm)
    print(method, found, upgraded.host.run("provision upgrade status").stdout)
    assert run.code == 0, run.output
    assert (upgraded.major, upgraded.sql(DIGEST)) == ("17", upgraded.rows)
    (seen,) = found
    assert seen.transactions > 100
    assert (seen.failed, seen.lost) == (0, 0), seen


def test_logical_replication_goes_back_with_every_row_of_the_new_server(upgraded: Upgraded) -> None:
    _upgrade_under_load(upgraded, "logical")
    assert upgraded.host.run("runuser -u postgres -- psql -XAtc 'SELECT 1' -p 5432 minion").returncode == 0
    upgraded.sql("INSERT INTO notes SELECT 1000000 + n, 'of the new server' FROM generate_series(1, 1000) n")
    upgraded.sql("UPDATE memories SET content = 'changed', embedding = embedding WHERE content = 'memory 7'")
    rows = upgraded.sql(DIGEST)
    again = upgraded.play("site.yml", upgraded.new)
    assert again.code == 0, again.output
    assert again.recap[upgraded.host.name].changed == 0, again.output
    back = upgraded.back()
    log = upgraded.host.run("tail -n 25 /var/log/postgresql/postgresql-15-main.log; provision upgrade status").stdout
    assert back.code == 0, back.output + log
    site = upgraded.play("site.yml", upgraded.old)
    assert site.code == 0, site.output
    assert (upgraded.major, upgraded.sql(DIGEST)) == ("15", rows)
    assert upgraded.sql("SELECT count(*) FROM notes WHERE t = 'of the new server'") == "1000"
    upgraded.sql("UPDATE memories SET content = 'memory 7', embedding = embedding WHERE content = 'changed'")
    upgraded.rows = upgraded.sql(DIGEST)
    upgraded.sql("DELETE FROM notes WHERE n > 1000000")


def test_link_ends_the_way_back_and_the_old_server_cannot_start(upgraded: Upgraded) -> None:
    _upgrade_under_load(upgraded, "link")
    refused = upgraded.back("-e", "upgrade_confirm_loss=discard")
    assert refused.code != 0
    assert "a link upgrade has no way back once its new server has started" in refused.text()
    for start in (
        "pg_ctlcluster 15 main start",
        "systemctl start postgresql@15-main && systemctl is-active postgresql@15-main",
        "runuser -u postgres -- /usr/lib/postgresql/15/bin/pg_ctl start -w -D /var/lib/postgresql/15/main -o '-p 5999'",
    ):
        assert upgraded.host.run(start).returncode != 0, start
    again = upgraded.play("site.yml", upgraded.new)
    assert again.code == 0, again.output
    assert again.recap[upgraded.host.name].changed == 0, again.output


def test_backups_continue_and_the_old_cluster_is_released(upgraded: Upgraded) -> None:
    done = upgraded.host.run("provision backup take --type incr && provision backup status --json")
    assert done.returncode == 0, done.stdout + done.stderr
    run = upgraded.play("upgrade.yml", upgraded.new, "-e", "upgrade_release=yes", *upgraded.confirm)
    assert run.code == 0, run.output
    assert upgraded.host.run("ls /var/lib/postgresql/15/main /etc/postgresql/15/main").returncode != 0
    assert (upgraded.major, upgraded.sql(DIGEST)) == ("17", upgraded.rows)
