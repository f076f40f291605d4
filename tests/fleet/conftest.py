"""One fleet for all tests of the folder: they run in order, and each leaves a complete fleet behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fleet import hosts
from tests.fleet.hosts import EVERY, FIRST, GROUPS, Fleet
from tests.sandboxes import INSTALLED, Hosts
from tests.until import until


def pytest_collection_finish(session: pytest.Session) -> None:
    """Name the variables that are missing."""
    if session.items:
        hosts.require()


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Hosts.made(tmp_path_factory.mktemp("fleet"), INSTALLED) as sandbox:
        found = hosts.made(sandbox, tmp_path_factory.mktemp("environment"), GROUPS)
        alone = found.site(without=tuple(name for name in GROUPS if name != "db1"))
        assert alone.code == 0, alone.output
        assert found.hosts["db1"].run(f"provision tenant add {FIRST}").returncode == 0
        found.members.sql("db1", f"INSERT INTO {FIRST}.agents (name) SELECT i::text FROM generate_series(1, 1000) i")
        found.join(GROUPS)
        run = found.site()
        assert run.code == 0, run.output
        assert {name: row.failed for name, row in run.recap.items()} == dict.fromkeys(EVERY, 0)
        assert until(found.complete, 60), found.members.view()
        yield found
