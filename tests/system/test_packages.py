"""Where packages come from: PGDG and a mirror, each way in which one can fail, and a bundle for hosts without either.

No test reaches PGDG: its place is taken by Debian's own packages under other versions, laid out and signed as PGDG's
are. The order of the file is the order of the hosts' lives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tests.repositories import SUFFIX, Archive, packages_of
from tests.sandboxes import Host, Hosts, provision
from tests.system.playbooks import ROOT, Run, play, url
from tests.system.production import Production
from tests.system.test_provisioning import started

FROM_PGDG = {"postgresql-17", "postgresql-client-17", "postgresql-17-pgvector"}
KEY_OF_PGDG = "/usr/share/postgresql-common/pgdg/apt.postgresql.org.asc"
# This machine's apt may look away from dates, and its hosts then do the same: here they look, as Debian's own do.
DATES_COUNT = 'Acquire::Check-Valid-Until "true"; Acquire::Check-Date "true";'


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "debian13.tar"
    done = provision("bundle", "make", path, "--os", "debian13")
    assert done.returncode == 0, done.stderr
    assert "postgresql_bundle_fingerprint: " in done.stdout
    return path


@dataclass
class Place:
    """A host, the archive that it takes its packages from, runs that failed while it was bare, and one that did not."""

    host: Host
    archive: Archive
    old_major: Run
    real_key: Run
    no_major: Run
    first: Run

    def mirror(self, *arguments: str, **other: str) -> Run:
        """Run site.yml with a mirror that is the archive but for what is given otherwise."""
        variables = {"uri": self.archive.uri, "suite": "trixie-pgdg", "key": str(self.archive.key), **other}
        words = [word for name, value in variables.items() for word in ("-e", f"postgresql_mirror_{name}={value}")]
        return run(self.host, "-e", "postgresql_repository=mirror", *words, *arguments)


def run(host: Host, *arguments: str) -> Run:
    return play("site.yml", host.inventory, "--limit", host.name, *arguments)


def source_of(host: Host) -> str:
    return host.run(
        "cat /etc/apt/sources.list.d/provision-postgresql.sources /etc/apt/preferences.d/50-provision*"
    ).stdout


@pytest.fixture(scope="module")
def place(sandbox: Hosts, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    host = sandbox.up("mirrored", os="debian13")
    host.run(f"echo '{DATES_COUNT}' >/etc/apt/apt.conf.d/zz-dates")
    folder = tmp_path_factory.mktemp("archive")
    # openssl is there so that it must not be taken, although its version is newer than Debian's.
    packages = packages_of(bundle, {*FROM_PGDG, "openssl"}, folder)
    with Archive.served(folder, host.gateway, packages, "trixie-pgdg") as archive:
        # The package that carries PGDG's key, and a key in it that is this archive's.
        made = host.run("apt-get -q update && apt-get -qy install --no-install-recommends postgresql-common")
        assert made.returncode == 0, made.stderr
        assert "BEGIN PGP PUBLIC KEY BLOCK" in host.run(f"cat {KEY_OF_PGDG}").stdout
        pgdg = ("-e", "postgresql_repository=pgdg", "-e", f"postgresql_pgdg_uri={archive.uri}")
        old = ("-e", "postgresql_version=14", "-e", "postgresql_pgdg_archive_uri=http://127.0.0.1:9/old")
        source = ("-e", "pgvector_install_method=source")  # what 14 and 16 are asked with, so that nothing else refuses
        old_major = run(host, *pgdg, *old, *source)
        real_key = run(host, *pgdg)
        host.run(f"cat >{KEY_OF_PGDG} <<'END'\n{archive.key.read_text()}END")
        no_major = run(host, *pgdg, "-e", "postgresql_version=16", *source)
        yield Place(host, archive, old_major, real_key, no_major, run(host, *pgdg))


def test_pgdg_gives_the_packages_that_are_meant_and_no_other(place: Place) -> None:
    assert place.first.code == 0, place.first.output
    shown = place.host.run("dpkg-query -Wf '${Package} ${Version}\\n'").stdout
    versions = dict(line.split(" ") for line in shown.splitlines())
    assert {name for name, version in versions.items() if version.endswith(SUFFIX)} == FROM_PGDG
    policy = place.host.run("apt-cache policy openssl").stdout
    candidate = next(line for line in policy.splitlines() if "Candidate" in line)
    assert SUFFIX in policy
    assert not candidate.endswith(SUFFIX)


def test_pgdg_is_a_source_with_one_key_pinned_by_its_host(place: Place) -> None:
    shown = source_of(place.host)
    assert f"Signed-By: {KEY_OF_PGDG}\n" in shown
    assert "Suites: trixie-pgdg\n" in shown
    assert f'Pin: origin "{place.host.gateway}"\n' in shown
    # Debian 13's pgBackRest knows every major, and the repository's host has it.
    assert "pgbackrest" not in shown


def test_major_past_its_end_of_life_is_looked_for_at_the_archives_host(place: Place) -> None:
    reported = place.old_major.text()
    assert (
        "cannot read the package source http://127.0.0.1:9/old (suite trixie-pgdg-archive, component main)" in reported
    )
    assert "it cannot be reached; set postgresql_pgdg_archive_uri" in reported


def test_key_of_the_distributions_package_is_the_one_that_pgdg_is_verified_with(place: Place) -> None:
    reported = place.real_key.text()
    assert "it is signed by another key than the configured one; set postgresql_repository to mirror" in reported
    assert "upgrade postgresql-common on the host" in reported


def test_major_that_the_mirror_does_not_have_is_named(place: Place) -> None:
    reported = place.no_major.text()
    assert ": no package source of this host provides postgresql-16" in reported
    assert (
        f"packages come from {place.archive.uri}: set postgresql_repository or postgresql_version to a source that"
        in reported
    )


def test_mirror_takes_the_place_of_pgdg_pinned_by_its_suite(place: Place) -> None:
    done = place.mirror("--tags", "postgresql")
    assert done.code == 0, done.output
    assert done.recap["mirrored"].changed == 2, done.output  # the source, and the plan that names it
    shown = source_of(place.host)
    assert "Pin: release trixie-pgdg\n" in shown
    assert "Signed-By: /etc/apt/keyrings/provision-postgresql.asc\n" in shown


@pytest.mark.parametrize(
    ("other", "meaning", "variable"),
    [
        pytest.param(
            {"key": "other"},
            "it is signed by another key than the configured one",
            "postgresql_mirror_key",
            marks=pytest.mark.faults,
        ),
        ({"key": "expired", "suite": "renewed"}, "its signing key has expired", "postgresql_mirror_key"),
        pytest.param(
            {"suite": "late"}, "its index has expired (Valid-Until)", "postgresql_mirror_uri", marks=pytest.mark.faults
        ),
        pytest.param(
            {"suite": "not-there"}, "it has no such suite", "postgresql_mirror_suite", marks=pytest.mark.faults
        ),
        pytest.param(
            {"component": "not-there"},
            "it has no such component",
            "postgresql_mirror_component",
            marks=pytest.mark.faults,
        ),
        ({"uri": "http://127.0.0.1:9/pg"}, "it cannot be reached", "postgresql_mirror_uri"),
    ],
    ids=lambda value: "-".join(value.values()).replace("/", "") if isinstance(value, dict) else "",
)
def test_unreadable_source_is_reported_and_the_old_one_stays(
    place: Place, other: dict[str, str], meaning: str, variable: str
) -> None:
    keys = {"other": place.archive.other_key, "expired": place.archive.expired_key}
    variables = {name: str(keys.get(value, value)) for name, value in other.items()}
    before = started(place.host), source_of(place.host)
    refused = place.mirror("--tags", "postgresql", **variables)
    assert refused.code != 0
    uri, suite = variables.get("uri", place.archive.uri), variables.get("suite", "trixie-pgdg")
    assert f"cannot read the package source {uri} (suite {suite}, component" in refused.text(), refused.output
    assert f"{meaning}" in refused.text(), refused.output
    assert f"; set {variable}" in refused.text(), refused.output
    assert (started(place.host), source_of(place.host)) == before
    with psycopg.connect(url(place.host)) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert place.host.run("apt-get -q update --error-on=any").returncode == 0  # nothing broken is left in apt's way


def test_package_that_the_mirror_lists_but_does_not_hold_is_named_and_the_server_goes_on(place: Place) -> None:
    host, before = place.host, started(place.host)
    assert host.run("dpkg --purge --force-depends postgresql-17-pgvector").returncode == 0
    place.archive.without("postgresql-17-pgvector")
    host.run("apt-get clean")
    refused = place.mirror("--tags", "pgvector")
    place.archive.whole()
    assert "cannot install postgresql-17-pgvector: " in refused.text(), refused.output
    assert f"{place.archive.uri}/pool/postgresql-17-pgvector_" in refused.text(), refused.output
    assert "is in the index but cannot be downloaded (404" in refused.text(), refused.output
    assert "set pgvector_install_method to source" in refused.text(), refused.output
    assert started(host) == before
    mended = place.mirror("--tags", "pgvector")
    assert mended.code == 0, mended.output
    assert started(host) == before


# --- Without a network -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def offline(sandbox: Hosts) -> Host:
    """A bare host whose only route leads to its own network, and that knows no package of any archive."""
    host = sandbox.up("offline", os="debian13")
    host.cut_off()
    host.run("rm -rf /var/lib/apt/lists/* && mkdir -p /var/lib/apt/lists/partial")
    return host


def bundled(host: Host, bundle: Path, *arguments: str) -> Run:
    return run(host, "-e", "postgresql_repository=bundle", "-e", f"postgresql_bundle={bundle}", *arguments)


def untouched(host: Host) -> bool:
    paths = "/etc/postgresql /etc/provision /var/cache/provision /usr/local/bin/provision"
    return host.run(f"ls -d {paths} 2>/dev/null").stdout == ""


def test_host_has_no_way_to_any_archive(offline: Host) -> None:
    assert offline.run("ip route show default").stdout == ""
    asked = offline.run("python3 -c 'import socket; socket.create_connection((\"192.0.2.1\", 80), 5)'")
    assert "Network is unreachable" in asked.stderr
    assert offline.run("apt-cache policy postgresql-17").stdout == ""
    refused = run(offline)
    assert refused.code != 0
    assert re.search(r"cannot install \S.*postgresql-17, .*: reading the package lists, ", refused.text()), (
        refused.output
    )
    offline.run("rm -rf /etc/provision /etc/postgresql-common /etc/postgresql /run/provision")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        pytest.param(
            "postgresql_version=16",
            "made for another postgresql_version: 17, this run has 16",
            marks=pytest.mark.faults,
        ),
        (f"postgresql_bundle_fingerprint={'A' * 40}", "signed by key "),
    ],
)
def test_bundle_for_something_else_is_refused_before_anything_is_changed(
    offline: Host, bundle: Path, variables: str, expected: str
) -> None:
    refused = bundled(offline, bundle, "-e", variables)
    assert refused.code != 0
    assert expected in refused.text(), refused.output
    assert refused.recap["offline"].changed == 0
    assert untouched(offline)


def test_bundle_with_a_flipped_byte_is_refused_and_the_file_named(offline: Host, bundle: Path, tmp_path: Path) -> None:
    content = bytearray(bundle.read_bytes())
    content[len(content) // 2] ^= 1
    flipped = tmp_path / "flipped.tar"
    flipped.write_bytes(content)
    refused = bundled(offline, flipped)
    assert "is invalid; pool/" in refused.text(), refused.output
    assert ".deb; its SHA-256 is " in refused.text(), refused.output
    assert refused.recap["offline"].changed == 0
    assert untouched(offline)


def test_host_without_a_network_becomes_a_database(offline: Host, bundle: Path) -> None:
    first = bundled(offline, bundle)
    assert first.code == 0, first.output
    with psycopg.connect(url(offline)) as connection:
        assert connection.execute("SELECT '[1]'::vector <=> '[1]'::vector").fetchone() == (0,)
    # apt of this host is what it was: the bundle is for our own runs.
    assert offline.run("ls /etc/apt/sources.list.d /etc/apt/preferences.d | grep provision").stdout == ""


def test_bundle_for_another_release_is_refused(offline: Host, bundle: Path) -> None:
    # The host says that it is Debian 12: what is compared is what a host says of itself.
    offline.run("cp -p /usr/lib/os-release /root/; sed -i s/trixie/bookworm/ /usr/lib/os-release")
    refused = bundled(offline, bundle)
    offline.run("cp -p /root/os-release /usr/lib/os-release")
    assert "was made for another release: trixie, this run has bookworm" in refused.text()
    assert refused.recap["offline"].changed == 0


@pytest.mark.faults
def test_production_without_a_network_keeps_its_backups_on_another_host_without_one(
    project: Hosts, bundle: Path, tmp_path: Path
) -> None:
    hosts = Production.make(project, tmp_path)
    for host in (hosts.database, hosts.peer):
        host.cut_off()
        host.run("rm -rf /var/lib/apt/lists/* && mkdir -p /var/lib/apt/lists/partial")
    carried = hosts.peer.ansible("--become", "-m", "ansible.builtin.copy", "-a", f"src={bundle} dest=/root/")
    assert carried.returncode == 0, carried.stdout
    page = (ROOT / "docs/without-a-network.md").read_text()
    commands = next(block for block in page.split("```") if "install pgbackrest openssh-server" in block)
    made = hosts.peer.run(f"set -e; cd /root; {commands.removeprefix('sh')}")
    assert made.returncode == 0, made.stderr
    variables = ("-e", "postgresql_repository=bundle", "-e", f"postgresql_bundle={bundle}")
    first, second = (hosts.play(*variables) for _ in range(2))
    assert first.code == 0, first.output
    assert second.code == 0, second.output
    assert {name: row.changed for name, row in second.recap.items()} == {"prod1": 0, "peer": 0}, second.output
    assert "status: ok" in hosts.database.run("runuser -u postgres -- pgbackrest info").stdout
    # Encrypted with a passphrase that only the database host has: the peer shows a folder for each backup.
    assert hosts.peer.run("ls -d ~pgbackrest/backup/prod1/*F").returncode == 0
