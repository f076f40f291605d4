"""The benchmark's schema: copies of the real tables with indexes, keys and triggers, filled with vectors.

Does IO on the database. Uniform noise in 1,536 dimensions has no meaningful neighbours, so there are two data sets. The
hard one, in `memories`, has topics and noise in every dimension. The easy one, in `notes`, has few latent dimensions,
as embeddings of text do, and HNSW finds at least 95 % of its neighbours at `ef_search` 40.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from provision import database
from provision.controller.bench.pgbench import APPLICATION
from provision.errors import UsageError

SCHEMA = "provision_bench"
MARK = "made by provision bench; dropped at its end"
TABLES = ("agents", "sessions", "memories", "activities")
AGENTS, SESSIONS, QUERIES = 200, 5_000, 200
TOPICS = 100  # clusters of the hard vectors
LATENT = 12  # dimensions of the easy vectors before they are embedded
EASY_NOISE = 0.02  # of a latent dimension's deviation, in each embedded dimension
Connection = database.Connection


def connected(url: str) -> Connection:
    """Connect for a benchmark, whose statements may take any time. Raises as `database.connect`."""
    return database.connect(url, application="provision bench", statement_timeout_ms=0)


def refuse(connection: Connection, *, confirmed: bool) -> str:
    """Return the schema of the real tables. Raises UsageError if the database must not be benchmarked."""
    database.refuse_pooler(connection)
    database.refuse_read_only(connection)
    where = connection.info.dbname
    found = connection.execute(
        "SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = to_regclass('memories')"
    ).fetchone()
    if found is None:
        raise UsageError("the schema is missing", where=where, seen="no table memories", run="provision migrate up")
    row = connection.execute(
        "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s", (SCHEMA,)
    ).fetchone()
    if row is not None and row[0] != MARK:
        raise UsageError(
            f"schema {SCHEMA} was not created by provision bench",
            where=where,
            seen=str(row[0]),
            allowed="no such schema",
        )
    full = connection.execute("SELECT EXISTS (SELECT FROM agents) OR EXISTS (SELECT FROM memories)").fetchone()
    if database.guarded(connection) and full and full[0] and not confirmed:
        raise UsageError(
            "this guarded database holds data, and a benchmark would load it heavily",
            where=where,
            seen="provision.guard is on, and the tables have rows",
            allowed="--yes, while the server is not in use",
        )
    return str(found[0])


@contextmanager
def made(connection: Connection, real: str, url: str) -> Iterator[None]:
    """Create the schema with empty copies of the tables; at the end, always drop it and close the connection."""
    _drop(connection)
    connection.execute(f"CREATE SCHEMA {SCHEMA}")
    try:
        connection.execute(f"COMMENT ON SCHEMA {SCHEMA} IS '{MARK}'")
        copy_tables(connection, real)
        yield
    finally:
        # An interrupt may have left a statement or a COPY under way, so another connection drops the schema.
        connection.close()
        with connected(url) as other:
            _drop(other)


def _drop(connection: Connection) -> None:
    # Sessions of a killed pgbench finish their statement first; DROP could deadlock with them.
    connection.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE application_name = %s AND datname = current_database() AND usename = current_user",
        (APPLICATION,),
    )
    connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


def copy_tables(connection: Connection, real: str) -> None:
    """Copy columns, storage, options, checks and indexes; then the foreign keys and triggers between the copies."""
    tables = list(TABLES)
    connection.execute("SELECT set_config('search_path', %s, false)", (f"{real}, public",))
    # Generated while only the real schema is in search_path, so that names are not qualified.
    more = connection.execute(
        "SELECT format('ALTER TABLE %%I ADD %%s', relname, pg_get_constraintdef(c.oid))"
        " FROM pg_constraint c JOIN pg_class r ON r.oid = conrelid"
        " WHERE contype = 'f' AND conrelid = ANY (%s::regclass[]) AND confrelid = ANY (%s::regclass[])"
        " UNION ALL SELECT pg_get_triggerdef(oid, true) FROM pg_trigger"
        " WHERE tgrelid = ANY (%s::regclass[]) AND NOT tgisinternal"
        " UNION ALL SELECT format('ALTER TABLE %%I SET (%%s)', relname, array_to_string(reloptions, ', '))"
        " FROM pg_class WHERE oid = ANY (%s::regclass[]) AND reloptions IS NOT NULL",
        (tables, tables, tables, tables),
    ).fetchall()
    for table in tables:
        connection.execute(f"CREATE TABLE {SCHEMA}.{table} (LIKE {real}.{table} INCLUDING ALL)".encode())
    connection.execute("SELECT set_config('search_path', %s, false)", (f"{SCHEMA}, {real}, public",))
    for row in more:
        connection.execute(str(row[0]).encode())
    connection.execute("CREATE TABLE queries (id integer PRIMARY KEY, embedding vector)")


def fill(connection: Connection, vectors: int, seed: int, tick: Callable[[int], None]) -> list[str]:
    """Load agents, sessions and memories without the vector index; return the statements that build it.

    Ids are md5 of 'agent1' and so on, so that pgbench can compute them.
    """
    connection.execute(
        "INSERT INTO agents (id, name) SELECT md5('agent' || i)::uuid, 'agent ' || i"
        f" FROM generate_series(1, {AGENTS}) i".encode()
    )
    connection.execute(
        "INSERT INTO sessions (id, agent_id, history) SELECT md5('session' || i)::uuid,"
        f" md5('agent' || 1 + i % {AGENTS})::uuid, jsonb_build_array(repeat(md5(i::text), 8))"
        f" FROM generate_series(1, {SESSIONS}) i".encode()
    )
    found = connection.execute(
        "SELECT pg_get_indexdef(i.oid), i.relname FROM pg_index x JOIN pg_class i ON i.oid = indexrelid"
        " JOIN pg_am a ON a.oid = relam WHERE indrelid = 'memories'::regclass AND amname = 'hnsw'"
    ).fetchall()
    if not found:
        raise UsageError("no HNSW index on memories", where=connection.info.dbname, run="provision migrate verify")
    connection.execute(f"DROP INDEX {', '.join(str(row[1]) for row in found)}".encode())
    width = connection.execute(
        "SELECT atttypmod FROM pg_attribute WHERE attrelid = 'memories'::regclass AND attname = 'embedding'"
    ).fetchone()
    assert width is not None  # noqa: S101 - the index found above is on this column
    _copy_vectors(connection, vectors, int(str(width[0])), seed, tick)
    connection.execute("VACUUM ANALYZE agents, sessions, memories, queries")
    return [str(row[0]) for row in found]


def fill_easy(connection: Connection, vectors: int, width: int, seed: int) -> list[str]:
    """Load the easy data set into `notes` and `note_queries`; return the statements that build its index."""
    connection.execute("CREATE TABLE notes (id integer PRIMARY KEY, embedding vector NOT NULL)")
    connection.execute(
        f"ALTER TABLE notes ALTER embedding TYPE vector({width}), ALTER embedding SET STORAGE PLAIN".encode()
    )
    connection.execute("CREATE TABLE note_queries (id integer PRIMARY KEY, embedding vector NOT NULL)")
    import numpy

    generator = numpy.random.default_rng(seed)
    make = _easy(generator, width)
    for table, count in (("notes", vectors), ("note_queries", QUERIES)):
        with connection.cursor().copy(f"COPY {table} FROM STDIN (FORMAT binary)".encode()) as copy:
            copy.set_types(["int4", "bytea"])
            for number, vector in enumerate(_rows(make, width, count), 1):
                copy.write_row((number, vector))
    connection.execute("VACUUM ANALYZE notes, note_queries")
    return ["CREATE INDEX notes_embedding_idx ON notes USING hnsw (embedding vector_cosine_ops)"]


def _hard(generator: Any, width: int) -> Callable[[int], Any]:
    """Return a function that makes vectors of two topics each, with noise in every dimension."""
    topics = generator.standard_normal((TOPICS, width), dtype="float32")

    def make(size: int) -> Any:
        first, second = generator.integers(TOPICS, size=(2, size))
        share = generator.uniform(0.1, 0.7, (size, 1)).astype("float32")
        noise = generator.standard_normal((size, width), dtype="float32")
        strength = generator.uniform(0.1, 0.5, (size, 1)).astype("float32")
        return topics[first] + share * topics[second] + strength * noise

    return make


def _easy(generator: Any, width: int) -> Callable[[int], Any]:
    """Return a function that makes vectors of few latent dimensions, embedded linearly, with little noise."""
    axes = generator.standard_normal((LATENT, width), dtype="float32")

    def make(size: int) -> Any:
        latent = generator.standard_normal((size, LATENT), dtype="float32")
        return latent @ axes + EASY_NOISE * generator.standard_normal((size, width), dtype="float32")

    return make


def _rows(make: Callable[[int], Any], width: int, number: int) -> Iterator[bytes]:
    """Give vectors as vector_recv reads them: the length, an unused word and big-endian floats."""
    head = width.to_bytes(2, "big") + b"\0\0"
    for start in range(0, number, 1000):
        for row in make(min(1000, number - start)).astype(">f4"):
            yield head + row.tobytes()


def _copy_vectors(connection: Connection, count: int, width: int, seed: int, tick: Callable[[int], None]) -> None:
    """Load the hard data set by binary COPY."""
    import numpy

    make = _hard(numpy.random.default_rng(seed), width)
    agents, ids = random.Random(seed), _agent_ids()  # noqa: S311 - chooses owners of test data
    with connection.cursor().copy("COPY memories (agent_id, content, embedding) FROM STDIN (FORMAT binary)") as copy:
        copy.set_types(["uuid", "text", "bytea"])
        for number, vector in enumerate(_rows(make, width, count), 1):
            copy.write_row((agents.choice(ids), "a fact that an agent remembers", vector))
            if number % 500 == 0 or number == count:
                tick(number)
    with connection.cursor().copy("COPY queries FROM STDIN (FORMAT binary)") as copy:
        copy.set_types(["int4", "bytea"])
        for number, vector in enumerate(_rows(make, width, QUERIES), 1):
            copy.write_row((number, vector))


def _agent_ids() -> list[Any]:
    return [UUID(hashlib.md5(f"agent{i}".encode()).hexdigest()) for i in range(1, AGENTS + 1)]  # noqa: S324 - an id
