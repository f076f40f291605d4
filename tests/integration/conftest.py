"""One cluster for the whole session, one fresh database for each test."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
import pytest

from tests.clusters import Cluster
from tests.integration.rows import ONE_OF_EACH, Session

TEMPLATE, MIGRATED = "minion_template", "minion_migrated"
MIGRATIONS = Path(__file__).parents[2] / "migrations"
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


@pytest.fixture(scope="session")
def migrated(cluster: Cluster) -> str:
    """The name of a database with all migrations applied, to be copied."""
    cluster.psql(f"CREATE DATABASE {MIGRATED} OWNER minion TEMPLATE {TEMPLATE}")
    for path in sorted(MIGRATIONS.glob("*.up.sql")):
        cluster.psql(path.read_text(), MIGRATED, "minion")
    return MIGRATED


@contextmanager
def copy_of(cluster: Cluster, template: str) -> Iterator[str]:
    """Make a database of `minion` from a template and drop it at the end; yield its name."""
    name = f"minion_{next(numbers)}"
    cluster.psql(f"CREATE DATABASE {name} OWNER minion TEMPLATE {template}")
    yield name
    cluster.psql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def database(cluster: Cluster) -> Iterator[str]:
    """The name of a fresh database: owned by `minion`, the two extensions made by the superuser, no tables."""
    with copy_of(cluster, TEMPLATE) as name:
        yield name


@pytest.fixture
def schema(cluster: Cluster, migrated: str) -> Iterator[Session]:
    """A session of `minion` in a fresh database with all migrations applied; each statement commits by itself."""
    with (
        copy_of(cluster, migrated) as name,
        psycopg.connect(cluster.url(name, "minion"), autocommit=True) as connection,
    ):
        yield connection


@pytest.fixture
def one_of_each(schema: Session) -> Session:
    """A database with one row in every table."""
    schema.execute(ONE_OF_EACH.encode())
    return schema
