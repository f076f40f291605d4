"""Which runs of upgrade.yml, and of site.yml beside it, are refused; and what the checks of an upgrade say."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from provision import system
from provision.checks import upgrade as checks
from provision.controller import inputs
from provision.host.upgrade import after, check, search
from provision.host.upgrade.transfer import Form
from provision.plan import build
from tests import plans

ROLES = ("packages", "pgvector", "upgrade")
NAME = os.uname().nodename
"""The word that confirms: not the name in the inventory, which may be another one."""
GIVEN = {**plans.SAMPLE, "upgrade_to": 17}
OLD = {"major": "15", "name": "main", "port": "5432", "data_directory": "/var/lib/postgresql/15/main",
       "version_file": "15", "running_pid": 812, "running_port": 5432, "includes_conf_d": True}  # fmt: skip
NEW = {**OLD, "major": "17", "version_file": "17", "data_directory": "/var/lib/postgresql/17/main"}
HOST = {"ours": True, "proved": True, "plan_major": 15, "clusters": [OLD], "toolkit_sha256": "t"}


MOVED = {"from": 15, "to": 17, "method": "copy", "part": "primary"}
"""The journal of a cluster's upgraded member."""


def refusals(given: dict[str, Any], roles: tuple[str, ...], **probe: Any) -> str:
    found = built(given, roles, **probe)
    assert found.plan is None
    return "\n".join(found.problems)


def built(given: dict[str, Any], roles: tuple[str, ...], **probe: Any) -> build.Built:
    return plans.built("prod", given, {**HOST, **probe}, roles=roles, toolkit_sha256="t")


def test_upgrade_is_planned_beside_the_running_old_cluster_with_its_packages() -> None:
    found = built(GIVEN, ROLES)
    assert found.plan, found.problems
    assert found.plan.server.major == 17
    assert found.state
    assert {"postgresql-17", "postgresql-client-17", "postgresql-17-pgvector"} <= set(found.state.missing_packages)


@pytest.mark.parametrize(
    ("roles", "probe", "upgrading"),
    [
        (ROLES, {}, True),
        (ROLES, {"plan_major": 17, "clusters": [NEW], "upgrade": {"state": "finished", "from": 15, "to": 17}}, False),
        (plans.CONTEXT.roles, {"plan_major": 15, "clusters": []}, False),
        (plans.CONTEXT.roles, {"plan_major": 17, "clusters": [NEW]}, False),
    ],
)
def test_host_keeps_the_plan_of_the_old_major_until_its_upgrade(
    roles: tuple[str, ...], probe: dict[str, Any], upgrading: bool
) -> None:
    found = built(GIVEN if roles is ROLES else plans.SAMPLE, roles, **probe)
    assert found.state, found.problems
    assert found.state.upgrading is upgrading


@pytest.mark.parametrize(
    ("given", "probe", "said"),
    [
        ({"upgrade_to": 18}, {}, "upgrade_to is 18, postgresql_version is 17: set postgresql_version to the new major"),
        ({}, {"plan_major": 17, "clusters": [NEW]}, "upgrade_to is 17: this host runs PostgreSQL 17"),
        ({}, {"plan_major": 0}, "this host was not converged: run site.yml first"),
        ({}, {"toolkit_sha256": "older"}, "the command on this host is of another version"),
        ({"postgresql_version": 14, "upgrade_to": 14, "postgresql_repository": "pgdg"}, {},
         "upgrade_to is 14: this host runs PostgreSQL 15; expected a newer major"),
        ({}, {"systemd": False}, "systemd is not running: upgrade.yml stops and starts"),
    ],
)  # fmt: skip
def test_upgrade_is_refused(given: dict[str, Any], probe: dict[str, Any], said: str) -> None:
    assert said in refusals({**GIVEN, **given}, ROLES, **probe)


def test_finished_upgrade_can_be_repeated() -> None:
    journal = {"state": "finished", "from": 15, "to": 17, "method": "copy"}
    found = built(GIVEN, ROLES, plan_major=17, clusters=[{**OLD, "running_pid": 0}, NEW], upgrade=journal)
    assert found.plan, found.problems


SITE = plans.CONTEXT.roles


def test_site_with_the_new_major_names_the_upgrade() -> None:
    said = refusals(plans.SAMPLE, SITE)
    assert (
        "set postgresql_version: 15 to keep it, or upgrade with ansible-playbook upgrade.yml -e upgrade_to=17" in said
    )


def test_site_with_the_new_major_never_puts_an_empty_server_beside_a_stopped_one() -> None:
    said = refusals(plans.SAMPLE, SITE, clusters=[{**OLD, "running_pid": 0, "running_port": 0}])
    assert "cluster 15/main, which an earlier run made this host's, is stopped" in said


def test_site_with_the_old_major_is_refused_after_the_upgrade() -> None:
    journal = {"state": "finished", "from": 14, "to": 17, "method": "copy"}
    given = {**plans.SAMPLE, "postgresql_version": 15, "postgresql_repository": "pgdg"}
    said = refusals(given, SITE, plan_major=17, clusters=[NEW], upgrade=journal)
    assert "this host was upgraded from 14 to 17: set postgresql_version: 17" in said


@pytest.mark.parametrize("state", ["copying", "stopped", "transferred", "started"])
def test_site_is_refused_while_an_upgrade_is_unfinished(state: str) -> None:
    journal = {"state": state, "from": 15, "to": 17, "method": "link"}
    given = {**plans.SAMPLE, "postgresql_version": 15, "postgresql_repository": "pgdg"}
    said = refusals(given, SITE, clusters=[{**OLD, "running_pid": 0}], upgrade=journal)
    assert f"an upgrade from 15 to 17 has not finished ({state}): repeat upgrade.yml -e upgrade_to=17" in said


@pytest.mark.parametrize(
    ("state", "major", "again"),
    [("finished", 17, "-e upgrade_to=17 -e upgrade_method=copy"), ("rolled back", 15, "-e upgrade_rollback=yes")],
)
def test_site_is_refused_while_the_replicas_are_on_the_other_major(state: str, major: int, again: str) -> None:
    serving = {15: OLD, 17: NEW}[major]
    given = {**plans.SAMPLE, "postgresql_version": major}
    journal = {**MOVED, "state": state}
    said = refusals(given, SITE, plan_major=major, clusters=[serving], upgrade=journal)
    assert f"(upgrade {state}): repeat upgrade.yml with {again} for all members" in said
    found = built(given, SITE, plan_major=major, clusters=[serving], upgrade={**journal, "handed_over": True})
    assert "repeat upgrade.yml" not in "\n".join(found.problems)


def test_cluster_is_not_upgraded_by_logical_replication() -> None:
    given = {**GIVEN, "cluster_enabled": True, "upgrade_method": "logical"}
    assert "a failover would lose the slots that the rollback needs; use copy or link" in refusals(given, ROLES)


@pytest.mark.parametrize(("member", "slot"), [("db1", "db1"), ("DB-1.example", "db_1_example"), ("a b", "au0032b")])
def test_slot_of_a_member_has_patroni_s_name(member: str, slot: str) -> None:
    from patroni.dcs import slot_name_from_member_name  # type: ignore[import-untyped]

    assert check.slot(member) == slot == slot_name_from_member_name(member)


@pytest.mark.parametrize("state", ["returning", "returned"])
def test_site_is_refused_while_a_rollback_is_unfinished(state: str) -> None:
    journal = {"state": state, "from": 15, "to": 17, "method": "copy"}
    given = {**plans.SAMPLE, "postgresql_version": 15, "postgresql_repository": "pgdg"}
    said = refusals(given, SITE, clusters=[{**OLD, "running_pid": 0}], upgrade=journal)
    assert f"a rollback from 17 to 15 has not finished ({state}): repeat upgrade.yml -e upgrade_rollback=yes" in said


def test_site_accepts_the_closed_old_server_of_a_logical_upgrade_alone() -> None:
    journal = {"state": "finished", "from": 15, "to": 17, "method": "logical"}
    found = built(plans.SAMPLE, SITE, plan_major=17, clusters=[OLD, NEW], upgrade=journal)
    assert found.plan, found.problems
    closed = {**OLD, "running_port": 50015}
    strict = {**plans.SAMPLE, "postgresql_restart_allowed": False}
    found = built(strict, SITE, plan_major=17, clusters=[closed, NEW], upgrade=journal)
    assert found.plan, found.problems
    said = refusals(plans.SAMPLE, SITE, plan_major=17, clusters=[OLD, NEW], upgrade={**journal, "method": "copy"})
    assert "of PostgreSQL 15 is running (process 812), postgresql_version is 17" in said


def test_update_scripts_are_followed_from_version_to_version() -> None:
    scripts = ["vector--0.5.1--0.6.0.sql", "vector--0.6.0--0.7.0.sql", "vector--0.7.0--0.8.0.sql"]
    assert check.leads("0.5.1", "0.8.0", scripts)
    assert not check.leads("0.5.0", "0.8.0", scripts)


@pytest.mark.parametrize(
    ("installed", "files", "said"),
    [
        ("0.8.1", {"vector.control": "default_version = '0.8.1'"}, []),
        ("0.5.1", {"vector.control": "default_version = '0.8.0'", "vector--0.5.1--0.8.0.sql": ""}, []),
        ("0.8.1", {"vector.control": "default_version = '0.5.1'"},
         ["extension vector 0.8.1 of database minion: the new major has 0.5.1 only, which is older; install a newer "
          "one (pgvector_version)"]),
        ("0.4.0", {"vector.control": "default_version = '0.8.0'", "vector--0.5.1--0.8.0.sql": ""},
         ["extension vector 0.4.0 of database minion: no script of the new major leads to 0.8.0; update it on the old "
          "major first: ALTER EXTENSION vector UPDATE"]),
        ("0.8.0", {},
         ["extension vector 0.8.0 of database minion: the new major has no such extension; install its package, or "
          "DROP EXTENSION"]),
    ],
)  # fmt: skip
def test_extensions_are_compared_with_the_new_major_s_files(
    tmp_path: Path, installed: str, files: dict[str, str], said: list[str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    assert check.extensions({"vector": installed}, tmp_path, "minion") == said


def test_new_cluster_has_the_old_one_s_form() -> None:
    plain = Form("UTF8", "C.UTF-8", "C.UTF-8", "libc", "", checksums=True, segment_mb=16)
    words = ["--encoding=UTF8", "--lc-collate=C.UTF-8", "--lc-ctype=C.UTF-8", "--wal-segsize=16"]
    assert plain.words(17) == [*words, "--data-checksums"]
    bare = Form("UTF8", "C.UTF-8", "C.UTF-8", "icu", "de-DE", checksums=False, segment_mb=16)
    assert bare.words(17) == [*words, "--locale-provider=icu", "--icu-locale=de-DE"]
    assert bare.words(18)[-1] == "--no-data-checksums"


def test_lost_objects_and_lost_recall_are_named() -> None:
    before = {"minion": ["i public.a_idx", "r public.a"], "": ["role app"]}
    assert after.missing(before, {"minion": ["r public.a"], "": []}) == [
        "database minion: missing i public.a_idx", "missing role app",
    ]  # fmt: skip
    facts = [{"index": "public.v", "probes": 10, "used": True, "recall": 0.98}]
    assert search.differences(facts, [search.Recall("public.v", 10, True, 0.9)]) == [
        "public.v finds 90% of the nearest neighbours, 98% before"
    ]
    assert search.differences(facts, [search.Recall("public.v", 10, False, 0.98)]) == [
        "public.v is not used by a search"
    ]
    # Of a hundred neighbours, another build of the same index finds 46 or 54 by chance.
    hard = [{"index": "public.v", "probes": 10, "used": True, "recall": 0.54}]
    assert search.differences(hard, [search.Recall("public.v", 10, True, 0.46)]) == []
    assert len(search.differences(hard, [search.Recall("public.v", 10, True, 0.3)])) == 1


@pytest.mark.parametrize(
    ("journal", "said", "fix"),
    [
        ({"state": "transferred", "from": 15, "to": 17, "method": "link"},
         "an upgrade is not finished: 15 to 17 by link",
         "-e upgrade_to=17 -e upgrade_method=link"),
        ({"state": "copying", "from": 15, "to": 17, "method": "logical"},
         "an upgrade is not finished: 15 to 17 by logical",
         "-e upgrade_to=17 -e upgrade_method=logical"),
        ({"state": "returning", "from": 15, "to": 17, "method": "logical"},
         "a rollback is not finished: 15 to 17 by logical", "-e upgrade_rollback=yes"),
        ({"state": "returning", "from": 15, "to": 17, "method": "copy"}, "a rollback is not finished: 15 to 17 by copy",
         f"-e upgrade_rollback=yes -e upgrade_confirm={NAME} -e upgrade_confirm_loss=discard"),
        ({"state": "finished", "from": 15, "to": 17, "method": "copy"}, "is kept for 20 days: 15 to 17 by copy",
         "-e upgrade_release=yes"),
        ({**MOVED, "state": "finished"}, "the replicas have not left the other cluster",
         "-e upgrade_to=17 -e upgrade_method=copy"),
        ({**MOVED, "state": "rolled back"}, "the replicas have not left the other cluster", "-e upgrade_rollback=yes"),
        ({**MOVED, "state": "finished", "handed_over": True}, "is kept for 20 days", "-e upgrade_release=yes"),
    ],
)  # fmt: skip
def test_doctor_reports_what_an_upgrade_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: dict[str, Any], said: str, fix: str
) -> None:
    monkeypatch.setattr(system, "EVIDENCE", tmp_path)
    system.keep("upgrade", {**journal, "when": system.stamp(time.time() - 20 * 86400)})
    (row,) = checks.upgrade(plans.sample())
    seen, command = row[0], row[1]
    assert said in seen
    assert f" {fix}" in command
    assert f" -e upgrade_confirm={NAME}" in command
    assert command.startswith("ansible-playbook upgrade.yml -i inventories/prod --limit db1")


def test_doctor_reports_the_stopped_old_server_of_a_logical_upgrade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "EVIDENCE", tmp_path)
    system.keep("upgrade", {"state": "finished", "from": 15, "to": 17, "method": "logical", "when": system.stamp()})
    (row,) = checks.upgrade(plans.sample())
    seen, fix = row[0], row[1]
    assert seen.startswith("the old server does not run, so the new one keeps WAL for it: 15 to 17 by logical")
    assert f"-e upgrade_method=logical -e upgrade_confirm={NAME}  # or delete it: ansible-playbook upgrade.yml" in fix
    assert fix.endswith(f"-e upgrade_release=yes -e upgrade_confirm={NAME}")


def test_doctor_is_content_with_a_new_or_released_upgrade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "EVIDENCE", tmp_path)
    assert list(checks.upgrade(plans.sample())) == []
    for state, age in (("finished", 1), ("released", 90), ("checked", 90)):
        system.keep("upgrade", {"state": state, "when": system.stamp(time.time() - age * 86400)})
        assert list(checks.upgrade(plans.sample())) == []


def test_way_back_and_release_are_not_judged_as_a_run_that_converges() -> None:
    values = {"upgrade_rollback": False, "upgrade_release": False}
    assert not inputs.uses_only(ROLES, values)
    assert inputs.uses_only(ROLES, {**values, "upgrade_rollback": True})
    assert not inputs.uses_only(("postgresql",), {**values, "upgrade_release": True})
    assert inputs.uses_only(("plan",), values)
