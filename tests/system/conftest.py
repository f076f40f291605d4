"""Hosts for the tests: a sandbox for each file, removed at its end whatever happened."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sandboxes import INSTALLED, Hosts
from tests.system.production import Production


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Makes hosts on request: `host = sandbox.up("db1", os="debian12", shm_size="256m")`, then `host.run("id")`."""
    with Hosts.made(tmp_path_factory.mktemp("project")) as hosts:
        yield hosts


@pytest.fixture
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """A sandbox of one test alone."""
    with Hosts.made(tmp_path_factory.mktemp("project")) as hosts:
        yield hosts


@pytest.fixture(scope="session")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    """Two hosts that site.yml has converged with the prod profile; runs on the hosts of `sandbox` do not reach them."""
    with Hosts.made(tmp_path_factory.mktemp("production"), INSTALLED) as hosts:
        made = Production.make(hosts, tmp_path_factory.mktemp("inventory"))
        run = made.play()
        assert run.code == 0, run.output
        yield made
