"""The server of a restore test: started again at once after a stop, and killed during recovery."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import plans
from tests.clusters import as_server_user, run
from tests.contract.repository import ROOT
from tests.integration.test_second_repository import MAJOR, SYSTEM

SCRIPT = """
import json, sys, time
from pathlib import Path
from provision import system
from provision.errors import ProvisionError
from provision.host.backup import recovery, scratch_cluster, wal
from provision.host.backup.targets import Target
from provision.plan import load
scratch_cluster.SCRATCH = Path(sys.argv[1]) / "scratch"
scratch_cluster.SOCKET = scratch_cluster.SCRATCH / "socket"
system.become()
load.PATH = Path(sys.argv[1]) / "plan.json"
plan = load.load()
server = scratch_cluster.Scratch(plan, scratch_cluster.SCRATCH / "data")
url = plan.server.url("postgres", socket=str(scratch_cluster.SOCKET), port=scratch_cluster.PORT)

def replay():
    return recovery.await_target(url, Target("latest"), wal.Segment(1, 0, 1 << 24), server, lambda _: None).lsn

def again():
    with server.serving({}):
        first = replay()
    assert "database system is shut down" in server()
    with server.serving({}):
        with server.path.open("a") as log:  # as a server does that writes its last line late
            print("LOG:  database system is shut down", file=log, flush=True)
        return replay() == first

def killed():
    with server.serving({}):
        server.process.kill()
        begun = time.monotonic()
        try:
            replay()
        except ProvisionError as error:
            return [error.what, time.monotonic() - begun < 10]

def stray():
    with server.serving({}):
        replay()
        (server.data / "postmaster.pid").unlink()
    return server.ended("")

print(json.dumps({"again": again, "killed": killed, "stray": stray}[sys.argv[2]]()))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory with a plan and a standby without a primary, whose archive is empty."""
    made = Path(tempfile.mkdtemp(prefix="provision-standby-", dir="/tmp"))
    shutil.chown(made, "postgres", "postgres")
    built = plans.plan("prod", plans.SAMPLE)
    plans.write(made / "plan.json", replace(built, server=replace(built.server, major=MAJOR))).chmod(0o644)
    data = made / "scratch/data"
    run(*as_server_user("mkdir", "-m", "0700", made / "scratch", made / "scratch/socket", data))
    run(*as_server_user(SYSTEM / str(MAJOR) / "bin/initdb", "--no-sync", "--auth=peer", "--username=postgres", data))
    run(*as_server_user("touch", data / "standby.signal"))
    with (data / "postgresql.auto.conf").open("a") as settings:
        settings.write("restore_command = 'false'\n")
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize(
    ("case", "expected"), [("again", True), ("killed", ["the server stopped during recovery", True]), ("stray", True)]
)
def test_only_the_end_of_its_process_ends_a_restore_test(folder: Path, case: str, expected: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), case],
        capture_output=True, text=True, check=False, cwd="/", env={"PYTHONPATH": str(ROOT), "LC_ALL": "de_DE.UTF-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected
