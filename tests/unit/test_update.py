"""What an update concerns: packages of the host's major, held ones, ways back, and files that processes still use."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from provision.host.update import apt, run, stale
from provision.host.update.apt import Package

POLICY = """\
postgresql-17:
  Installed: 17.11-0+deb13u1
  Candidate: 17.12-0+deb13u1
  Version table:
     17.12-0+deb13u1 500
        500 http://archive.example/debian trixie/main amd64 Packages
 *** 17.11-0+deb13u1 100
        100 /var/lib/dpkg/status
pgbouncer:
  Installed: 1.24.1-1+deb13u1
  Candidate: 1.24.1-1+deb13u2
  Version table:
     1.24.1-1+deb13u2 500
        500 http://archive.example/debian trixie/main amd64 Packages
 *** 1.24.1-1+deb13u1 500
        500 http://archive.example/debian trixie/main amd64 Packages
        100 /var/lib/dpkg/status
pgbackrest:
  Installed: 2.55.1-1
  Candidate: 2.55.1-1
  Version table:
 *** 2.55.1-1 500
        500 http://archive.example/debian trixie/main amd64 Packages
        100 /var/lib/dpkg/status
"""


def test_policy_is_read_with_holds_and_the_way_back() -> None:
    found = {each.name: each for each in apt.parse(POLICY, ["pgbouncer"])}
    assert found["postgresql-17"] == Package("postgresql-17", "17.11-0+deb13u1", "17.12-0+deb13u1", kept=False)
    assert found["pgbouncer"] == Package("pgbouncer", "1.24.1-1+deb13u1", "1.24.1-1+deb13u2", held=True, kept=True)
    assert [name for name, each in found.items() if each.newer] == ["postgresql-17", "pgbouncer"]


def test_only_packages_of_the_major_and_the_tools_are_updated() -> None:
    installed = ["postgresql-15", "postgresql-17", "postgresql-client-17", "postgresql-17-pgvector", "pgbouncer",
                 "postgresql-common", "postgresql-17x", "postgresql-plperl-17", "postgresql-plpython3-15",
                 "openssl", "prometheus-node-exporter"]  # fmt: skip
    assert list(apt.ours(installed, 17)) == [
        "postgresql-17", "postgresql-client-17", "postgresql-17-pgvector", "pgbouncer", "postgresql-plperl-17",
        "prometheus-node-exporter",
    ]  # fmt: skip


def test_command_back_names_every_old_version() -> None:
    packages = [Package("postgresql-17", "17.11-0", "17.12-0"), Package("pgbouncer", "1.24-1", "1.24-2")]
    assert apt.way_back(packages) == (
        "apt-get install --allow-downgrades --no-remove --no-install-recommends postgresql-17=17.11-0 pgbouncer=1.24-1"
    )


MAPS = """\
55d0-55d1 r-xp 00000000 fe:01 1234                       /usr/lib/postgresql/17/bin/postgres (deleted)
7f00-7f01 r-xp 00000000 fe:01 1235                       /usr/lib/postgresql/17/lib/vector.so (deleted)
7f02-7f03 r-xp 00000000 fe:01 1236                       /usr/lib/x86_64-linux-gnu/libc.so.6
7f04-7f05 rw-s 00000000 00:01 1237                       /dev/zero (deleted)
7f06-7f07 rw-p 00000000 00:00 0
"""


@pytest.mark.parametrize(
    ("maps", "seen"),
    [
        (MAPS, ["/usr/lib/postgresql/17/bin/postgres", "/usr/lib/postgresql/17/lib/vector.so"]),
        (MAPS.replace("postgres (deleted)", "postgres").replace("vector.so (deleted)", "vector.so"), []),
        ("", []),
    ],
)
def test_replaced_files_are_those_of_packages(maps: str, seen: list[str]) -> None:
    assert stale.files(maps) == seen


def test_plan_of_an_update_names_versions_restarts_and_the_next_command() -> None:
    found = run.Look((Package("postgresql-17", "17.11-0", "17.12-0"),), ("postgresql@17-main.service",), ("X: y",), ())
    assert run.lines(found) == [
        "postgresql-17: 17.11-0 -> 17.12-0",
        "restart, if it uses a replaced file: postgresql@17-main.service",
        "fixes X: y",
        "to install: update.yml -e update_apply=yes, or provision update run on the host",
    ]  # fmt: skip
    assert run.lines(run.Look((), (), (), ())) == ["no packages to update"]


def test_defects_that_the_new_pgvector_ends_are_named() -> None:
    packages = (Package("postgresql-17-pgvector", "0.8.0-1", "0.8.4-1"),)
    assert [line.split(":")[0] for line in run.fixes(packages)] == ["CVE-2026-3172", "pgvector-hnsw-vacuum"]


def test_processes_of_a_unit_are_the_main_one_and_its_descendants() -> None:
    assert stale.tree(10, {10: 1, 11: 10, 12: 11, 20: 1, 21: 20}) == {10, 11, 12}


def test_program_that_is_replaced_while_it_runs_is_seen(tmp_path: Path) -> None:
    program = tmp_path / "sleep"
    shutil.copy("/usr/bin/sleep", program)
    with subprocess.Popen([program, "30"]) as running:
        try:
            maps = Path(f"/proc/{running.pid}/maps")
            while str(program) not in maps.read_text():  # before exec, it is still the test itself
                time.sleep(0.01)
            new = tmp_path / "new"
            shutil.copy("/usr/bin/sleep", new)
            new.replace(program)
            assert f"{program}{stale.DELETED}" in maps.read_text()
            assert running.pid in stale.tree(os.getpid(), stale.parents())
        finally:
            running.kill()


def test_repeated_update_keeps_the_way_back_of_the_one_that_failed() -> None:
    last = {"state": "installing", "packages": [asdict(Package("postgresql-17", "17.10-1", "17.11-1"))]}
    now = {"postgresql-17": "17.11-1"}
    assert run.since_before((), last, now) == (Package("postgresql-17", "17.10-1", "17.11-1"),)
    newer = (Package("pgbouncer", "1.23-1", "1.24-1"), Package("postgresql-17", "17.11-1", "17.12-1"))
    assert run.since_before(newer, last, now) == (newer[0], Package("postgresql-17", "17.10-1", "17.12-1"))
    assert run.since_before(newer, {**last, "state": "finished"}, now) == newer
    assert run.since_before((), last, {"postgresql-17": "17.10-1"}) == ()  # it went back
