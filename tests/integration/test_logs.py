"""What a stranger sends before a login cannot imitate a message of the server in `provision logs`."""

from __future__ import annotations

import re
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
