"""The pooler's files are read as it reads them: includes within sections, comments left out, the last value wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.host.pooler import configuration

GOLDEN = Path(__file__).parents[1] / "templates/golden"


def write(folder: Path) -> Path:
    (folder / "more.ini").write_text("; a comment\nlisten_port = 6500\nauth_query = SELECT a = b\n")
    (folder / "databases.ini").write_text("minion = host=/run port=5432\nother = host=/run password=x\n")
    main = folder / "pgbouncer.ini"
    main.write_text(
        "[databases]\n%include databases.ini\n\n[pgbouncer]\n# why\nlisten_port = 6432\n%include more.ini\n"
    )
    return main


def test_reads_sections_through_includes_and_takes_the_last_value(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert configuration.settings(path) == {"listen_port": "6500", "auth_query": "SELECT a = b"}
    assert configuration.databases(path) == ["minion", "other"]
    assert configuration.databases_text(path)[1].endswith("password=x")


@pytest.mark.parametrize("profile", ["dev", "prod"])
def test_no_section_of_what_we_render_begins_twice(profile: str) -> None:
    # PgBouncer puts a section back to its defaults where it begins again: auth_query would be the built-in one.
    texts = [path.read_text() for path in (GOLDEN / profile).glob("pgbouncer-*.ini")]
    sections = [line for text in texts for line in text.splitlines() if line.startswith("[")]
    assert sorted(sections) == ["[databases]", "[pgbouncer]", "[users]"]
