"""The Debian mirror is read from what apt says, and never guessed."""

from __future__ import annotations

import pytest

from provision.controller.mirror import Mirror, Source, choose, parse_options, parse_source_uris
from provision.errors import HostError

OWN = [
    ["http://mirror.example/debian/", "bookworm", "main"],
    ["http://mirror.example/debian/", "bookworm-updates", "main"],
    ["http://mirror.example/security/", "bookworm-security", "main"],
]
VENDOR = ["https://vendor.example/apt/", "bookworm", "main"]


def test_takes_archive_updates_and_security() -> None:
    assert choose(OWN, "bookworm") == Mirror("http://mirror.example/debian", "http://mirror.example/security", True, ())


def test_prefers_the_archive_with_updates_to_a_vendors_repository() -> None:
    assert choose([VENDOR, *OWN], "bookworm").archive == "http://mirror.example/debian"


def test_a_mirror_may_have_neither_updates_nor_security() -> None:
    mirror = choose(OWN[:1], "bookworm")
    assert mirror.sources("trixie") == ("deb http://mirror.example/debian trixie main",)


def test_sources_name_each_suite_of_the_wanted_release() -> None:
    assert choose(OWN, "bookworm").sources("trixie") == (
        "deb http://mirror.example/debian trixie main",
        "deb http://mirror.example/debian trixie-updates main",
        "deb http://mirror.example/security trixie-security main",
    )


@pytest.mark.parametrize(("targets", "seen"), [([], "no sources"), (OWN, "http://mirror.example/debian bookworm")])
def test_refuses_a_machine_without_a_mirror_of_its_release(targets: list[list[str]], seen: str) -> None:
    with pytest.raises(HostError, match="no Debian mirror in this machine's apt configuration") as refused:
        choose(targets, "noble")
    assert seen in refused.value.seen
    assert refused.value.run == "provision sandbox up --mirror http://HOST/debian"


def test_hosts_get_proxies_and_date_checks_of_the_machine_and_nothing_else() -> None:
    dump = """APT::Architecture "amd64";
Acquire::http::Proxy "http://proxy.example:3142";
Acquire::https::Proxy::internal.example "DIRECT";
Acquire::Check-Valid-Until "false";
Acquire::http::User-Agent "Debian";
Acquire::http::Proxy-Auto-Detect "";
"""
    assert parse_options(dump) == [
        ("Acquire::http::Proxy", "http://proxy.example:3142"),
        ("Acquire::https::Proxy::internal.example", "DIRECT"),
        ("Acquire::Check-Valid-Until", "false"),
    ]


def test_reads_the_upstream_tarball_among_the_files_of_a_source_package() -> None:
    text = f"""NOTICE: 'pgvector' packaging is maintained in the 'Git' version control system
Need to get 139 kB of source archives.
'http://mirror.example/p/pgvector_0.8.7-1.dsc' pgvector_0.8.7-1.dsc 2122 SHA256:{"1" * 64}
'http://mirror.example/p/pgvector_0.8.7.orig.tar.gz' pgvector_0.8.7.orig.tar.gz 133050 SHA256:{"b" * 64}
'http://mirror.example/p/pgvector_0.8.7-1.debian.tar.xz' pgvector_0.8.7-1.debian.tar.xz 4000 SHA256:{"2" * 64}
"""
    assert parse_source_uris(text) == Source("0.8.7", "http://mirror.example/p/pgvector_0.8.7.orig.tar.gz", "b" * 64)


def test_refuses_a_source_package_without_a_sha256() -> None:
    text = "'http://mirror.example/p/pgvector_0.8.7.orig.tar.gz' pgvector_0.8.7.orig.tar.gz 133050 MD5Sum:0123"
    with pytest.raises(HostError, match="no upstream tarball"):
        parse_source_uris(text)
