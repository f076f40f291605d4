"""Make provision/tuning/settings.tsv of real servers: pg_settings of every supported major, contrib libraries loaded.

Does IO. Run after a change of the supported majors: python -m tests.catalogue
pgvector's settings are written below, for no server of the npm package has it.
"""

from __future__ import annotations

from pathlib import Path

import psycopg

from provision.tuning.catalogue import Known
from tests import embedded

TABLE = Path(__file__).parents[1] / "provision/tuning/settings.tsv"
LIBRARIES = ("auto_explain", "auth_delay", "basebackup_to_shell", "passwordcheck", "pg_trgm", "postgres_fdw")
PRELOADED = "shared_preload_libraries = 'pg_stat_statements,pg_prewarm'\n"
BUILD = {
    "default_toast_compression": ("lz4",),
    "io_method": ("io_uring",),
    "recovery_init_sync_method": ("syncfs",),
    "wal_compression": ("lz4", "zstd"),
}
"""Values that Debian's and PGDG's builds have and the npm package's may lack."""
QUERY = (
    "SELECT name::text, vartype::text, context::text, coalesce(unit, '')::text, coalesce(min_val, '')::text,"
    " coalesce(max_val, '')::text, coalesce(enumvals, '{}')::text[] FROM pg_settings ORDER BY lower(name)"
)
PGVECTOR = (
    Known("hnsw.ef_search", 14, 18, "integer", "user", "", "1", "1000", ()),
    Known("hnsw.iterative_scan", 14, 18, "enum", "user", "", "", "", ("off", "relaxed_order", "strict_order")),
    Known("hnsw.max_scan_tuples", 14, 18, "integer", "user", "", "1", "2147483647", ()),
    Known("hnsw.scan_mem_multiplier", 14, 18, "real", "user", "", "1", "1000", ()),
    Known("ivfflat.iterative_scan", 14, 18, "enum", "user", "", "", "", ("off", "relaxed_order")),
    Known("ivfflat.max_probes", 14, 18, "integer", "user", "", "1", "32768", ()),
    Known("ivfflat.probes", 14, 18, "integer", "user", "", "1", "32768", ()),
)


def read(session: psycopg.Connection[tuple[object, ...]], major: int) -> list[Known]:
    """Return a server's settings as rows of one major; libraries that it lacks are left out."""
    for library in LIBRARIES:
        try:
            session.execute(f"LOAD '{library}'".encode())
        except psycopg.Error:
            continue
    return [
        Known(
            str(name),
            major,
            major,
            str(kind),
            str(context),
            str(unit),
            str(least),
            str(most),
            tuple(dict.fromkeys([*values, *(BUILD.get(str(name), ()) if kind == "enum" else ())])),  # type: ignore[misc]
        )
        for name, kind, context, unit, least, most, values in session.execute(QUERY)
    ]


def merge(found: list[Known]) -> list[Known]:
    """Join equal rows of consecutive majors."""
    merged: list[Known] = []
    for row in sorted(found, key=lambda row: (row.name.lower(), row.since)):
        last = merged[-1] if merged else None
        same = last and (last.name, *_facts(last)) == (row.name, *_facts(row)) and last.until + 1 == row.since
        if same and last:
            merged[-1] = Known(row.name, last.since, row.until, *_facts(row))
        else:
            merged.append(row)
    return merged


def _facts(row: Known) -> tuple[str, str, str, str, str, tuple[str, ...]]:
    return row.kind, row.context, row.unit, row.least, row.most, row.values


def main() -> None:
    """Write the table."""
    found = list(PGVECTOR)
    for major in embedded.VERSIONS:
        with embedded.cluster(major) as server:
            server.configure(PRELOADED)
            with server.running() as session:
                found += read(session, major)
    lines = ["name\tsince\tuntil\ttype\tcontext\tunit\tmin\tmax\tvalues"]
    for row in merge(found):
        cells = (row.name, row.since, row.until, *_facts(row)[:-1], ",".join(row.values))
        lines.append("\t".join(map(str, cells)))
    TABLE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
