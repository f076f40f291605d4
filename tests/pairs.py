"""Pairs of majors between which a Debian 13 host is upgraded, and where the packages of each come from.

Does IO: PostgreSQL 15 comes from Debian 12's archive and 18 from Debian testing's, both of the host's own mirror, with
the libraries that they need pinned; 14 comes from the mirror that environment variables name (docs/test-pg14.md).
pgvector for 15 is compiled on this machine, whose headers are those of Debian 12, from the tarball of its tag: the file
that PGVECTOR_TARBALL names, or a download from the role's default address. The host itself compiles that for 14.
"""

from __future__ import annotations

import os
import subprocess
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from tests import pgvector
from tests.pg14.mirror import Mirror
from tests.sandboxes import Host

ROOT = Path(__file__).parents[1]
VERSION, SHA256 = "0.5.1", "cc7a8e034a96e30a819911ac79d32f6bc47bdd1aa2de4d7d4904e26b83209dc8"
STAMP = "/usr/local/src/pgvector-for-15.built"
OLD_LIBRARIES = "libicu72 libldap-2.5-0 libllvm14"
"""What PostgreSQL 15 of Debian 12 needs that Debian 13 does not have."""
NEW_LIBRARIES = "libc6 libc-bin libc-l10n libc-gconv-modules-extra locales libicu78 libxml2-16"
"""What PostgreSQL 18 of Debian testing needs that Debian 13 does not have, or only older: the C library, too."""
PG17 = ("postgresql-client-17", "postgresql-17")
OWN_RELEASE = """
set -eu; cd $(mktemp -d); export DEBIAN_FRONTEND=noninteractive
mkdir -p /etc/postgresql-common/createcluster.d
echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.d/50-provision.conf
for name in {names}; do /usr/lib/apt/apt-helper download-file {pool}/$name $PWD/$name; done
chmod 755 . && apt-get -q update && apt-get -qy install --no-install-recommends ./*.deb && apt-mark hold {held}
"""
Variables = dict[str, object]
DISTRIBUTION: Variables = {
    "postgresql_version": 17,
    "postgresql_repository": "distribution",
    "pgvector_install_method": "package",
}


@dataclass(frozen=True)
class Pair:
    """Two majors, the old one's pgvector, and what prepares a host and returns the variables of both majors."""

    old: int
    new: int
    vector: str
    variables: Callable[[Host, Path], tuple[Variables, Variables]]
    settings: frozenset[str] = frozenset()
    """Settings whose values may differ between the two, or that only the old one has."""

    def __str__(self) -> str:
        """Return the id of its tests."""
        return f"{self.old}-{self.new}"


def _from_mirror(_host: Host, _folder: Path) -> tuple[Variables, Variables]:
    mirror = Mirror.given()
    return mirror.variables(mirror.suite_of("trixie")), DISTRIBUTION


def _from_debian_12(host: Host, folder: Path) -> tuple[Variables, Variables]:
    """Pin the libraries and place the built extension."""
    archive = _archive(host, folder, "bookworm", OLD_LIBRARIES)
    _place(host, _build(folder))
    return {"postgresql_version": 15, "pgvector_install_method": "source", **archive}, DISTRIBUTION


def _from_testing(host: Host, folder: Path) -> tuple[Variables, Variables]:
    """Pin the libraries, and install the release of 17 that PROVISION_PG17_VERSION names, from the archive's pool.

    The archive of testing may have a release of 18 that is older than Debian 13's 17, which no upgrade can take.
    """
    archive = _archive(host, folder, "testing", NEW_LIBRARIES)
    if version := os.environ.get("PROVISION_PG17_VERSION", ""):
        pool = f"{archive['postgresql_mirror_uri']}/pool/main/p/postgresql-17"
        names = " ".join(f"{name}_{version}_$(dpkg --print-architecture).deb" for name in PG17)
        done = host.run(OWN_RELEASE.format(pool=pool, names=names, held=" ".join(PG17)))
        assert done.returncode == 0, done.stdout + done.stderr
    return DISTRIBUTION, {"postgresql_version": 18, "pgvector_install_method": "package", **archive}


# jsonlog and compression by lz4 exist from 15 on, stats_temp_directory up to 14.
SINCE_15 = frozenset(("log_destination", "stats_temp_directory", "wal_compression"))
FOURTEEN = Pair(14, 17, VERSION, _from_mirror, SINCE_15)
FIFTEEN = Pair(15, 17, VERSION, _from_debian_12)
# A list from 18 on; and parallel builds of HNSW indexes, which pgvector 0.8.2 has made safe.
SINCE_18 = frozenset(("log_connections", "max_parallel_maintenance_workers"))
EIGHTEEN = Pair(17, 18, "0.8.0", _from_testing, SINCE_18)


def _archive(host: Host, folder: Path, suite: str, libraries: str) -> Variables:
    """Return the variables of another suite of the host's Debian archive, and pin libraries of it."""
    key = folder / "archive.asc"
    # With that key testing's archive is signed, too.
    key.write_text(host.run("cat /etc/apt/trusted.gpg.d/debian-archive-bookworm-automatic.asc").stdout)
    sources = host.run("cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null").stdout
    archive = next(line.split()[1] for line in sources.splitlines() if " trixie " in line)
    pin = f"Package: {libraries}\\nPin: release {suite}\\nPin-Priority: 700\\n"
    assert host.run(f"printf '{pin}' > /etc/apt/preferences.d/60-libraries").returncode == 0
    return {
        "postgresql_repository": "mirror", "postgresql_mirror_uri": archive, "postgresql_mirror_suite": suite,
        "postgresql_mirror_component": "main", "postgresql_mirror_key": str(key),
    }  # fmt: skip


@cache  # the members of a cluster share it
def _build(folder: Path) -> Path:
    given = os.environ.get("PGVECTOR_TARBALL", "")
    tarball = Path(given).absolute() if given else folder / "tarball"
    if not tarball.exists():
        defaults = yaml.safe_load((ROOT / "roles/pgvector/defaults/main.yml").read_text())
        with urllib.request.urlopen(defaults["pgvector_source_url"], timeout=60) as stream:  # noqa: S310 - https
            tarball.write_bytes(stream.read())
    pgvector.run(folder, "tar", "--extract", "--one-top-level=source", "--strip-components=1", "--file", tarball)
    config = f"PG_CONFIG={pgvector.unpack_headers(folder, '15')}"
    pgvector.run(folder / "source", "make", config, "OPTFLAGS=", "with_llvm=no")
    return pgvector.collect(folder, "15")


def _place(host: Host, tree: Path) -> None:
    """Put the built extension on the host, with the record of a complete build."""
    copy = ["podman", "cp", f"{tree}/usr", f"{host.container.container}:/"]
    subprocess.run([*host.sandbox.machine.prefix, *copy], check=True, capture_output=True)
    stamp = f"mkdir -p /usr/local/src; echo '{VERSION} {SHA256}' > {STAMP}; chmod 0644 {STAMP}"
    assert host.run(stamp).returncode == 0
