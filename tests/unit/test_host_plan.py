"""The probe's judgement of whether a host's cluster is ours, from the files that runs leave; and leftovers."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from plugins.module_utils import apt_state, host_places, neighbourhood, program, timers
from plugins.modules import host_plan

RULE = host_plan.NO_CLUSTER


@pytest.mark.parametrize(
    ("sets", "adopted", "expected"),
    [
        ({}, False, False),
        ({"packages": [RULE, "/etc/apt/sources.list.d/provision-postgresql.sources"]}, False, True),
        ({"postgresql-cluster": [RULE]}, False, True),  # the layout of version 0.1
        ({"packages": []}, False, False),  # a backup host, which may have a cluster of its own
        ({"packages": ["/etc/provision/bundle.sources"], "tls": []}, False, False),
        ({"packages": [RULE]}, True, False),  # the adoption was refused or killed after packages were installed
        ({"packages": [RULE], "postgresql": []}, True, True),
        ({"postgresql-cluster": [RULE], "postgresql": []}, True, True),
    ],
)
def test_cluster_is_ours(
    sets: dict[str, list[str]], adopted: bool, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_plan, "MANIFESTS", tmp_path)
    monkeypatch.setattr(host_plan, "ADOPTED", tmp_path / "adopted")
    for name, paths in sets.items():
        rows = [{"path": path} for path in paths]
        (tmp_path / f"{name}.json").write_text(json.dumps({"schema": 1, "files": rows}))
    if adopted:
        (tmp_path / "adopted" / "17-main").mkdir(parents=True)
    assert host_plan.ours() is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#!/bin/sh\nexit 101\n", True),
        ("#!/bin/sh\n\n# For most Docker users, package installs happen during docker build\nexit 101\n", False),
        ("#!/bin/sh\nexit 0\n", False),
        (None, False),
    ],
)
def test_rule_of_a_killed_installation_is_distinguished_from_others(
    text: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apt_state, "POLICY", tmp_path / "policy-rc.d")
    if text is not None:
        (tmp_path / "policy-rc.d").write_text(text)
    assert apt_state.services_blocked() is expected


def test_a_host_without_the_programs_of_debian_is_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert apt_state.packages() == ([], [])
    assert apt_state.policy(["pgbouncer"]) == {"pgbouncer": {"version": "", "barred": False}}
    assert apt_state.interrupted() is False
    assert apt_state.sources_fault() == ""
    assert host_places.locales() == neighbourhood.own_addresses() == []
    assert host_places.charmap("C.UTF-8") is None
    assert timers.elapses(["daily"]) is None


def test_a_program_that_does_not_end_is_left(tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    assert program.run(str(slow), timeout=0.1).returncode == program.HUNG


def test_reads_the_release_of_this_host() -> None:
    assert host_plan.os_release()["distribution"] == platform.freedesktop_os_release()["ID"]


def test_exporters_of_the_old_layout_are_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_plan, "PLAN", tmp_path / "plan.json")
    monkeypatch.setattr(host_plan, "OLD_PLAN", tmp_path / "host.json")
    monkeypatch.setattr(host_plan, "EXPORTERS", tmp_path / "exporters.yml")
    (tmp_path / "host.json").write_text('{"schema": 1}')
    assert host_plan.earlier(17)["exporter_ports"] == []
    (tmp_path / "exporters.yml").touch()
    assert host_plan.earlier(17)["exporter_ports"] == [9100, 9187]
    (tmp_path / "host.json").unlink()
    plan = {"monitoring": {"exporters": True, "node_port": 9101, "postgres_port": 9187}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert host_plan.earlier(17)["exporter_ports"] == [9101, 9187]


@pytest.mark.parametrize("text", ["\u00b2\n", "9" * 5000 + "\n", "1" * 300 + "\n", "-1\n", "x\n", ""])
def test_process_ids_that_postgres_made_up_do_not_end_the_probe(text: str, tmp_path: Path) -> None:
    (tmp_path / "postmaster.pid").write_text(text)
    assert host_plan._running(tmp_path) == (0, 0)


def test_path_with_a_nul_is_a_missing_file() -> None:
    assert host_plan._lines(Path("/var/lib/\0") / "PG_VERSION") == []
