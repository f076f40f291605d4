"""The audit judges hosts by facts read over SSH: their plan, files, packages, services and their own doctor."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from provision.checks.finding import Finding, Severity
from provision.checks.outside import COMMAND, Outside
from provision.controller.audit import facts_of, judge
from provision.controller.fleet import Target
from provision.plan import load
from tests.plans import sample

INVENTORIES = ("inventories/prod", "more.yml")
SITE = "ansible-playbook site.yml -i inventories/prod -i more.yml --limit db1"
A, B = "a" * 64, "b" * 64
HEALTHY: dict[str, Any] = {
    "Placed": {
        "plan": asdict(sample()),
        "verified": {"server": "17.6 (Debian)", "extensions": {"vector": "0.8.0"}, "migration": 9,
                     "packages": {"pgbackrest": "2.55"}},
        "files": {"/etc/x.conf": ("backup-secrets", A)},
        "damaged": [],
        "sums": {"/etc/x.conf": A, COMMAND: B},
    },
    "DebPackages": {"pgbackrest": ["2.55"]},
    "SystemdStatus": {"postgresql@17-main.service": True},
    "Doctor": {"about": "db1", "checks": 70, "findings": []},
}  # fmt: skip
DRILL = Finding(
    "drill", "backup", Severity.CRITICAL, "failed", "a passed restore test", "untested", "systemctl start x"
)


def outside(known: dict[str, Any] | str) -> Outside:
    return facts_of(Target("db1", {"ssh_hostname": "192.0.2.7"}), known, B, INVENTORIES)


def found(**changed: Any) -> dict[str, Finding]:
    return {each.id: each for each in judge(outside({**HEALTHY, **changed}), INVENTORIES).findings}


def placed(**changed: Any) -> dict[str, Any]:
    return {"Placed": {**HEALTHY["Placed"], **changed}}


def test_a_healthy_host_has_no_findings_and_is_described() -> None:
    one = judge(outside(HEALTHY), INVENTORIES)
    assert (one.findings, one.state) == ([], "ok")
    assert one.about == {
        "os": "Debian GNU/Linux 13 (trixie)", "hardware": "4 CPUs, 8192 MB", "profile": "prod", "PostgreSQL": "17.6",
        "pgvector": "0.8.0", "migration": "9", "checks": "70",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "check", "seen", "fix"),
    [
        (placed(sums={"/etc/x.conf": B, COMMAND: B}), "files-changed", "/etc/x.conf was changed by hand",
         f"{SITE} --tags backup"),
        (placed(sums={COMMAND: B}), "files-missing", "/etc/x.conf is gone", f"{SITE} --tags backup"),
        (placed(sums={"/etc/x.conf": A, COMMAND: A}), "command-differs", f"{COMMAND} differs from this checkout",
         f"{SITE} --tags toolkit"),
        (placed(damaged=["/etc/provision/files.d/tls.json"]), "manifest-damaged",
         "/etc/provision/files.d/tls.json cannot be read", f"{SITE} --tags tls"),
        ({"DebPackages": {"pgbackrest": ["2.56"]}}, "packages", "package pgbackrest is 2.56, 2.55 was verified",
         f"{SITE} --tags toolkit,verify"),
        ({"DebPackages": {}}, "packages", "package pgbackrest is gone; 2.55 was verified",
         f"{SITE} --tags packages"),
        ({"SystemdStatus": {}}, "service", "postgresql@17-main.service is down",
         "ansible -i inventories/prod -i more.yml db1 --become -a 'systemctl start postgresql@17-main.service'"),
        ({"Doctor": {"failed": "sh: 1: provision: not found"}}, "doctor-failed", "sh: 1: provision: not found",
         f"{SITE} --tags toolkit"),
        ({"Doctor": None}, "doctor-failed", "no answer", f"{SITE} --tags toolkit"),
        ({"Doctor": {"findings": [{"id": "x", "severity": "bad"}]}}, "doctor-failed", "findings of another version",
         f"{SITE} --tags toolkit"),
        (placed(plan={}), "not-converged", "cannot read /etc/provision/plan.json", SITE),
        (placed(plan={"schema": 1}), "not-converged", "/etc/provision/plan.json was written by another version", SITE),
        (placed(plan={"schema": 2}), "not-converged", "/etc/provision/plan.json: no field", SITE),
    ],
)  # fmt: skip
def test_reports_the_deviation_with_the_inventories_of_the_audit(
    changed: dict[str, Any], check: str, seen: str, fix: str
) -> None:
    (finding,) = found(**changed).values()
    assert finding.id == check
    assert finding.seen.startswith(seen)
    assert finding.fix == fix
    assert finding.counts


def test_an_unreachable_host_has_the_last_line_of_the_error_and_nothing_else() -> None:
    (finding,) = judge(outside("trying\nConnection timed out"), INVENTORIES).findings
    assert (finding.id, finding.seen) == ("unreachable", "Connection timed out")
    assert finding.fix == "ansible -i inventories/prod -i more.yml db1 -m ping"


def test_findings_of_the_hosts_doctor_are_included_and_not_repeated() -> None:
    down = replace(DRILL, id="service", seen="postgresql@17-main.service is down (inactive)")
    answer = {"checks": 70, "findings": [asdict(DRILL), asdict(down)]}
    one = judge(outside({**HEALTHY, "Doctor": answer, "SystemdStatus": {}}), INVENTORIES)
    assert one.findings == [DRILL, down]
    assert one.state == "critical"


@pytest.mark.parametrize(
    ("check", "seen", "reported"),
    [
        ("files-changed", "/etc/x.conf: changed by hand, since 10:00", True),
        ("files-changed", "/etc/x.conf.old was changed by hand", False),
        ("files-missing", "/etc/x.conf was changed by hand", False),
        ("packages", "package pgbackrest: version 2.56, but 2.55 was verified", True),
        ("packages", "package pgbouncer is 2.56, 2.55 was verified", False),
    ],
)
def test_problem_is_reported_once_whatever_the_doctor_s_wording(check: str, seen: str, reported: bool) -> None:
    doctor = {"findings": [asdict(replace(DRILL, id=check, seen=seen))]}
    changed = placed(sums={"/etc/x.conf": B, COMMAND: B}) if "files" in check else {"DebPackages": {}}
    one = judge(outside({**HEALTHY, **changed, "Doctor": doctor}), INVENTORIES)
    assert len(one.findings) == (1 if reported else 2)


def test_plan_of_a_host_is_read_as_it_was_written() -> None:
    host = outside(placed(plan=json.loads(load.text(sample()))) | {"Doctor": HEALTHY["Doctor"]})
    assert host.plan == replace(sample(), inventory=INVENTORIES)
