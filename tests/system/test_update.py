"""Two hosts are updated one after the other, from packages that were repackaged with a lower version.

Needs hosts of its own, so it runs with `make test-faults`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.sandboxes import Host, Hosts
from tests.system.playbooks import ROOT, Run, play
from tests.waits import Load, Pooler

pytestmark = pytest.mark.faults
VARIABLES = {
    "postgresql_version": 17, "postgresql_repository": "distribution", "pgvector_install_method": "package",
    "backup_physical": True, "backup_allow_local_only": True,
    "backup_repository_passphrase": "a passphrase of this test",
}  # fmt: skip
PACKAGES = ("postgresql-17", "postgresql-17-pgvector")
OLDER = """
set -e
cd $(mktemp -d)
for each in {names}; do
  apt-get -q download $each
  dpkg-deb --raw-extract $each*.deb tree
  sed -i 's/^Version: .*/&~older/' tree/DEBIAN/control
  dpkg-deb --build -Znone tree older.deb
  dpkg --force-downgrade --install older.deb
  rm -rf tree older.deb
done
"""
BROKEN = "/etc/postgresql/17/main/conf.d/99-broken.conf"


def version(host: Host) -> str:
    return host.run("dpkg-query --show --showformat='${Version}' postgresql-17").stdout


def started(host: Host) -> str:
    return host.run("runuser -u postgres -- psql -XAtqc 'SELECT pg_postmaster_start_time()'").stdout.strip()


def behind(host: Host) -> str:
    """Return what the host's doctor says of packages that are older than those of their sources."""
    found = json.loads(host.run("provision doctor --json").stdout)["findings"]
    return "; ".join(str(each["seen"]) for each in found if each["id"] == "updates")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    with Hosts.made(tmp_path_factory.mktemp("project")) as hosts:
        one, two = (hosts.up(name, os="debian13", memory="1g") for name in ("one", "two"))
        run = play("site.yml", one.inventory, "-e", f"@{variables(tmp_path_factory)}", timeout=1800)
        assert run.code == 0, run.output
        for host in (one, two):
            done = host.run(OLDER.format(names=" ".join(PACKAGES)) + "systemctl restart postgresql@17-main")
            assert done.returncode == 0, done.stdout + done.stderr
        yield one, two


def variables(factory: pytest.TempPathFactory) -> Path:
    path = factory.mktemp("variables") / "variables.yml"
    path.write_text(yaml.safe_dump(VARIABLES))
    return path


def update(host: Host, factory: pytest.TempPathFactory, *more: str) -> Run:
    return play("update.yml", host.inventory, "-e", f"@{variables(factory)}", *more, timeout=1200)


def pooler(host: Host) -> Pooler:
    vault = yaml.safe_load((ROOT / "inventories/dev/group_vars/all/vault.yml").read_text())

    def words(script: str) -> list[str]:
        command = f"runuser -u postgres -- bash -euc {shlex.quote(script)}"
        return host.sandbox.words(host.container, "sh", "-c", command)

    return Pooler(words, vault["database_credentials"]["minion_app"]["password"])


def test_look_names_versions_and_restarts_and_changes_nothing(
    pair: tuple[Host, Host], tmp_path_factory: pytest.TempPathFactory
) -> None:
    one, _ = pair
    old, since = version(one), started(one)
    run = update(one, tmp_path_factory)
    assert run.code == 0, run.output
    assert f"postgresql-17: {old} -> {old.removesuffix('~older')}" in run.text()
    assert f"postgresql-17 {old} (available: {old.removesuffix('~older')})" in behind(one)
    assert "restart, if it uses a replaced file: postgresql@17-main.service" in run.text()
    assert (version(one), started(one)) == (old, since)


def test_failure_stops_before_the_next_host_and_names_the_way_back(
    pair: tuple[Host, Host], tmp_path_factory: pytest.TempPathFactory
) -> None:
    one, two = pair
    old, since = version(one), started(one)
    one.run(f"echo 'work_mem = broken' > {BROKEN}")
    run = update(one, tmp_path_factory, "-e", "update_apply=yes")
    assert run.code != 0
    assert f"before the update: postgresql-17 {old}" in run.text()
    assert f"apt-get install --allow-downgrades --no-remove --no-install-recommends postgresql-17={old}" in run.text()
    assert (version(two), started(one)) == (old, since)
    one.run(f"rm {BROKEN}")


def test_repeated_command_updates_both_hosts_while_clients_wait(
    pair: tuple[Host, Host], tmp_path_factory: pytest.TempPathFactory
) -> None:
    one, two = pair
    old, since = version(two), started(one)
    place, found = pooler(two), list[Load]()
    place.fill(100, 1000)
    with place.loaded(found):
        run = update(one, tmp_path_factory, "-e", "update_apply=yes")
    print(found, run.output)
    assert run.code == 0, run.output
    assert version(one) == version(two) == old.removesuffix("~older")
    assert behind(one) == behind(two) == ""
    assert started(one) > since
    (seen,) = found
    assert seen.transactions > 100
    assert (seen.failed, seen.lost) == (0, 0), seen
    again = update(one, tmp_path_factory, "-e", "update_apply=yes")
    assert again.code == 0, again.output
    assert again.recap["one"].changed == again.recap["two"].changed == 0, again.output
