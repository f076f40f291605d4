"""Makes a Debian 13 host ready for PostgreSQL 15 of Debian 12 and pgvector 0.5.1, for upgrades to Debian 13's 17.

Does IO: PostgreSQL comes from Debian 12's archive of the host's own mirror, with the libraries that it needs pinned.
pgvector is compiled on this machine, whose headers are those of Debian 12, from the tarball of its tag: the file that
PGVECTOR_TARBALL names, or a download from the role's default address.
"""

from __future__ import annotations

import os
import subprocess
import urllib.request
from pathlib import Path

import yaml

from tests import pgvector
from tests.sandboxes import Host

ROOT = Path(__file__).parents[1]
MAJOR = 15
VERSION, SHA256 = "0.5.1", "cc7a8e034a96e30a819911ac79d32f6bc47bdd1aa2de4d7d4904e26b83209dc8"
STAMP = "/usr/local/src/pgvector-for-15.built"
LIBRARIES = "libicu72 libldap-2.5-0 libllvm14"
"""What PostgreSQL 15 of Debian 12 needs that Debian 13 does not have."""
NEW = {"postgresql_version": 17, "postgresql_repository": "distribution", "pgvector_install_method": "package"}
"""Variables of the new major, beside those of the host."""


def prepare(host: Host, folder: Path) -> dict[str, object]:
    """Pin the libraries, place the built extension, and return the variables of the old major."""
    variables = _archive(host, folder)
    _place(host, _build(folder))
    return variables


def _archive(host: Host, folder: Path) -> dict[str, object]:
    key = folder / "bookworm.asc"
    key.write_text(host.run("cat /etc/apt/trusted.gpg.d/debian-archive-bookworm-automatic.asc").stdout)
    sources = host.run("cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null").stdout
    archive = next(line.split()[1] for line in sources.splitlines() if " trixie " in line)
    pin = f"Package: {LIBRARIES}\\nPin: release bookworm\\nPin-Priority: 700\\n"
    assert host.run(f"printf '{pin}' > /etc/apt/preferences.d/60-old-libraries").returncode == 0
    return {
        "postgresql_version": MAJOR, "postgresql_repository": "mirror", "postgresql_mirror_uri": archive,
        "postgresql_mirror_suite": "bookworm", "postgresql_mirror_component": "main", "postgresql_mirror_key": str(key),
        "pgvector_install_method": "source",
    }  # fmt: skip


def _build(folder: Path) -> Path:
    given = os.environ.get("PGVECTOR_TARBALL", "")
    tarball = Path(given).absolute() if given else folder / "tarball"
    if not tarball.exists():
        defaults = yaml.safe_load((ROOT / "roles/pgvector/defaults/main.yml").read_text())
        with urllib.request.urlopen(defaults["pgvector_source_url"], timeout=60) as stream:  # noqa: S310 - https
            tarball.write_bytes(stream.read())
    pgvector.run(folder, "tar", "--extract", "--one-top-level=source", "--strip-components=1", "--file", tarball)
    config = f"PG_CONFIG={pgvector.unpack_headers(folder, str(MAJOR))}"
    pgvector.run(folder / "source", "make", config, "OPTFLAGS=", "with_llvm=no")
    return pgvector.collect(folder, str(MAJOR))


def _place(host: Host, tree: Path) -> None:
    """Put the built extension on the host, with the record of a complete build."""
    copy = ["podman", "cp", f"{tree}/usr", f"{host.container.container}:/"]
    subprocess.run([*host.sandbox.machine.prefix, *copy], check=True, capture_output=True)
    stamp = f"mkdir -p /usr/local/src; echo '{VERSION} {SHA256}' > {STAMP}; chmod 0644 {STAMP}"
    assert host.run(stamp).returncode == 0
