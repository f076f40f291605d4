"""The summary of a host, from a plan and evidence in a folder of the test's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from provision import system
from provision.cli.status import command
from provision.errors import HostError
from provision.host import status
from provision.host.cluster import pooler
from provision.plan import load, validate
from tests import topologies
from tests.plans import sample, write

VERIFIED = {
    "server": "17.6",
    "extensions": {"vector": "0.8.0", "uuid-ossp": "1.1"},
    "migration": 12,
    "tables": ["agents", "memories"],
    "packages": {},
}

NEXT = (
    "next: provision connect{options} prints .env and CA (docs/connect-an-application.md); run provision doctor on the "
    "host; docs/README.md lists the runbooks"
)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with a plan and without evidence."""
    monkeypatch.setattr(system, "EVIDENCE", tmp_path / "evidence")
    plan = sample(server={"client_address": "db1"}, tls={"enabled": False})
    path = write(tmp_path / "plan.json", replace(plan, warnings=("the disk is small",)))
    monkeypatch.setattr(load.load, "__defaults__", (path,))
    return path


@pytest.mark.usefixtures("host")
def test_new_host_is_described_by_its_plan() -> None:
    assert status.lines(status.gather()) == [
        "db1: Debian GNU/Linux 13 (trixie), 4 CPUs, 8192 MB",
        "not verified yet: run site.yml",
        "applications: psql 'postgresql://minion_app@db1:6432/minion' (the pooler)",
        "administrators and migrations: psql 'postgresql://minion@db1:5432/minion'",
        "warning: the disk is small",
        NEXT.format(options=""),
    ]


def test_host_with_a_pooler_alone_names_the_primary_and_no_server(
    host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = topologies.listed(poolers=("app1",))
    plan = topologies.plan("app1", hosts=hosts, database=False, judge=validate.judge_other)
    write(host, replace(plan, warnings=()))
    monkeypatch.setattr(pooler, "FILE", tmp_path / "databases.ini")
    about = "pooler only: PgBouncer 1.24.1"
    assert status.lines(status.gather())[1] == f"{about} has not found the primary of the cluster minion"
    (tmp_path / "databases.ini").write_text("# primary: db2\nminion = host=192.0.2.2\n")
    shown = status.lines(status.gather())
    assert shown[1] == f"{about} connects to db2, the primary of the cluster minion"
    assert [line for line in shown if "5432" in line or "not verified" in line] == []
    assert "@127.0.0.1:6432/minion?" in shown[2]


@pytest.mark.usefixtures("host")
def test_evidence_is_part_of_the_summary() -> None:
    system.keep("verified", VERIFIED)
    system.keep("backup", {"sets": [{"label": "F"}], "window": "from a to b", "alarms": ["too old"]})
    system.keep("drill", {"when": "2026-11-24T04:30:00+00:00", "passed": False})
    system.keep("maintain", {"jobs": {"index": {"outcome": "done", "when": "2026-11-24T05:00:00+00:00"}}})
    assert status.lines(status.gather("other"))[1:-1] == [
        "PostgreSQL 17.6 with uuid-ossp 1.1, vector 0.8.0",
        "migration 12, 2 tables; verified by writing a memory and finding it by vector (rolled back)",
        "applications: psql 'postgresql://minion_app@db1:6432/minion' (the pooler)",
        "administrators and migrations: psql 'postgresql://minion@db1:5432/minion'",
        "backups: 1 sets, newest F; from a to b",
        "backup alarm: too old",
        "restore test 2026-11-24T04:30:00+00:00: FAILED",
        "maintenance index: done 2026-11-24T05:00:00+00:00",
        "warning: the disk is small",
    ]


@pytest.mark.usefixtures("host")
def test_command_prints_json_with_the_lines() -> None:
    found = json.loads(CliRunner().invoke(command, ["--json", "--name", "db9"]).output)
    assert (found["name"], found["profile"], found["host"]["cpus"]) == ("db9", "prod", 4)
    assert found["lines"][0].startswith("db9: Debian")


def test_ca_is_the_one_of_the_machine_where_the_summary_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"enabled": True, "ca": "/etc/provision/tls/ca.crt", "client_ca": "/home/ann/prod/tls/ca.crt"}
    plan = replace(sample(server={"client_address": "192.0.2.1"}, tls=changes), inventory=("inventories/prod",))
    monkeypatch.setattr(load.load, "__defaults__", (write(tmp_path / "plan.json", plan),))
    here, there = (status.lines(status.gather(for_controller=each)) for each in (False, True))
    tls = "?sslmode=verify-full&sslrootcert="
    assert (
        f"applications: psql 'postgresql://minion_app@192.0.2.1:6432/minion{tls}{changes['ca']}' (the pooler)" in here
    )
    assert (
        f"applications: psql 'postgresql://minion_app@192.0.2.1:6432/minion{tls}{changes['client_ca']}' (the pooler)"
        in there
    )
    assert (
        f"administrators and migrations: psql 'postgresql://minion@192.0.2.1:5432/minion{tls}{changes['client_ca']}'"
        in there
    )
    assert there[-1] == NEXT.format(options=" -i inventories/prod --limit db1")


def test_host_without_a_plan_is_an_error(host: Path) -> None:
    host.unlink()
    with pytest.raises(HostError, match=r"cannot read .*plan\.json"):
        status.gather()
