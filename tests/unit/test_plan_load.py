"""plan.json: what is written is read back, and what cannot be read says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from provision.errors import HostError
from provision.plan import load
from tests.plans import sample, write


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    plan = sample(server={"port": 5433})
    assert load.load(write(tmp_path / "plan.json", plan)) == plan


def test_equal_plans_are_equal_files() -> None:
    assert load.text(sample()) == load.text(sample())


def test_refuses_a_missing_plan_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot read .*plan\.json") as error:
        load.load(tmp_path / "plan.json")
    assert error.value.run == "ansible-playbook site.yml -i INVENTORY --tags toolkit"


def test_refuses_the_schema_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"schema": 1}))
    with pytest.raises(HostError, match="was written by another version") as error:
        load.load(path)
    assert (error.value.seen, error.value.allowed) == ("schema 1", "schema 2")


def test_refuses_a_plan_without_a_field_that_this_version_added(tmp_path: Path) -> None:
    plan = json.loads(load.text(sample()))
    del plan["server"]["client_address"]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    with pytest.raises(HostError, match="was written by another version") as error:
        load.load(path)
    assert (error.value.seen, error.value.run) == ("no field 'client_address'", load.SITE)


@pytest.mark.parametrize(
    ("damage", "seen"),
    [({"name": 7}, "TypeError: 7 is no str"), ({"timers": 3}, "TypeError: ")],
)
def test_refuses_a_damaged_plan(tmp_path: Path, damage: dict[str, object], seen: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**json.loads(load.text(sample())), **damage}))
    with pytest.raises(HostError, match="the plan is damaged") as error:
        load.load(path)
    assert error.value.seen.startswith(seen)


def test_a_fix_names_this_runs_inventory_and_host() -> None:
    plan = sample()
    assert plan.site("tls") == "ansible-playbook site.yml -i inventories/prod --limit db1 --tags tls"
