"""A page that the disk changed: reported by doctor and by a metric."""

from __future__ import annotations

import psycopg
import pytest

from provision.checks.finding import Severity
from provision.checks.registry import Scope, examine, unknown_site
from provision.database import connect_pinned
from provision.host.metrics import database
from tests.clusters import Cluster

METRIC = "provision_checksum_failures_total"


def failures(server: Cluster) -> dict[str, float]:
    with connect_pinned(server.url(), application="test") as session:
        found = {each.name: each for each in database.server(session)}
    return {labels["database"]: value for labels, value in found[METRIC].samples}


def test_damaged_page_is_counted_and_found() -> None:
    server = Cluster.create()
    try:
        server.psql("CREATE TABLE hurt AS SELECT n FROM generate_series(1, 1000) n; CHECKPOINT")
        path = server.data / server.psql("SELECT pg_relation_filepath('hurt')")
        assert failures(server)["postgres"] == 0
        server.stop()
        with path.open("r+b") as file:
            file.seek(4000)
            file.write(b"damage")
        server.start()
        with psycopg.connect(server.url()) as session, pytest.raises(psycopg.errors.DataCorrupted):
            session.execute("SELECT sum(n) FROM hurt")
        assert failures(server)["postgres"] >= 1
        with psycopg.connect(server.url(), autocommit=True) as session:
            found = {each.id: each for each in examine(Scope.DATABASE, session, site=unknown_site)}
        assert found["checksum-failures"].severity is Severity.CRITICAL
        assert found["checksum-failures"].seen.startswith("postgres: 1 damaged pages read, last 2")
    finally:
        server.remove()
