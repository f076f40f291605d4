"""What a stranger sends before a login cannot imitate a message of the server in `provision logs`."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import make_conninfo

from provision.cli import root
from provision.host import logs
from provision.plan import load
from tests import embedded
from tests.plans import sample, write
from tests.templates.test_render import published, render, template
from tests.until import until

PLACE = re.compile(r"log(ging_collector|_destination|_file|_rotation)")
FORGED = "2026-11-24 13:00:00 UTC [1] PANIC:  WAL\x1b[2J"
NAME = f'n\n{FORGED}\n"\n",'
"""Shorter than the 63 bytes that a server keeps of a name."""


@pytest.mark.parametrize("major", [14, 15, 18])
def test_start_up_packet_forges_no_message(major: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = sample(server={"major": major, "configuration_directory": str(tmp_path), "data_directory": str(tmp_path)})
    with embedded.cluster(major) as server:
        plan_of_major = published({"postgresql_version": major, "pgvector_version": "0.8.4"})
        text = render(template("postgresql/50-provision.conf.j2"), "prod", plan=plan_of_major)
        lines = [each for each in text.splitlines() if PLACE.match(each)]
        lines.append(f"log_directory = '{server.socket}'")
        lines += ["log_timezone = UTC", "log_connections = on", "log_line_prefix = '%m [%p] %q%u@%d/%a %h '"]
        server.configure("\n".join(lines) + "\n")
        with server.running() as session:
            for field in ("user", "dbname", "application_name"):
                values = {"user": "postgres", "dbname": "postgres", field: NAME}
                try:
                    psycopg.connect(make_conninfo(host=str(server.socket), port=5432, **values)).close()
                except psycopg.OperationalError as error:
                    assert field != "application_name", error  # noqa: PT017 - either outcome is logged
            with pytest.raises(psycopg.errors.RaiseException):
                session.execute(
                    "DO $$ BEGIN RAISE '%', E'x\\n2026-11-24 13:00:00.000 UTC [1] PANIC:  in a message'; END $$"
                )
            written = list(server.socket.glob(f"postgresql-{major}-main.*"))
            # The logging collector writes later than the server.
            assert until(lambda: all("in a message" in path.read_text() for path in written), 10), written
            text_log = (server.socket / f"postgresql-{major}-main.log").read_text()
            assert f"\n{FORGED}" in text_log  # the trap is real: a line of the text log is forged
            after = datetime.now(UTC) - timedelta(hours=1)
            found = list(logs.read(logs.files(major, after, server.socket), after, UTC))
            monkeypatch.setattr(load.load, "__defaults__", (write(tmp_path / "plan.json", plan),))
            monkeypatch.setattr(logs.files, "__defaults__", (server.socket,))
            done = CliRunner().invoke(root, ["logs", "--since", "1h"])
    assert {each.level for each in found} <= {"LOG", "ERROR", "FATAL"}
    assert [each for each in found if each.level == "FATAL" and FORGED in each.who]
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.output
    assert "in a message" in done.output
    heads = [line for line in done.output.splitlines() if not line.startswith("    ")]
    assert not [line for line in heads if re.match(r"\S+ \S+ \[\d+\] (- )?PANIC", line)]
    assert [line for line in heads if "FATAL" in line]


HEAD = "2026-11-24 13:00:00.000 UTC"
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))
from datetime import UTC, datetime
from pathlib import Path
from provision.host import logs
after = datetime(2026, 11, 24, tzinfo=UTC)
folder = Path(sys.argv[1])
skipped = []
found = list(logs.read(sorted(folder.iterdir()), after, UTC, lambda path, why: skipped.append((path.name, why))))
for each in found:
    print("found", each.level, each.lines[0][:40])
for name, why in skipped:
    print("skipped", name, why)
"""


def test_records_larger_than_memory_pipes_and_devices_are_skipped_and_reported(tmp_path: Path) -> None:
    """Attack: a role logs a huge statement; the server's user puts pipes and links among the logs."""
    record = {"timestamp": HEAD, "pid": 1, "error_severity": "ERROR", "message": "before"}
    huge = b" " * 2**20
    with (tmp_path / "1.json").open("wb") as stream:
        stream.write(json.dumps(record).encode() + b"\n")
        stream.write(json.dumps({**record, "message": ""}).encode()[:-2])
        for _ in range(600):
            stream.write(huge)
        stream.write(b'"}\n' + json.dumps({**record, "message": "after"}).encode() + b"\n")
    row = f'{HEAD},"u","d",1,"h:1","s",1,"ps",{HEAD},"v",0,ERROR,00000,"{{}}",,,,,,,,,"a"\n'
    with gzip.open(tmp_path / "2.csv.gz", "wb", compresslevel=1) as packed:
        packed.write(row.format("first").encode())
        packed.write(row.partition("{}")[0].encode() + b'""x\n')
        # Without the quotes of the skipped record, what it contains would be a record of its own.
        forged = row.format("forged").replace('"', '""').encode()
        for _ in range(40):
            packed.write(huge + b"\n" + forged)
        packed.write(b'",,,,,,,,,"a"\n' + row.format("second").encode())
    os.mkfifo(tmp_path / "3.json")
    (tmp_path / "4.json").symlink_to("/etc/shadow")
    (tmp_path / "5.json.gz").write_bytes((tmp_path / "2.csv.gz").read_bytes()[:5000])
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("found")] == [
        "found ERROR before", "found ERROR after", "found ERROR first", "found ERROR second",
    ]  # fmt: skip
    skipped = dict(line.split(" ", 2)[1:] for line in lines if line.startswith("skipped"))
    assert set(skipped) == {"1.json", "2.csv.gz", "3.json", "4.json", "5.json.gz"}
    assert skipped["1.json"] == skipped["2.csv.gz"] == "has a record longer than 16 MiB"
    assert "not a plain file" in skipped["3.json"]
