"""The mirror of PostgreSQL 14, and hosts that take it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pg14.mirror import Mirror, require
from tests.sandboxes import Hosts


def pytest_sessionstart() -> None:
    """Refuse to begin without the variables."""
    require()


@pytest.fixture(scope="session")
def mirror() -> Mirror:
    return Mirror.given()


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with Hosts.made(tmp_path_factory.mktemp("project")) as hosts:
        yield hosts
