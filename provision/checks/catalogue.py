#!/usr/bin/env python3
"""Validate settings with the server's own programs and catalogue: name, type, range, unit, allowed values.

Does IO, read-only, on the host, with the standard library alone (the Ansible module `host_settings` embeds this file).
`postgres -C` validates the server's own settings without a running server. Settings of extensions (a dot in the name)
are known only to a server that has loaded the extension: a running server validates them in a transaction that is
rolled back. Without a running server they pass here, and the rehearsal validates them. Changes nothing.
"""

from __future__ import annotations

import difflib
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)*")
AS_POSTGRES = ("runuser", "-u", "postgres", "--")
# Complaints about a valid setting that this session may not change.
NOT_HERE = ("cannot be changed", "permission denied")


def refusals(settings: Mapping[str, str], programs: Path, configuration: Path, data: Path) -> list[str]:
    """Return one line for each setting (name -> text) that the server would refuse; empty when all are valid.

    `programs` is the directory of the server's programs; where the server is not installed, nothing is refused.
    """
    if not (programs / "postgres").exists():
        return []
    found = [_judge(name, text, programs, configuration, data) for name, text in settings.items()]
    return [f"postgresql_settings.{line}" for line in found if line]


def _judge(name: str, text: str, programs: Path, configuration: Path, data: Path) -> str:
    if not NAME.fullmatch(name):
        return f"{name}: is not a valid name of a setting"
    if "." in name:
        return _judge_extension(name, text, data)
    said = _run(programs / "postgres", "-C", "port", "-D", configuration, f"--{name}={text}")
    if "unrecognized configuration parameter" in said:
        return _unknown(name, _described(programs))
    # A setting that may not be in a file, or an invalid value.
    return f"{name}: {_words(said)}" if f'"{name}"' in said else ""


def _judge_extension(name: str, text: str, data: Path) -> str:
    prefix = name.split(".")[0].lower()
    known = _ask(data, prefix, "SELECT name FROM pg_settings WHERE name LIKE '%.%'").splitlines()
    family = [other for other in known if other.split(".")[0] == prefix]
    if not family:
        return ""
    hidden = "SELECT 1 WHERE current_setting(:'name', true) IS NOT NULL"  # pg_settings leaves some out (NO_SHOW_ALL)
    if name.lower() not in family and not _ask(data, prefix, hidden, name=name):
        return _unknown(name, family)
    said = _ask(
        data, prefix, "BEGIN; SELECT set_config(:'name', :'text', true); ROLLBACK;", errors=True, name=name, text=text
    )
    return "" if not said or any(words in said for words in NOT_HERE) else f"{name}: {_words(said)}"


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, 1, 0.7)
    return f"{name}: this server has no such setting" + (f"; did you mean {near[0]}?" if near else "")


def _described(programs: Path) -> list[str]:
    """Return the names of the server's settings; the server need not run."""
    return [line.split("\t")[0] for line in _run(programs / "postgres", "--describe-config").splitlines()]


def _ask(data: Path, library: str, sql: str, errors: bool = False, **variables: str) -> str:
    """Return the answer of a running server, or (`errors`) its complaint; empty where none runs.

    psql quotes `variables` where the statement has :'name', which it does in its input only.
    """
    try:
        # As postgres, who owns the directory: root would follow a link there.
        port = _call("head", "-n4", data / "postmaster.pid")[0].splitlines()[3]
    except IndexError:
        return ""
    place = ("psql", "-XAtq", "-v", "VERBOSITY=default", "-d", "postgres", "-p", port)
    # Libraries such as auto_explain can be loaded by a session; a library that cannot be loaded is not an error here.
    given = [f"--set={name}={value}" for name, value in {**variables, "library": library}.items()]
    _, loaded = _call(*place, *given, text="LOAD :'library';")
    answer, complaint = _call(*place, *given, text=sql if loaded else f"LOAD :'library'; {sql}")
    return complaint if errors else answer


def _words(said: str) -> str:
    """Return the server's message in one line, without the prefixes of psql and the log."""
    lines = [re.sub(r"^.*?(FATAL|ERROR):\s*", "", line) for line in said.splitlines() if line.strip()]
    return "; ".join(line.strip() for line in lines)


def _run(*words: str | Path) -> str:
    answer, complaint = _call(*words)
    return answer + complaint


def _call(*words: str | Path, text: str | None = None) -> tuple[str, str]:
    command = [*AS_POSTGRES, *map(str, words)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, cwd="/")  # noqa: S603
    return done.stdout, done.stderr
