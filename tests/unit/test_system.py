"""Programs, files, the clock and evidence, with real programs and files."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path

import pytest

from provision import system
from provision.errors import DriftError, HostError
from tests.until import until


def test_program_returns_code_output_and_error_output() -> None:
    done = system.run("sh", "-c", "cat; echo bad >&2; exit 3", input="in", check=False)
    assert (done.returncode, done.stdout, done.stderr, done.ok, done.last) == (3, "in", "bad\n", False, "bad")


def test_failed_program_is_an_error_with_its_last_lines() -> None:
    with pytest.raises(HostError) as failed:
        system.run("sh", "-c", "seq 1 20 >&2; exit 2")
    assert failed.value.what == "sh failed (exit 2)"
    assert failed.value.seen == "13; 14; 15; 16; 17; 18; 19; 20"
    with pytest.raises(DriftError, match="false failed"):
        system.run("false", error=DriftError)


def test_killed_program_names_the_signal() -> None:
    assert system.run("sh", "-c", "kill -9 $$", check=False).last == "killed by signal 9"


def test_program_that_does_not_end_or_is_not_installed_is_an_error() -> None:
    with pytest.raises(HostError, match=r"sleep did not end within 0\.1 s"):
        system.run("sleep", "5", timeout=0.1)
    with pytest.raises(HostError, match="no-such-program is not installed"):
        system.run("no-such-program")


def test_environment_is_added_and_directory_is_used(tmp_path: Path) -> None:
    done = system.run("sh", "-c", 'echo "$A $PWD"', environment={"A": "b"}, directory=tmp_path)
    assert done.stdout == f"b {tmp_path}\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_root_acts_as_another_user_and_is_root_again() -> None:
    entry = pwd.getpwnam("nobody")
    done = system.run("sh", "-c", 'id -u; id -G; echo "$HOME"', user="nobody")
    assert done.stdout == f"{entry.pw_uid}\n{entry.pw_gid}\n{entry.pw_dir}\n"
    groups = os.getgroups()
    with system.as_user("nobody"):
        assert (os.geteuid(), os.getegid()) == (entry.pw_uid, entry.pw_gid)
    assert (os.geteuid(), os.getegid(), os.getgroups()) == (0, 0, groups)


def test_file_is_replaced_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    target = tmp_path / "a.prom"
    system.write(target, "a 1\n", mode=0o644)
    first = target.stat()
    system.write(target, b"a 2\n")
    assert target.read_text() == "a 2\n"
    assert target.stat().st_mode & 0o777 == 0o644
    assert target.stat().st_ino != first.st_ino
    assert list(tmp_path.iterdir()) == [target]


def test_new_file_is_private_and_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    system.write(tmp_path / "new", "x")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        system.write(tmp_path / "folder", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "new"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change an owner")
def test_owner_of_a_replaced_file_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "a"
    system.write(target, "1", mode=0o640, owner=(33, 33))
    system.write(target, "2")
    assert (target.stat().st_uid, target.stat().st_gid, target.stat().st_mode & 0o777) == (33, 33, 0o640)


def test_clock_is_utc_and_readable_again() -> None:
    assert system.stamp(1795526725.9) == "2026-11-24T13:25:25+00:00"
    assert system.compact(1795526725.9) == "20261124T132525Z"
    assert system.moment("2026-11-24T13:25:25+00:00") == 1795526725


def test_evidence_is_world_readable_and_tells_whether_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "EVIDENCE", tmp_path / "evidence")
    assert system.evidence("verified") == {}
    assert system.keep("verified", {"tables": ("a", "b")})
    assert not system.keep("verified", {"tables": ("a", "b")})
    assert system.keep("verified", {"tables": ("a",)})
    path = tmp_path / "evidence/verified.json"
    assert path.stat().st_mode & 0o777 == 0o644
    assert json.loads(path.read_text()) == {"schema": 1, "tables": ["a"]}
    for damaged in ("{", "[]"):
        path.write_text(damaged)
        assert system.evidence("verified") == {}


@pytest.mark.parametrize(
    ("script", "code"),
    [("echo ready; exec sleep 60", -15), ("trap '' TERM; echo ready; while :; do sleep 0.1; done", -9)],
)
def test_program_of_a_block_ends_with_it_even_if_it_ignores_the_signal(tmp_path: Path, script: str, code: int) -> None:
    log = tmp_path / "log"
    with system.running("sh", "-c", script, log=log, directory=tmp_path, wait_s=1) as program:
        assert until(lambda: log.read_text() == "ready\n", 10)
        assert program.poll() is None
    assert program.returncode == code
