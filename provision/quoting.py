"""Quote a text for the format of one target: one function per target. Pure, standard library only.

SQL is quoted by psycopg.sql (`database.identifier` for messages), a shell word by shlex.quote, a part of a URL by
urllib.parse.quote: those are called directly. A text that a target cannot hold raises ValueError; plan.names refuses
such names before a template is rendered.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from urllib.parse import quote

HBA_WORDS = frozenset({"all", "sameuser", "samerole", "samegroup", "replication"})
"""Words of pg_hba.conf that stand for databases or roles when they are not quoted."""
_HBA_BARE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_INI_KEY = re.compile(r"[A-Za-z0-9_.-]+")
_BARE = re.compile(r"[A-Za-z0-9_./:@%+-]+")


def _refuse_control(text: str, target: str) -> None:
    if any(character < " " or character == "\x7f" for character in text):
        raise ValueError(f"{text!r} has a control character, which {target} cannot hold")


def conninfo(parameters: Mapping[str, object]) -> str:
    """Return libpq's key=value string of parameters; None is left out (manual, "Keyword/Value Connection Strings")."""
    return " ".join(f"{key}={_conninfo(str(value))}" for key, value in parameters.items() if value is not None)


def _conninfo(text: str) -> str:
    if "\0" in text:
        raise ValueError(f"{text!r} has a NUL, which libpq cannot hold")
    if _BARE.fullmatch(text):
        return text
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def url(part: str) -> str:
    """Return a part of a URL (user, password, database), percent-encoded."""
    return quote(part, safe="")


def url_path(path: str) -> str:
    """Return a path as the value of a URL's parameter: percent-encoded, but for its slashes."""
    return quote(path, safe="/")


def hba(text: str) -> str:
    """Return a database, role, map or system user for pg_hba.conf, pg_ident.conf or PgBouncer's hba file.

    Keywords, `+role` and `/pattern` keep their meaning; every other text stands for itself.
    """
    _refuse_control(text, "pg_hba.conf")
    if text in HBA_WORDS or _HBA_BARE.fullmatch(text):
        return text
    if text.startswith("+") and len(text) > 1:
        return "+" + hba_name(text[1:])
    if text.startswith("/") and not re.search(r'[\s,"#]', text):
        return text
    return double(text)


def hba_name(text: str) -> str:
    """Return a name for these files that is never a keyword, a group or a pattern to PostgreSQL 15 and older."""
    _refuse_control(text, "pg_hba.conf")
    return text if _HBA_BARE.fullmatch(text) and text not in HBA_WORDS else double(text)


def double(text: str) -> str:
    """Return a name in double quotes, as pg_hba.conf and SQL read it."""
    return '"' + text.replace('"', '""') + '"'


def is_pgbouncer_key(text: str) -> bool:
    """Return whether a text can be a key in PgBouncer's ini, which has no quoting for keys before 1.25."""
    return bool(_INI_KEY.fullmatch(text))


def pgbouncer_key(text: str) -> str:
    """Return a key of PgBouncer's ini: a database or a user. Raises ValueError where it cannot be one."""
    if not is_pgbouncer_key(text):
        raise ValueError(f"{text!r} cannot be a key in PgBouncer's configuration")
    return text


def pgbouncer_value(text: object) -> str:
    """Return a value within a connection string of PgBouncer's ini, which doubles quotes and has no escapes."""
    shown = str(text)
    _refuse_control(shown, "PgBouncer's configuration")
    return shown if _BARE.fullmatch(shown) else "'" + shown.replace("'", "''") + "'"


def pgbouncer_auth(text: str) -> str:
    """Return a user or a verifier for PgBouncer's auth_file."""
    _refuse_control(text, "PgBouncer's auth_file")
    return double(text)


def pgbackrest(text: object) -> str:
    """Return a value or a section of pgbackrest.conf, which has no quoting and strips spaces."""
    shown = str(text)
    _refuse_control(shown, "pgbackrest.conf")
    if shown != shown.strip() or not shown:
        raise ValueError("pgbackrest.conf cannot hold an empty value or spaces at its ends")
    return shown


def systemd(text: str) -> str:
    """Return one quoted word of a unit file, such as an assignment of Environment= (systemd.syntax(7))."""
    _refuse_control(text, "a unit file")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def postgresql_conf(text: str) -> str:
    """Return a quoted value of postgresql.conf."""
    _refuse_control(text, "postgresql.conf")
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def prometheus_label(text: str) -> str:
    """Return a label's value of the text format 0.0.4."""
    return '"' + text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"") + '"'


def yaml(text: str) -> str:
    """Return a scalar of YAML, as a key or a value: JSON is YAML for printable texts."""
    if not text.isprintable():
        raise ValueError(f"{text!r} has a character that YAML cannot hold as it is")
    return json.dumps(text, ensure_ascii=False)


def extra_vars(**variables: str) -> str:
    """Return the words of ansible-playbook that set these variables, for a message."""
    if all(_BARE.fullmatch(value) for value in variables.values()):
        return " ".join(f"-e {name}={value}" for name, value in variables.items())
    return f"-e {shlex.quote(json.dumps(variables, ensure_ascii=False))}"


def visible(text: str, *, lines: bool = False) -> str:
    """Return a text from outside for a terminal or a report, with what is not printable as escapes.

    These are control characters (ESC starts a terminal's commands), marks that reverse the direction of text, invisible
    characters and line ends; with `lines`, line feeds and tabs are kept. For every text that comes from a database, a
    log, a file or the network.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or (lines and each in "\n\t") else each.encode("unicode_escape").decode()
        for each in text
    )


TARGETS: Mapping[str, Callable[[str], str]] = {
    "pg_hba": hba,
    "pg_hba name": hba_name,
    "pgbouncer key": pgbouncer_key,
    "pgbouncer value": pgbouncer_value,
    "pgbouncer auth": pgbouncer_auth,
    "pgbackrest": pgbackrest,
    "systemd": systemd,
    "postgresql.conf": postgresql_conf,
    "yaml": yaml,
}
"""Targets for templates: `{{ name | minion.provision.quoted('pg_hba') }}`."""
