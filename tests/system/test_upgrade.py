"""A host with PostgreSQL 15 of Debian 12 becomes one with Debian 13's 17, goes back, and is killed on the way.

Needs half an hour, so it runs with `make test-faults`. tests/older.py describes the host.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests import older
from tests.sandboxes import Host, Hosts
from tests.system.playbooks import ROOT, Run, play, words

pytestmark = pytest.mark.faults
SHARED = {
    "backup_physical": True,
    "backup_allow_local_only": True,
    "backup_repository_passphrase": "a passphrase of this test",
}
ROWS = 1000
LOAD = f"""
INSERT INTO agents (name) SELECT 'a' || n FROM generate_series(1, 10) n;
INSERT INTO memories (agent_id, content, embedding) SELECT (SELECT id FROM agents ORDER BY random() + n * 0 LIMIT 1),
  'm' || n, ARRAY(SELECT random() + n * 0 FROM generate_series(1, 1536))::vector FROM generate_series(1, {ROWS}) n;
ANALYZE;
"""
DIGEST = "SELECT count(*), md5(string_agg(m::text, '' ORDER BY id)) FROM memories m"
STATES = ("prepared", "stopped", "transferred", "started", "serving")


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
        inside = [*hosts.sandbox.machine.prefix, "podman", "exec", "-i", host.container.container]
        psql = ["runuser", "-u", "postgres", "--", "psql", "-Xqv", "ON_ERROR_STOP=1", "minion"]
        done = subprocess.run([*inside, *psql], input=LOAD, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        made.rows = made.sql(DIGEST)
        yield made


def test_check_shows_the_stages_and_leaves_the_old_server(upgraded: Upgraded) -> None:
    run = upgraded.upgrade("copy")
    assert run.code == 0, run.output
    assert "PostgreSQL 15 can be upgraded to 17 by copy" in run.text()
    assert upgraded.major == "15"
    refused = upgraded.play("site.yml", upgraded.new)
    assert "set postgresql_version: 15 to keep it, or upgrade with ansible-playbook upgrade.yml" in refused.text()


@pytest.mark.parametrize("method", ["copy", "link"])
def test_command_that_was_killed_in_any_state_continues(upgraded: Upgraded, method: str) -> None:
    for state in STATES[:3]:
        _kill_in(upgraded, method, state)
        run = upgraded.back()
        assert run.code == 0, run.output
        assert (upgraded.major, upgraded.sql(DIGEST)) == ("15", upgraded.rows)
    _kill_in(upgraded, "copy", "started")
    run = upgraded.upgrade("copy", *upgraded.confirm)
    assert run.code == 0, run.output
    assert (upgraded.major, upgraded.sql(DIGEST)) == ("17", upgraded.rows)
    run = upgraded.back("-e", "upgrade_confirm_loss=discard")
    assert run.code == 0, run.output
    run = upgraded.play("site.yml", upgraded.old)
    assert run.code == 0, run.output
    assert (upgraded.major, upgraded.sql(DIGEST)) == ("15", upgraded.rows)


def _kill_in(upgraded: Upgraded, method: str, state: str) -> None:
    """Start an upgrade and kill its command, and pg_upgrade, once the journal has reached a state."""
    arguments = ("-e", f"@{upgraded.new}", "-e", "upgrade_to=17", "-e", f"upgrade_method={method}", *upgraded.confirm)
    with subprocess.Popen(
        words("upgrade.yml", upgraded.host.inventory, *arguments),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as run:
        script = (
            f'until grep -qs \'"state": "{state}"\' /var/lib/provision/upgrade.json; do sleep 0.02; done; '
            "kill -9 $(pgrep -f '^[^ ]*python3? [^ ]*provision upgrade run') $(pgrep -x pg_upgrade)"
        )
        deadline = time.monotonic() + 600
        upgraded.host.run(f"timeout 600 sh -c '{script}'")
        assert time.monotonic() < deadline
        assert run.wait(600) != 0


def test_link_ends_the_way_back_and_the_old_server_cannot_start(upgraded: Upgraded) -> None:
    run = upgraded.upgrade("link", *upgraded.confirm)
    assert run.code == 0, run.output
    assert (upgraded.major, upgraded.sql(DIGEST)) == ("17", upgraded.rows)
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
