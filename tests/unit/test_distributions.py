"""The table of distributions: lookups, derived names, and the values that the rest of the package relies on."""

from __future__ import annotations

import pytest

from provision import distributions
from provision.distributions import ARCHITECTURES, DISTRIBUTIONS
from provision.errors import UsageError


def test_debian_12_ships_old_backup_tool_and_no_pgvector() -> None:
    debian = distributions.by_codename("bookworm")
    assert debian is not None
    assert (debian.id, debian.version, debian.name, debian.key) == ("debian", "12", "Debian 12", "debian12")
    assert (debian.postgresql, debian.pgvector, debian.pgvector_install_method) == (15, "", "source")
    assert (debian.pgbouncer, debian.pgbackrest) == ("1.18.0", "2.45")
    assert (debian.patroni, debian.etcd, debian.haproxy) == ("3.0", "3.4", "2.6")
    assert debian.tested


def test_debian_13_ships_pgvector_0_8_0() -> None:
    debian = distributions.of("debian", "13")
    assert debian is not None
    assert (debian.codename, debian.name, debian.key) == ("trixie", "Debian 13", "debian13")
    assert (debian.postgresql, debian.pgvector, debian.pgvector_install_method) == (17, "0.8.0", "package")
    assert (debian.pgbouncer, debian.pgbackrest) == ("1.24.1", "2.55.1")
    assert (debian.patroni, debian.etcd, debian.haproxy) == ("4.0", "3.5", "3.0")
    assert debian.variables() == {
        "postgresql_version": 17, "postgresql_repository": "distribution", "pgvector_install_method": "package",
    }  # fmt: skip


def test_ubuntu_is_untested_and_has_no_sandbox() -> None:
    ubuntu = distributions.of("ubuntu", "24.04")
    assert ubuntu is not None
    assert (ubuntu.codename, ubuntu.name, ubuntu.key) == ("noble", "Ubuntu 24.04", "ubuntu2404")
    assert (ubuntu.tested, ubuntu.has_sandbox) == (False, False)
    assert (ubuntu.postgresql, ubuntu.pgvector, ubuntu.pgbouncer) == (16, "0.6.0", "1.22.0")


def test_unknown_distribution_is_none() -> None:
    assert distributions.by_codename("bullseye") is None
    assert distributions.by_codename("") is None
    assert distributions.of("debian", "11") is None
    assert distributions.of("ubuntu", "13") is None


def test_key_of_a_sandbox_is_known_or_refused_with_the_allowed_keys() -> None:
    assert distributions.by_key("debian12").codename == "bookworm"
    with pytest.raises(UsageError) as refused:
        distributions.by_key("ubuntu2404")
    assert refused.value.what == "unknown distribution"
    assert (refused.value.where, refused.value.seen) == ("--os", "ubuntu2404")
    assert refused.value.allowed == "debian12, debian13"
    with pytest.raises(UsageError) as refused:
        distributions.by_key("debian11", "MINION_OS")
    assert refused.value.where == "MINION_OS"


def test_box_of_a_release_and_the_default_for_an_unknown_one() -> None:
    assert distributions.box("debian13") == "debian/trixie64"
    assert distributions.box("debian12") == distributions.box() == distributions.box("x") == "debian/bookworm64"


def test_defaults_are_tested_distributions_with_a_sandbox() -> None:
    assert distributions.by_key(distributions.DEFAULT_KEY).name == "Debian 13"
    assert distributions.by_key(distributions.DEFAULT_VM_KEY).name == "Debian 12"


def test_supported_distributions_in_one_phrase() -> None:
    assert distributions.supported() == "Debian 12 and 13, and Ubuntu 24.04 (untested)"


def test_architectures_have_debian_names() -> None:
    assert ARCHITECTURES == {"x86_64": "amd64", "aarch64": "arm64"}


@pytest.mark.parametrize("field", ["codename", "key", "name"])
def test_no_two_distributions_share_a_name(field: str) -> None:
    names = [getattr(each, field) for each in DISTRIBUTIONS]
    assert len(names) == len(set(names))
