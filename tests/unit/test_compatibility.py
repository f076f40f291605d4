"""What the version data say about combinations; expected values from release notes and changelogs, by hand."""

import subprocess
from datetime import date
from pathlib import Path

import pytest

from provision import compatibility
from provision.compatibility import Finding, Level
from provision.errors import UsageError

ROOT = Path(__file__).parents[2]
AUTUMN_2026 = date(2026, 11, 23)
SUMMER_2024 = date(2024, 7, 1)


def ids(findings: list[Finding], level: Level) -> list[str]:
    return [finding.id for finding in findings if finding.level is level]


def test_default_works_and_warns() -> None:
    found = compatibility.check(14, "0.5.1", "source", today=AUTUMN_2026)
    assert ids(found, Level.REFUSAL) == []
    assert ids(found, Level.WARNING) == [
        "postgresql-end-of-life",
        "pgvector-hnsw-vacuum",
        "pgvector-no-iterative-scan",
    ]
    assert "2026-11-12" in found[0].message


def test_sound_combination_is_silent() -> None:
    assert compatibility.check(17, "0.8.6", "source", today=AUTUMN_2026) == []


@pytest.mark.parametrize(
    ("postgresql", "pgvector", "remedy"),
    [
        (18, "0.5.1", "pgvector 0.8.4 on PostgreSQL 18 or PostgreSQL 16 with pgvector 0.5.1"),
        (18, "0.8.0", "pgvector 0.8.4 on PostgreSQL 18 or PostgreSQL 17 with pgvector 0.8.0"),
        (18, "0.7.4", "pgvector 0.8.4 on PostgreSQL 18 or PostgreSQL 17 with pgvector 0.7.4"),
    ],
)
def test_refuses_what_does_not_compile_and_names_the_nearest(postgresql: int, pgvector: str, remedy: str) -> None:
    first = compatibility.check(postgresql, pgvector, "source", today=AUTUMN_2026)[0]
    assert (first.id, first.level, first.remedy) == ("pgvector-does-not-compile", Level.REFUSAL, remedy)
    assert first.message == f"pgvector {pgvector} does not compile on PostgreSQL {postgresql}"


def test_warns_where_authors_never_tested() -> None:
    found = compatibility.check(17, "0.5.1", "source", today=AUTUMN_2026)
    assert "pgvector-untested" in ids(found, Level.WARNING)
    assert ids(found, Level.REFUSAL) == []


@pytest.mark.parametrize("version", ["0.5.2", "latest", ""])
def test_refuses_source_without_checksum(version: str) -> None:
    (found,) = compatibility.check(16, version, "source", today=SUMMER_2024)
    assert (found.id, found.level) == ("pgvector-unknown", Level.REFUSAL)
    with pytest.raises(UsageError, match="no recorded checksum"):
        compatibility.source_checksum(version)


def test_warns_of_a_version_newer_than_any_on_record() -> None:
    (found,) = compatibility.check(16, "0.9.0", "source", today=SUMMER_2024)
    assert (found.id, found.level) == ("pgvector-newer", Level.WARNING)


def test_refuses_unknown_major() -> None:
    (found,) = compatibility.check(13, "0.5.1", today=SUMMER_2024)
    assert (found.level, found.remedy) == (Level.REFUSAL, "set postgresql_version to one of 14, 15, 16, 17, 18")


@pytest.mark.parametrize(
    ("today", "expected"),
    [
        (date(2026, 5, 1), []),
        (date(2026, 5, 16), ["postgresql-end-of-life-near"]),
        (date(2026, 11, 11), ["postgresql-end-of-life-near"]),
        (date(2026, 11, 12), ["postgresql-end-of-life"]),
    ],
)
def test_warns_of_end_of_life_in_time(today: date, expected: list[str]) -> None:
    assert ids(compatibility.check(14, "", "package", today=today), Level.WARNING) == expected


def test_accepted_finding_is_not_repeated() -> None:
    found = compatibility.check(17, "0.8.2", today=AUTUMN_2026, accepted=("pgvector-hnsw-vacuum",))
    assert found == []


def test_no_refusal_can_be_accepted() -> None:
    found = compatibility.check(18, "0.5.1", today=AUTUMN_2026, accepted=("pgvector-does-not-compile",))
    assert ids(found, Level.REFUSAL) == ["pgvector-does-not-compile"]


@pytest.mark.parametrize(
    ("version", "accepted", "allowed"),
    [
        ("0.5.1", (), False),  # cannot at all
        ("0.6.0", (), False),
        ("0.8.1", (), False),
        ("0.8.1", ("CVE-2026-3172",), True),
        ("0.8.2", (), True),
        ("0.10.0", (), True),
    ],
)
def test_parallel_builds_only_without_the_overflow(version: str, accepted: tuple[str, ...], allowed: bool) -> None:
    assert compatibility.parallel_build_allowed(version, accepted=accepted) is allowed


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        # Debian 12 and 13 as they are, PGDG's build, and a fixed upstream.
        ("1.18.0-1+deb12u1", ["CVE-2026-6664", "CVE-2026-107350"]),
        ("1.24.1-1+deb13u2", ["CVE-2026-107350", "CVE-2026-107349"]),
        ("1.24.1-1+deb13u1", ["CVE-2026-6664", "CVE-2026-107350", "CVE-2026-107349"]),
        ("1.24.1-2.pgdg12+1", ["CVE-2025-12819", "CVE-2026-6664", "CVE-2026-107350", "CVE-2026-107349"]),
        ("1.18.0-1+b1", ["CVE-2025-2291", "CVE-2025-12819", "CVE-2026-6664", "CVE-2026-107350"]),
        ("1.26.1-1.pgdg13+1", []),
    ],
)
def test_backports_count_by_full_package_version(package: str, expected: list[str]) -> None:
    found = compatibility.advisories("pgbouncer", package, package)
    assert [finding.id for finding in found] == expected


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("1.24.1-1+deb13u2", "1.24.1-1+deb13u10"),
        ("1.0~rc1-1", "1.0-1"),
        ("2:0.1", "1:9.9"),
        ("1.0-1", "1.0-1"),
        ("1.0", "1.0-0"),
        ("0.8.0-1.pgdg12+1", "0.8.0-1+deb12u1"),
        ("1.0a", "1.0+"),
        ("0.10.0-1", "0.9.0-1"),
        ("1.0-1~bpo12+1", "1.0-1"),
    ],
)
def test_package_versions_compare_as_dpkg_compares_them(left: str, right: str) -> None:
    for first, second in ((left, right), (right, left)):
        ours = compatibility.compare_packages(first, second)
        for operator, holds in (("lt", ours < 0), ("eq", ours == 0), ("gt", ours > 0)):
            dpkg = subprocess.run(["dpkg", "--compare-versions", first, operator, second], check=False)
            assert (dpkg.returncode == 0) is holds, f"{first} {operator} {second}"


def test_features_start_where_the_changelog_says() -> None:
    assert [compatibility.has_feature("hnsw", version) for version in ("0.4.4", "0.5.0")] == [False, True]
    assert [compatibility.has_feature("iterative_scan", v) for v in ("0.7.4", "0.8.0", "0.8")] == [
        False,
        True,
        True,
    ]


def test_default_has_the_pinned_checksum() -> None:
    pinned = "cc7a8e034a96e30a819911ac79d32f6bc47bdd1aa2de4d7d4904e26b83209dc8"
    assert compatibility.source_checksum(compatibility.DEFAULT_PGVECTOR) == pinned


def test_every_major_lives_five_years_and_has_a_backup_tool() -> None:
    for row in compatibility.POSTGRESQL.values():
        assert 5 * 365 < (row.end_of_life - row.released).days < 5 * 365 + 60
    assert compatibility.POSTGRESQL[17].minimum_pgbackrest == "2.53.1"


@pytest.mark.parametrize(
    ("major", "codename", "expected"),
    [
        (14, "bookworm", False),  # 2.45 knows 14 and 15
        (15, "bookworm", False),
        (16, "bookworm", True),  # which needs 2.48
        (18, "trixie", False),  # 2.55.1 knows 18
        (17, "noble", True),  # whose version is not on record
    ],
)
def test_pgbackrest_comes_from_pgdg_only_where_the_distributions_is_too_old(
    major: int, codename: str, expected: bool
) -> None:
    names = compatibility.pgdg_packages(major, codename)
    assert ("pgbackrest" in names) is expected
    assert (f"postgresql-{major}-citus-14.0" in names) is (major >= 16)
    assert {each for each in names if "citus" not in each} - {"pgbackrest"} == {
        f"postgresql-{major}", f"postgresql-client-{major}", f"postgresql-server-dev-{major}",
        f"postgresql-{major}-pgvector", "postgresql-common", "postgresql-common-dev", "postgresql-client-common",
        "libpq5", "libpq-dev",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("major", "remote", "expected"),
    [(15, False, "2.41"), (17, False, "2.53.1"), (15, True, "2.55"), (17, True, "2.55")],
)
def test_repository_on_another_host_needs_a_newer_pgbackrest(major: int, remote: bool, expected: str) -> None:
    assert compatibility.minimum_pgbackrest(major, remote=remote) == expected


@pytest.mark.parametrize(
    ("patroni", "etcd", "works"),
    [
        ("4.0.7-1", "3.5.16-4", True),
        ("4.0.7-1", "3.5.28-1", False),
        ("4.1.0-1", "3.6.1-1", False),
        ("4.1.1-1", "3.5.28-1", True),
        ("", "3.5.28-1", True),
    ],
)
def test_newer_etcd_needs_a_newer_patroni(patroni: str, etcd: str, works: bool) -> None:
    found = compatibility.etcd_problem(patroni, etcd)
    assert (found == "") == works
    assert works or found.startswith(f"etcd {etcd} and Patroni {patroni}: Patroni cannot log in to etcd 3.5.28")


@pytest.mark.parametrize(("version", "applies"), [("4.0.7", True), ("3.0.2", True), ("4.2.0", False)])
def test_strict_mode_s_star_is_known_and_prevented(version: str, applies: bool) -> None:
    found = [row for row in compatibility.ADVISORIES if row.product == "patroni"]
    assert [row.id for row in found if compatibility.applies(row, version)] == (["patroni-3435"] if applies else [])
    assert all(row.covered for row in found)
    template = (ROOT / "templates/patroni/config.yml.j2").read_text()
    assert "- no-slot\n" in template  # a clone with a slot would confirm commits
