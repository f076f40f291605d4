"""Settings whose value is a list of names, which the server stores quoted (GUC_LIST_QUOTE). Pure.

`SET search_path = 'app, public'` names one schema; `SET search_path = app, public` names two. These functions convert
between the text of such a list and its elements by the rules of the server (SplitIdentifierString, SplitGUCList and
quote_identifier in varlena.c, dumputils.c and ruleutils.c). Extensions cannot define settings of this kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

SCHEMA_LISTS = frozenset({"search_path", "temp_tablespaces"})
"""Their unquoted elements are SQL identifiers: the server folds them to lower case."""
QUOTED_LISTS = SCHEMA_LISTS | {
    "local_preload_libraries",
    "oauth_validator_libraries",
    "session_preload_libraries",
    "shared_preload_libraries",
    "unix_socket_directories",
}
_ELEMENT = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^\s,"](?:[^,]*[^\s,])?))\s*(,|$)')
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")


def is_quoted(name: str) -> bool:
    """Return whether a setting is a list whose elements the server quotes."""
    return name.lower() in QUOTED_LISTS


def elements(name: str, text: str) -> tuple[str, ...]:
    """Return the elements of a list setting's text. Raises ValueError for a text that the server cannot split."""
    if text.strip() in ("", '""'):
        return ()
    found, at, more = [], 0, True
    while more:
        match = _ELEMENT.match(text, at)
        if match is None:
            raise ValueError(f"{text!r} is not a list of names separated by commas")
        quoted, plain, separator = match.groups()
        folds = name.lower() in SCHEMA_LISTS
        if folds and plain is not None and len(plain.split()) > 1:
            raise ValueError(f"{text!r} is not a list of names separated by commas")
        found.append(quoted.replace('""', '"') if plain is None else plain.lower() if folds else plain)
        at, more = match.end(), separator == ","
    return tuple(found)


def text(names: Iterable[str]) -> str:
    """Return the text of a list setting, with every element quoted that is not a plain name."""
    return ", ".join(name if _PLAIN.fullmatch(name) else '"' + name.replace('"', '""') + '"' for name in names)
