"""A run refuses a host whose apt would fail beside its own source, and packages that a hold or a pin withholds."""

from __future__ import annotations

from typing import Any

import pytest

from provision.plan import fleet, schema, sections, sources
from provision.plan.context import Verdict
from tests.contract.repository import ROOT
from tests.plans import SAMPLE, built, plan

PGDG: dict[str, Any] = {**SAMPLE, "postgresql_repository": "pgdg"}
URI, SUITE = plan("prod", PGDG).source.uri, "trixie-pgdg"
OURS = {"file": sources.FILE, "uri": URI, "suite": SUITE, "signed_by": sections.PGDG_KEY}
LIST, DEB822 = "/etc/apt/sources.list.d/pgdg.list", "/etc/apt/sources.list.d/pgdg.sources"


def row(file: str = LIST, signed_by: str = "/x.gpg", uri: str = URI, suite: str = SUITE) -> dict[str, str]:
    return {"file": file, "uri": uri, "suite": suite, "signed_by": signed_by}


def refusals(*rows: dict[str, str], fault: str = "", **given: Any) -> tuple[str, ...]:
    return built("prod", {**PGDG, **given}, {"sources": list(rows), "sources_fault": fault}).problems


@pytest.mark.parametrize(
    ("other", "seen", "cure"),
    [
        (row(), "with Signed-By /x.gpg", f"on the host: mv {LIST} {LIST}.disabled"),
        (row(uri=URI + "/"), "with Signed-By /x.gpg", f"on the host: mv {LIST} {LIST}.disabled"),
        (row(uri=URI.replace("https", "http")), "with Signed-By /x.gpg", f"on the host: mv {LIST} {LIST}.disabled"),
        (row(signed_by=""), "without Signed-By", f"on the host: mv {LIST} {LIST}.disabled"),
        (row(DEB822, "embedded"), "with an embedded key", f"on the host: mv {DEB822} {DEB822}.disabled"),
        (row("/etc/apt/sources.list"), "with Signed-By /x.gpg", "remove that entry from /etc/apt/sources.list"),
    ],
)
def test_refuses_an_entry_with_another_key_and_names_its_file(other: dict[str, str], seen: str, cure: str) -> None:
    assert refusals(other) == (
        f"{other['file']} names {URI} {SUITE} {seen}, which conflicts with the entry of this run (Signed-By "
        f"{sections.PGDG_KEY}): every apt command would fail; {cure}",
    )


def test_a_file_with_other_entries_is_not_to_be_disabled_whole() -> None:
    (reported,) = refusals(row(), row(uri="http://example.com/apt"))
    assert reported.endswith(f"; remove that entry from {LIST}")


@pytest.mark.parametrize(
    "other",
    [
        row(signed_by=sections.PGDG_KEY),
        row(suite="trixie-pgdg-testing"),
        row(uri="https://mirror.example.com/pub/repos/apt"),
        row(sources.FILE, "/etc/apt/keyrings/old.asc"),  # replaced by this run
    ],
)
def test_accepts_entries_that_apt_reads_beside_ours(other: dict[str, str]) -> None:
    assert refusals(other) == ()


def test_accepts_an_entry_that_apt_has_accepted_beside_ours_and_names_one_that_it_has_not() -> None:
    assert refusals(row(signed_by=""), OURS) == ()
    fault = f"Conflicting values set for option Signed-By regarding source {URI}/ {SUITE}: /x.gpg != "
    (reported,) = refusals(row(), OURS, fault=fault)
    assert reported.startswith(f"{LIST} names {URI} {SUITE} with Signed-By /x.gpg, which conflicts with ")


def test_without_a_source_of_ours_there_is_no_conflict() -> None:
    assert refusals(row(), postgresql_repository="distribution") == ()


def test_refuses_sources_that_apt_cannot_read_in_apt_s_words() -> None:
    fault = "Malformed entry 1 in list file /etc/apt/sources.list.d/bad.list (Suite)"
    assert refusals(fault=fault) == (
        f"apt cannot read the host's sources: {fault}; correct that entry on the host; apt-get update must then "
        "succeed",
    )
    fault = "Conflicting values set for option Signed-By regarding source http://h/apt/ s: /a.gpg != /b.gpg"
    (reported,) = refusals(row("/a.list", "/a.gpg", "http://h/apt", "s"), row("/b.list", "/b.gpg", "http://h/apt", "s"),
                       fault=fault)  # fmt: skip
    assert reported == (
        f"apt cannot read the host's sources: {fault} (see /a.list, /b.list); correct that entry on the host; apt-get "
        "update must then succeed"
    )
    assert refusals(fault=f"Malformed entry 1 in list file {sources.FILE} (Suite)") == ()  # this run places it again


def test_fault_of_the_sources_stops_only_runs_that_need_them() -> None:
    fault = "Malformed entry 1 in list file /etc/apt/sources.list.d/bad.list (Suite)"
    converged = {"sources_fault": fault, "ours": True, "packages_barred": []}
    fresh = built("prod", SAMPLE, converged)
    assert fresh.problems[0].startswith(f"apt cannot read the host's sources: {fault}; ")
    missing = plan_state(SAMPLE).missing_packages
    found = built("prod", SAMPLE, {**converged, "packages": list(missing)})
    assert found.plan
    assert any(fault in notice for notice in found.notices)
    assert sources.uninstallable(["pgbackrest"], schema.Source("bundle"), converged | {"packages_held": []}) == []
    verdict = Verdict()
    sources.judge(schema.Source("bundle"), {"sources": [], "sources_fault": fault, "ours": False}, verdict)
    assert verdict == Verdict()


def test_a_disc_among_the_sources_is_named() -> None:
    (reported,) = refusals(row("/etc/apt/sources.list", uri="cdrom:[Debian", suite="GNU/Linux"))
    assert reported == "/etc/apt/sources.list names a CD-ROM, with which apt-get update fails: remove that entry"


def plan_state(given: dict[str, Any]) -> schema.State:
    state = built("prod", given).state
    assert state
    return state


@pytest.mark.parametrize(
    ("probe", "given", "expected"),
    [
        ({"packages_held": ["postgresql-17", "pgbackrest", "nginx"]}, {},
         "pgbackrest, postgresql-17: on hold, so apt does not install it; on the host: apt-mark unhold pgbackrest "
         "postgresql-17"),
        ({"packages_held": ["postgresql-17"], "packages": ["postgresql-17"]}, {}, ""),
        ({"packages_held": ["postgresql-common"]}, {"postgresql_repository": "pgdg"},
         "postgresql-common: on hold, so apt does not install it; on the host: apt-mark unhold postgresql-common"),
        ({"packages_held": ["postgresql-common"]}, {}, ""),
        ({"packages_barred": ["postgresql-17"]}, {},
         "postgresql-17: a pin bars every version that the host's sources have; change it in /etc/apt/preferences or "
         "/etc/apt/preferences.d (apt-cache policy postgresql-17)"),
        ({"packages_barred": ["postgresql-17"]}, {"postgresql_repository": "pgdg"}, ""),  # ours may have one
    ],
)  # fmt: skip
def test_refuses_packages_that_apt_would_not_install(
    probe: dict[str, Any], given: dict[str, Any], expected: str
) -> None:
    assert built("prod", {**SAMPLE, **given}, probe).problems == ((expected,) if expected else ())


def test_the_files_are_those_that_role_packages_places() -> None:
    placed = (ROOT / "roles/packages/vars/main.yml").read_text()
    assert f"__packages_source_file: {sources.FILE}\n" in placed
    assert f"- path: {fleet.FILE}\n" in placed
