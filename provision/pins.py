"""Settings that sessions with privileges pin at connect, against what a database or a role stores. Pure.

The owner of a database may store settings for every session in it (ALTER DATABASE ... SET): `role` changes the user,
`statement_timeout` ends each query, `search_path` substitutes functions. Options given at connect have precedence and
apply before the first statement, so libpq sends them: `options` in the connection string, PGOPTIONS for programs.
Only a superuser can store the settings of SUPERUSER for others; they are set for superusers, after connecting.
"""

from __future__ import annotations

from collections.abc import Mapping

EVERYWHERE: Mapping[str, str] = {
    "role": "none",
    "search_path": "pg_catalog, pg_temp",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "row_security": "on",
    "transform_null_equals": "off",
    "array_nulls": "on",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "backslash_quote": "safe_encoding",
    "bytea_output": "hex",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "xmlbinary": "base64",
    "xmloption": "content",
    "client_min_messages": "notice",
    "check_function_bodies": "on",
    "synchronous_commit": "on",
    "default_tablespace": "",
    "temp_tablespaces": "",
    "default_table_access_method": "heap",
    "local_preload_libraries": "",
}
"""Settings that every role may set, in all supported majors."""
SUPERUSER: Mapping[str, str] = {"session_replication_role": "origin", "lc_messages": "C"}
"""Settings that only a superuser may set."""
TRANSACTION_TIMEOUT, TRANSACTION_TIMEOUT_SINCE = "transaction_timeout", 170000
RELATION_KINDS = "restrict_nonsystem_relation_kind"
RELATION_KINDS_SINCE: Mapping[int, int] = {14: 140013, 15: 150008, 16: 160004}
"""The minor releases that know it; later majors all do. With `view`, a session expands no view of a user: a table that
its owner replaces by a view between two statements gives an error and does not call the owner's functions."""
HARMFUL = frozenset({
    "role", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout",
    TRANSACTION_TIMEOUT, "default_transaction_read_only", "local_preload_libraries", "session_replication_role",
    "transform_null_equals", "row_security",
})  # fmt: skip
"""Settings that break or redirect every session of the database that does not pin them."""


def options(settings: Mapping[str, str] = EVERYWHERE) -> str:
    """Return the settings as libpq's `options` (manual, "Connection Control Functions")."""
    return " ".join(f"-c {name}={_word(value)}" for name, value in settings.items())


def later(version: int, superuser: bool) -> dict[str, str]:
    """Return what a session sets after connecting, when it knows the server's version and its own role."""
    found = {TRANSACTION_TIMEOUT: "0"} if version >= TRANSACTION_TIMEOUT_SINCE else {}
    if version >= RELATION_KINDS_SINCE.get(version // 10000, TRANSACTION_TIMEOUT_SINCE):
        found[RELATION_KINDS] = "view"
    return found | (dict(SUPERUSER) if superuser else {})


def environment(**more: str) -> dict[str, str]:
    """Return PGOPTIONS for a program of PostgreSQL that logs in as the superuser; `more` are further settings."""
    return {"PGOPTIONS": options({**EVERYWHERE, **SUPERUSER, **more})}


def parameters() -> dict[str, str]:
    """Return the settings as parameters of a connection string for programs that split it at spaces and commas.

    lib/pq sends every parameter that is not its own at connect. Left out are DateStyle, which it sets by itself, and
    the isolation level: an exporter's queries are transactions of one statement.
    """
    plain = {name: value for name, value in EVERYWHERE.items() if not {" ", ","} & set(value)}
    return {**plain, "search_path": "pg_catalog"}


def _word(text: str) -> str:
    return text.replace("\\", "\\\\").replace(" ", "\\ ")
