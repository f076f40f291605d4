"""Validate database URLs, translate them for libpq, and describe them without secrets. Pure.

golang-migrate's URL may carry its own options (`x-...`) and, as lib/pq reads it, settings of the server such as
`search_path`; libpq knows neither. A password with an unencoded `@`, `/` or `%` shifts the parts of a URL and
would be printed as a host, port or parameter: such a URL is refused without repeating any part of it.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import quote, unquote, unquote_plus

import psycopg
from psycopg.conninfo import conninfo_to_dict

from provision.errors import UsageError

FORM = "postgresql://USER:PASSWORD@HOST:5432/DATABASE"
SCHEMES = ("postgresql", "postgres")
SHOWN = ("service", "host", "hostaddr", "port", "dbname", "user")
"""Parameters of a description."""
SECRET = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
CHOICES = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "gssencmode": ("disable", "prefer", "require"),
    "channel_binding": ("disable", "prefer", "require"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
}
"""Values that every supported libpq knows."""
NUMBERS = ("connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count",
           "tcp_user_timeout")  # fmt: skip
SERVER = (
    "search_path", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout",
    "transaction_timeout", "deadlock_timeout", "timezone", "role", "datestyle", "intervalstyle", "work_mem",
    "tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "wal_compression",
)  # fmt: skip
"""Settings of the server that URLs often set; the server checks all other names."""
OTHERS = {
    "schema": "search_path=SCHEMA", "currentschema": "search_path=SCHEMA", "schemas": "search_path=SCHEMA",
    "ssl_mode": "sslmode=MODE", "sslaccept": "sslmode=MODE", "sslcertificate": "sslcert=FILE",
    "charset": "client_encoding=UTF8", "encoding": "client_encoding=UTF8", "username": "user=NAME",
    "database": "dbname=NAME", "db": "dbname=NAME", "applicationname": "application_name=NAME",
    "logintimeout": "connect_timeout=SECONDS", "timeout": "connect_timeout=SECONDS",
}  # fmt: skip
"""Parameters of other drivers (lower case), and their equivalents for libpq or the server."""
DRIVERS = {
    "Prisma": ("pgbouncer", "connection_limit", "pool_timeout", "socket_timeout", "statement_cache_size"),
    "JDBC": ("preparethreshold", "sockettimeout", "tcpkeepalive", "stringtype", "rewritebatchedinserts", "sslfactory"),
    "pgx": ("default_query_exec_mode", "statement_cache_capacity", "description_cache_capacity", "pool_max_conns",
            "pool_min_conns"),
    "lib/pq": ("binary_parameters", "disable_prepared_binary_result"),
    "asyncpg": ("command_timeout", "prepared_statement_cache_size", "async_fallback"),
    "node-postgres": ("uselibpqcompat",),
}  # fmt: skip
"""Parameters that only one driver reads."""
SECONDS = {"us": 1e-6, "": 0.001, "ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
"""Units of the server's times; a bare number is milliseconds."""


@dataclass(frozen=True)
class Read:
    """`url` is what libpq reads; `own` are golang-migrate's options (x-...); `server` are settings of the server."""

    url: str
    own: dict[str, str] = field(default_factory=dict)
    server: dict[str, str] = field(default_factory=dict)


def read(text: str) -> Read:
    """Read a URL or key=value string; an empty string is the PG* environment. Raises UsageError."""
    text = text.strip()
    scheme = re.match(r"[\"']?((?:jdbc:)?[A-Za-z][A-Za-z0-9+.-]*):", text)
    if not scheme or "=" in text[: scheme.end()]:
        return _pairs(text)
    if text[0] in "\"'":
        raise _refused("quotes around it", "the URL alone: env files and docker keep quotes as part of the value")
    if not text.startswith(tuple(f"{each}://" for each in SCHEMES)):
        raise _refused(_scheme(text, scheme[1]), FORM)
    if re.search(r"[\s\x00-\x1f\x7f]", text):
        raise _refused("a space or line break in it", f"{FORM}; %20 for a space")
    head, query = _split(text)
    if re.search(r"%(?![0-9A-Fa-f]{2})|%00", text):
        raise _refused("a % without two hex digits after it", "%25 for a percent sign")
    _authority(head)
    return _parameters(head, query)


def parsed(url: str) -> dict[str, str]:
    """Return the parameters of a URL that `read` returned. Raises UsageError."""
    try:
        found = conninfo_to_dict(url)
    except psycopg.Error:  # its message may quote the password
        raise _refused(
            "libpq cannot parse it", f"{FORM} or key=value pairs; a value with spaces in quotes: password='a b'"
        ) from None
    return {key: str(value) for key, value in found.items() if value is not None}


def describe(url: str) -> str:
    """Describe a URL (host, port, database, user) without its password."""
    try:
        known = parsed(read(url).url)
    except UsageError:
        return "an unusable database URL"
    return " ".join(f"{key}={known[key]}" for key in SHOWN if known.get(key)) or "the PG* environment"


def redacted(text: str, url: str) -> str:
    """Return a message of libpq without the secrets of the URL."""
    try:
        known = parsed(read(url).url)
    except UsageError:
        return "not shown, because the URL cannot be parsed"
    for name in SECRET:
        if known.get(name):
            for form in (known[name], quote(known[name], safe=""), quote(known[name])):
                text = text.replace(form, "***")
    return text


def seconds(name: str, text: str) -> float:
    """Read a time as the server writes it (300, 300ms, 5s, 1min) into seconds. Raises UsageError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", text.strip().strip("'"))
    if match is None or match[2] not in SECONDS:
        raise _refused(f"parameter {name} is not a time", "300 (milliseconds), 300ms, 5s, 1min")
    return float(match[1]) * SECONDS[match[2]]


def _refused(seen: str, allowed: str) -> UsageError:
    return UsageError("the database URL cannot be used", seen=seen, allowed=allowed)


def _scheme(text: str, scheme: str) -> str:
    if not text.startswith(f"{scheme}://"):  # perhaps USER:PASSWORD@HOST
        return f"{scheme}: without //" if scheme in SCHEMES else "no scheme"
    driver = scheme.lower().startswith(("pg", "postg", "jdbc:postg", "cockroach", "redshift"))
    return f"scheme {scheme}, " + ("a driver's name for PostgreSQL" if driver else "which is unknown")


def _split(text: str) -> tuple[str, str]:
    """Split off the query as libpq does: everything up to an @ before the first / is user and password."""
    credentials = re.match(r"\w+://[^@/]*@", text)
    start = credentials.end() if credentials else 0
    head, _, query = text[start:].partition("?")
    if "@" in head + query:
        raise _refused(
            "more than one @, or an @ or / inside the password",
            "one @, between password and host; in a password, write %40 for @, %2F for /, %3A for :, %25 for %",
        )
    return text[:start] + head, query


def _authority(head: str) -> None:
    """Judge hosts and ports. Without an @, an apparent port may be a password: it is not repeated."""
    rest = head.partition("://")[2]
    _, at, where = rest.rpartition("@")
    for each in where.partition("/")[0].split(","):
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.]*(?:%25[\w.-]+)?\]|[^:\[\]]*)(?::(.*))?", each)
        if match is None:
            raise _refused("a [ or ] that does not enclose an address", "an IPv6 address in brackets: [::1]:5432")
        port = match[2] or ""
        if ":" in port and re.fullmatch(r"[0-9A-Fa-f:.]+", each):
            raise _refused("an IPv6 address without brackets", "[::1]:5432")
        if port and not _is_port(port):
            shown = f"port {port}" if at else "a port that is not a number, or a password without @HOST"
            raise _refused(shown, f"1 to 65535 after the host: {FORM}")


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 1 <= int(text) <= 65535


def _parameters(head: str, query: str) -> Read:
    own: dict[str, str] = {}
    libpq: list[str] = []
    options: list[str] = []
    more: list[str] = []
    for pair in filter(None, query.split("&")):
        raw, equals, value = pair.partition("=")
        name = unquote(raw)
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.-]*", name, re.ASCII):
            raise _refused("a parameter without a name or without =", "?sslmode=verify-full&connect_timeout=5")
        if name.startswith("x-"):
            own[name] = unquote_plus(value)
        elif name == "options":
            options.append(unquote(value))
        elif name in keywords():
            _value(name, unquote(value))
            libpq.append(pair)
        elif name == "ssl":
            if value != "true":
                raise _refused(f"parameter ssl={unquote(value)}", "ssl=true, or sslmode=disable")
            libpq.append("sslmode=require")
        else:
            _name(name)
            more.append(f"-c {name}={_escaped(unquote_plus(value))}")
    options += more
    libpq += [f"options={quote(' '.join(options), safe='')}"] if options else []
    url = f"{head}?{'&'.join(libpq)}" if libpq else head
    return Read(url, own, settings(parsed(url).get("options", "")))


def _pairs(text: str) -> Read:
    known = parsed(text)
    for name, value in known.items():
        _value(name, value)
    return Read(text, server=settings(known.get("options", "")))


def _value(name: str, value: str) -> None:
    """Refuse a value that libpq would refuse late or with a misleading message."""
    if name == "port" and any(each and not _is_port(each) for each in value.split(",")):
        raise _refused(f"port {value}", "1 to 65535")
    if name in NUMBERS and not re.fullmatch(r"-?[0-9]+", value):
        raise _refused(f"parameter {name}={value}", "an integer")
    allowed = CHOICES.get(name)
    if allowed and value and value not in allowed:
        near = difflib.get_close_matches(value, allowed, 1)
        raise _refused(f"parameter {name}={value}", ", ".join(allowed) + (f"; did you mean {near[0]}?" if near else ""))


def _name(name: str) -> None:
    """Refuse a parameter of another driver, and a misspelt one."""
    lower = name.lower()
    if lower in OTHERS:
        raise _refused(f"parameter {name}", f"{OTHERS[lower]} instead")
    driver = next((driver for driver, names in DRIVERS.items() if lower in names), None)
    if driver:
        raise _refused(f"parameter {name}, which only {driver} reads", "the URL without it")
    near = difflib.get_close_matches(lower, [*keywords(), *SERVER], 1, 0.8)
    if near and lower not in SERVER:
        raise _refused(f"parameter {name}", f"libpq's parameters and settings of the server; did you mean {near[0]}?")


@cache
def keywords() -> tuple[str, ...]:
    """Return the parameters of this machine's libpq."""
    return tuple(option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults())


def settings(options: str) -> dict[str, str]:
    """Return the settings in the parameter `options`: -c name=value, -cname=value and --name=value."""
    words = [re.sub(r"\\(.)", r"\1", word) for word in re.findall(r"(?:\\.|\S)+", options)]
    found = {}
    for number, word in enumerate(words):
        before = words[number - 1] if number else ""
        text = word if before == "-c" else word[2:] if word.startswith(("-c", "--")) else ""
        name, equals, value = text.partition("=")
        if equals:
            found[name.replace("-", "_").lower()] = value
    return found


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")
