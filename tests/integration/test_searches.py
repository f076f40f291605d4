"""The searches of a restore test run no operator of a table's owner with a superuser's rights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.host.backup import searches
from provision.quoting import conninfo
from tests.clusters import Cluster

# The exact match for the domain is the owner's operator, not pgvector's.
TRAP = """
CREATE DOMAIN v AS vector(3);
CREATE TABLE t (e v);
CREATE FUNCTION spring(v, v) RETURNS float8 LANGUAGE plpgsql AS $$
BEGIN
  BEGIN COPY (SELECT 1) TO PROGRAM 'cat > {marker}'; EXCEPTION WHEN insufficient_privilege THEN NULL; END;
  RETURN 0;
END $$;
CREATE OPERATOR public.<=> (LEFTARG = v, RIGHTARG = v, FUNCTION = spring);
CREATE TABLE plain (e vector(3)); CREATE INDEX ON plain USING hnsw (e vector_cosine_ops);
INSERT INTO plain SELECT '[1,2,3]' FROM generate_series(1, 20);
ALTER TABLE plain ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON plain USING (spring('[1,2,3]', '[1,2,3]') = 1);
"""


@pytest.fixture
def reader(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.psql(f"DROP ROLE IF EXISTS {searches.READER}")


@pytest.mark.usefixtures("reader")
def test_code_of_the_owner_gets_no_rights_of_the_superuser(cluster: Cluster, database: str) -> None:
    marker = Path(cluster.host) / "marker"
    cluster.psql(TRAP.replace("{marker}", str(marker)), database, "minion")

    def url(user: str, name: str) -> str:
        return conninfo({"host": cluster.host, "port": cluster.port, "dbname": name, "user": user})

    found = searches.run(url, database)
    assert found == {"public.plain_e_idx": 10}
    assert not marker.exists()
    shown = "SELECT rolsuper, rolcreaterole, pg_has_role(rolname, 'pg_read_all_data', 'MEMBER') FROM pg_roles"
    assert cluster.psql(f"{shown} WHERE rolname = '{searches.READER}'") == "f|f|f"
    assert cluster.psql(f"SELECT has_table_privilege('{searches.READER}', 'pg_authid', 'SELECT')") == "f"
    # The trap is real: a search of the domain by the superuser runs the owner's operator.
    cluster.psql("INSERT INTO t VALUES ('[1,2,3]')", database)
    cluster.psql("SELECT 1 FROM t ORDER BY e OPERATOR(public.<=>) '[1,1,1]' LIMIT 10", database)
    assert marker.exists()
    cluster.psql(f"DROP OWNED BY {searches.READER}", database)
