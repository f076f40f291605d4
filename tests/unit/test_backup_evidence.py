"""Evidence and journals of backups: what is believed, on real files in a folder of the test's own."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from provision import system
from provision.errors import HostError
from provision.host.backup import dump, journal, status
from provision.plan import load
from provision.plan.schema import Plan
from tests.plans import sample, write


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A plan whose evidence, data and dumps are in a folder."""
    monkeypatch.setattr(system, "EVIDENCE", tmp_path / "evidence")
    (tmp_path / "data/global").mkdir(parents=True)
    found = sample(
        server={"data_directory": str(tmp_path / "data")},
        backup={"dump_directory": str(tmp_path / "dumps"), "dump_keep": 2, "dump_keep_days": 14},
    )
    monkeypatch.setattr(load, "PATH", write(tmp_path / "plan.json", found))
    return found


NOW = time.time()
PROOF = {"when": system.stamp(NOW - 3600), "set": "F", "host": os.uname().nodename, "stanza": "db1", "system": 7}
SETS = [{"stop": NOW - 60 * 3600}]


def drilled(host: Plan, changed: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    system.keep("drill", {**PROOF, "passed": True, "last_passed": PROOF, **changed})
    seen: dict[str, Any] = {"system": 7, "sets": SETS}
    alarms: list[str] = []
    status._drill(host, host.backup.repository, seen, alarms)
    return seen["drill"], alarms


def test_drill_of_this_host_and_cluster_is_believed(host: Plan) -> None:
    found, alarms = drilled(host, {})
    assert (found["last_passed"]["set"], alarms) == ("F", [])


@pytest.mark.parametrize("former", [{"host": "db0"}, {"stanza": "db0"}, {"system": 6}])
def test_drill_of_a_former_host_or_cluster_proves_nothing(host: Plan, former: dict[str, Any]) -> None:
    found, alarms = drilled(host, {**former, "last_passed": {**PROOF, **former}})
    assert found["last_passed"] is None
    assert alarms == ["no restore test has ever passed"]


def test_drill_that_was_killed_is_an_alarm_and_one_that_runs_is_none(host: Plan) -> None:
    killed = {"passed": False, "failure": "started but not finished"}
    assert drilled(host, killed)[1] == ["the last restore test failed: started but not finished"]
    with journal.held("drill", "busy"):
        found, alarms = drilled(host, killed)
    assert (found["running"], alarms) == (True, [])


def test_drill_without_a_reason_is_an_alarm_and_no_crash(host: Plan) -> None:
    assert len(drilled(host, {"passed": False})[1]) == 1


@pytest.mark.usefixtures("host")
def test_lock_is_held_by_one_and_free_again_after_it() -> None:
    with journal.held("restore", "busy"):
        assert journal.is_held("restore")
        with pytest.raises(HostError, match="busy"), journal.held("restore", "busy"):
            pass
    assert not journal.is_held("restore")


def begun(host: Plan, state: str) -> None:
    journal.write(journal.IN_PLACE, {"state": state, "target": "latest"}, host.server.data)


def test_restore_is_taken_up_again_only_in_the_directory_that_it_made(host: Plan) -> None:
    begun(host, journal.RESTORING)
    assert journal.state(journal.IN_PLACE, host.server.data) == journal.RESTORING
    assert "is not running: repeat the same command to resume it" in journal.unfinished(host.server.data)
    # Somebody put the old data back.
    host.server.data.rename(host.server.data.with_name("half"))
    (host.server.data / "global").mkdir(parents=True)
    assert journal.state(journal.IN_PLACE, host.server.data) == ""
    assert journal.unfinished(host.server.data) == ""


def test_directory_that_was_promoted_by_hand_is_in_no_restore_s_hand(host: Plan) -> None:
    begun(host, journal.PAUSED)
    (host.server.data / "global/pg_control").touch()
    (host.server.data / "standby.signal").touch()
    assert "end it with provision restore promote" in journal.unfinished(host.server.data)
    with pytest.raises(HostError, match="no backup or restore test before the restore has finished"):
        journal.refuse_unfinished(host.server.data)
    (host.server.data / "standby.signal").unlink()
    assert journal.state(journal.IN_PLACE, host.server.data) == ""
    # But one that was promoted by the restore itself has still to be ended by it.
    begun(host, journal.PROMOTING)
    assert journal.state(journal.IN_PLACE, host.server.data) == journal.PROMOTING


def test_copy_beside_does_not_make_the_host_forget_its_own_restore(host: Plan, tmp_path: Path) -> None:
    begun(host, journal.RESTORING)
    journal.write(journal.COPY, {"state": journal.PROMOTED}, tmp_path)
    assert journal.state(journal.IN_PLACE, host.server.data) == journal.RESTORING


def made(host: Plan, name: str) -> Path:
    folder = Path(host.backup.dump_directory) / name
    folder.mkdir(parents=True)
    (folder / dump.MANIFEST).write_text("x")
    return folder


def test_dumps_expire_by_count_and_by_the_age_in_their_names(host: Plan) -> None:
    days = {n: system.compact(NOW - 86400 * n) for n in (1, 13, 15, 20, 30)}
    for day in days.values():
        made(host, f"minion-{day}")
    # Another database whose name begins alike.
    other = made(host, f"minion-archive-{days[30]}")
    assert dump.expire(host, "minion") == [f"minion-{days[n]}" for n in (30, 20, 15)]
    assert [path.name for path in dump.find(host)] == [other.name, f"minion-{days[13]}", f"minion-{days[1]}"]
    assert dump.expire(host, "minion-archive") == []


def test_last_dumps_stay_whatever_their_age(host: Plan) -> None:
    for age in (100, 200, 300):
        made(host, f"minion-{system.compact(NOW - 86400 * age)}")
    assert dump.expire(host, "minion") == [f"minion-{system.compact(NOW - 86400 * 300)}"]


def dumps(host: Plan) -> list[str]:
    alarms: list[str] = []
    status._dumps(host, {}, alarms)
    return alarms


def test_dump_is_as_old_as_its_name_says_whatever_touched_it(host: Plan) -> None:
    made(host, f"minion-{system.compact(time.time() - 30 * 3600)}")
    assert dumps(host) == ["the newest dump is 30.0 h old, 26 h are allowed"]


def test_host_that_never_had_a_dump_is_an_alarm_once_it_should_have(host: Plan) -> None:
    assert dumps(host) == []
    os.utime(load.PATH, (time.time() - 27 * 3600,) * 2)
    assert dumps(host) == ["there is no dump yet; the plan for dumps is 27.0 h old, 26 h are allowed"]


@pytest.mark.usefixtures("host")
def test_evidence_that_is_no_json_is_none() -> None:
    system.keep("drill", {"a": 1})
    assert json.loads((system.EVIDENCE / "drill.json").read_text()) == {"schema": 1, "a": 1}
    (system.EVIDENCE / "drill.json").write_text("{")
    assert system.evidence("drill") == {}
