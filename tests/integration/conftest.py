"""One cluster for the whole session, one fresh database for each test."""

from collections.abc import Iterator
from itertools import count

import pytest

from tests.clusters import Cluster

TEMPLATE = "minion_template"
numbers = count(1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running server with the role `minion`, an ordinary login role as the bundle makes it."""
    server = Cluster.create()
    try:
        server.psql("CREATE ROLE minion LOGIN")
        server.psql(f"CREATE DATABASE {TEMPLATE} OWNER minion")
        server.psql('CREATE EXTENSION vector; CREATE EXTENSION "uuid-ossp"', TEMPLATE)
        yield server
    finally:
        server.remove()


@pytest.fixture
def database(cluster: Cluster) -> Iterator[str]:
    """The name of a fresh database: owned by `minion`, the two extensions made by the superuser, no tables."""
    name = f"minion_{next(numbers)}"
    cluster.psql(f"CREATE DATABASE {name} OWNER minion TEMPLATE {TEMPLATE}")
    yield name
    cluster.psql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
