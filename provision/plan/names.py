"""Judge every name that becomes an identifier, and derive names from others. Pure, standard library only.

`refusals` judges all variables of a run at once. An accepted name works in SQL, connection strings, URLs, access rules,
dumps and every configuration file. A name that PgBouncer does not support is accepted for a database, which clients
then reach directly (`warnings`), and refused for a pool.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from provision import quoting

LONGEST_BYTES = 63
"""NAMEDATALEN - 1: the server truncates longer names without an error."""
OF_OWNER = ("app", "readonly", "backup", "monitor", "pooler", "replica", "rewind", "member")
"""Login roles whose names are the owner's with a suffix; replica, rewind and member are for members of a cluster."""
RESERVED = frozenset({"postgres", "template0", "template1", "public", "none", "pgbouncer", *quoting.HBA_WORDS})
"""Databases, roles and words of the server, its access rules and the pooler."""
OF_ROLES = frozenset({"public", "none"})
"""Those that a database can have all the same; the server reserves pg_ for roles alone too."""
SCRATCH = re.compile(r".*_(?:restoring|verify)_[0-9a-f]{12}", re.DOTALL)
"""Names that `scratch` makes."""
_PLAIN = re.compile(r"[a-z_][a-z0-9_-]*")
_EXTENSION = re.compile(r"[a-z0-9_][a-z0-9_-]*")
_MAP = re.compile(r"[A-Za-z0-9_-]+")
_UNSAFE = {
    '"': "which every quoted identifier must double",
    "\\": "which pg_ident.conf and connection strings read as an escape",
    ",": "which separates names in access rules",
    "{": "which Ansible reads as a template",
    "}": "which Ansible reads as a template",
}


def derived(name: str, suffix: str) -> str:
    """Return name + suffix within the server's limit: a longer one is shortened, with a hash of the name.

    The result is never `name` itself, and differs for different names.
    """
    whole = name + suffix
    if len(whole.encode()) <= LONGEST_BYTES:
        return whole
    mark = f"_{hashlib.sha256(name.encode()).hexdigest()[:8]}{suffix}"
    return name.encode()[: LONGEST_BYTES - len(mark.encode())].decode(errors="ignore") + mark


def of_owner(owner: str, kind: str) -> str:
    """Return an owner's role of a kind. Raises ValueError for a name that the server would truncate."""
    name = f"{owner}_{kind}"
    if len(name.encode()) > LONGEST_BYTES:
        raise ValueError(f"{name} has {len(name.encode())} bytes: expected at most {LONGEST_BYTES}")
    return name


def with_passwords(owner: str) -> tuple[str, str, str]:
    """Return the roles that log in with a password and have a pool: owner, application, read-only."""
    return owner, f"{owner}_app", f"{owner}_readonly"


SECOND = "_2"


def second_login(role: str) -> str:
    """Return the name of a role's second login, which gives it two passwords at once."""
    return role + SECOND


def first_login(role: str) -> str | None:
    """Return the role whose second login has this name, None for a name that no second login has."""
    return role.removesuffix(SECOND) if role.endswith(SECOND) and role != SECOND else None


def scratch(name: str, purpose: str) -> str:
    """Return a unique name for a new scratch database; it ends in a random token."""
    return derived(name, f"_{purpose}_{secrets.token_hex(6)}")


def problem(name: str, *, longest: int = LONGEST_BYTES, plain: bool = False, role: bool = True) -> str:
    """Return why a name cannot be that of a role, or without `role` that of a database; "" if it can.

    `plain` is for the main database and its owner, whose names also appear in shells, units and files.
    """
    if plain and (not _PLAIN.fullmatch(name) or name in RESERVED or name.startswith("pg_")):
        return (
            f"expected 1 to {longest} of a to z, digits, _ and -, beginning with a letter or _, not with pg_, and none "
            f"of {', '.join(sorted(RESERVED))}"
        )
    return _unsafe(name) or _taken(name, role) or _too_long(name, longest)


def reference_problem(name: str) -> str:
    """Return why a name cannot refer to a role or database that exists, such as template1; "" if it can."""
    return _unsafe(name) or _too_long(name, LONGEST_BYTES)


def _unsafe(name: str) -> str:
    if not name:
        return "expected a name"
    for character in name:
        if character in _UNSAFE:
            return f"expected a name without {character}, {_UNSAFE[character]}"
        if not character.isprintable() or (character.isspace() and character != " "):
            return f"expected a name without the character U+{ord(character):04X}, which is not printable"
    if name != name.strip():
        return "expected a name without leading or trailing spaces"
    if name[0] in "/+":
        return f"expected a name that does not begin with {name[0]}, which has a special meaning in pg_hba.conf"
    if name != unicodedata.normalize("NFC", name):
        return f"expected the composed form (NFC) {unicodedata.normalize('NFC', name)!r}, which clients send"
    return ""


def _taken(name: str, role: bool) -> str:
    reserved = RESERVED if role else RESERVED - OF_ROLES
    if name.casefold() in reserved:
        return f"expected a name other than {', '.join(sorted(reserved))}"
    if role and name.casefold().startswith("pg_"):
        return "expected a name that does not begin with pg_, which the server reserves"
    if SCRATCH.fullmatch(name):
        return "expected another ending: the names of scratch databases end like this one"
    return ""


def _too_long(name: str, longest: int) -> str:
    size = len(name.encode())
    if size <= longest:
        return ""
    why = "PostgreSQL truncates longer names"
    if longest < LONGEST_BYTES:
        why = f"{' and '.join(f'NAME_{kind}' for kind in OF_OWNER[:2])} and others are derived from it"
    return f"expected at most {longest} bytes, it has {size}: {why}"


def refusals(v: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each name in the variables that cannot be used. `v` is every option, typed."""
    return [*_each(v), *_clashes(v), *_others(v)]


def warnings(v: Mapping[str, Any]) -> list[str]:
    """Warn about databases that the pooler cannot serve."""
    return [
        f"database {name!r} is reached on port {v['postgresql_port']} only: PgBouncer supports only A to Z, a to z, "
        "digits, _ . and - in names"
        for name in v["database_extra_databases"]
        if not quoting.is_pgbouncer_key(str(name))
    ]


def roles(v: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every login role with its place in the variables."""
    for variable in ("database_roles", "database_extra_roles"):
        for number, role in enumerate(v[variable], 1):
            yield f"{variable}, role {number}", role


def _each(v: Mapping[str, Any]) -> Iterator[str]:
    suffix = max(len(kind) for kind in OF_OWNER) + 1
    owner, owner_limit = v["database_owner"], LONGEST_BYTES - suffix
    rows: list[tuple[str, Any, str]] = [
        ("database_name", v["database_name"], problem(v["database_name"], plain=True)),
        ("database_owner", owner, problem(owner, plain=True, longest=owner_limit)),
    ]
    own = {owner, *(f"{owner}_{kind}" for kind in OF_OWNER)}  # judged with the owner
    rows += [
        (f"{place}: name", each["name"], problem(each["name"])) for place, each in roles(v) if each["name"] not in own
    ]
    rows += [
        (
            "database_extra_databases: the name",
            name,
            problem(name, role=False) if isinstance(name, str) else "expected it in quotes",
        )
        for name in v["database_extra_databases"]
    ]
    yield from (f"{where} is {name!r}: {why}" for where, name, why in rows if why)
    present = {each["name"] for _, each in roles(v) if each.get("state", "present") == "present"}
    for name, holder in v["database_extra_databases"].items():
        if not isinstance(holder, str) or holder not in present:
            yield (
                f"database_extra_databases.{name} is {holder!r}: expected a login role of database_roles or "
                "database_extra_roles"
            )


def _clashes(v: Mapping[str, Any]) -> Iterator[str]:
    databases = [("database_name", v["database_name"])]
    databases += [("database_extra_databases", str(name)) for name in v["database_extra_databases"]]
    yield from _twice("database", databases)
    yield from _twice("role", [(place, each["name"]) for place, each in roles(v)])


def _twice(kind: str, named: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Refuse equal names, and names that differ only in case: SQL folds unquoted names."""
    seen: dict[str, tuple[str, str]] = {}
    for place, name in named:
        key = unicodedata.normalize("NFKC", name).casefold()
        if key not in seen:
            seen[key] = (place, name)
            continue
        before, other = seen[key]
        difference = "" if other == name else ", which differs only in case or Unicode form"
        yield f"{place}: {kind} {name!r} repeats {before} {other!r}{difference}: expected each {kind} once"


def _others(v: Mapping[str, Any]) -> Iterator[str]:
    for name in v["database_extensions"]:
        if not _EXTENSION.fullmatch(name) or len(name) > LONGEST_BYTES:
            yield f"database_extensions has {name!r}: expected an extension's name: a to z, digits, _ and -"
    for role, size in v["pgbouncer_pools"].items():
        if size and not quoting.is_pgbouncer_key(str(role)):
            yield (
                f"pgbouncer_pools.{role}: PgBouncer supports only A to Z, a to z, digits, _ . and - in names: remove "
                f"the role from pgbouncer_pools; it can connect directly on port {v['postgresql_port']}"
            )
    for number, line in enumerate(v["postgresql_maps"], 1):
        yield from (f"postgresql_maps, line {number}: {text}" for text in _map(line))


def _map(line: Mapping[str, Any]) -> Iterator[str]:
    name, system, role = str(line["map"]), str(line["system"]), str(line["role"])
    if not _MAP.fullmatch(name) or len(name) > LONGEST_BYTES:
        yield f"map {name!r}: expected letters, digits, - and _"
    if not system:
        yield f"system {system!r}: expected the name of a certificate or a system user, or a pattern beginning with /"
    if role == r"\1" and system.startswith("/"):
        return
    why = "" if role == "postgres" else problem(role)
    if why:
        yield f"role {role!r}: {why}"
