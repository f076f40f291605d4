"""Read and write a plan as JSON: the one way to /etc/provision/plan.json. Reads and writes files, nothing else.

`load` is what every command, check and timer on a host calls. It refuses a file that another version of this package
wrote, and names the command that renews it.
"""

from __future__ import annotations

import functools
import json
import types
import typing
from collections.abc import Hashable, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from provision.errors import HostError
from provision.plan.schema import SCHEMA, Plan

PATH = Path("/etc/provision/plan.json")
SITE = "ansible-playbook site.yml -i INVENTORY --tags toolkit"


def text(plan: Plan) -> str:
    """Return the plan as the bytes of plan.json: sorted keys, so that equal plans are equal files."""
    return json.dumps(asdict(plan), indent=2, sort_keys=True) + "\n"


def load(path: Path | None = None) -> Plan:
    """Read the plan of this host, from PATH unless `path` is given.

    Raises HostError where there is none, where it cannot be read or understood, or where its schema is another.
    """
    path = path or PATH
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise HostError(
            f"cannot read {path}",
            seen=str(error),
            allowed="a host that site.yml has converged; root or a member of the group postgres",
            run=SITE,
        ) from None
    seen = found.get("schema") if isinstance(found, dict) else None
    if seen != SCHEMA:
        raise HostError(
            f"{path} was written by another version", seen=f"schema {seen}", allowed=f"schema {SCHEMA}", run=SITE
        )
    return of(found, str(path))


def of(values: Mapping[str, Any], where: str = "plan") -> Plan:
    """Make a plan of plain values, the opposite of dataclasses.asdict. Raises HostError for a damaged one."""
    try:
        plan: Plan = _make(Plan, values)
    except KeyError as error:
        raise HostError(f"{where} was written by another version", seen=f"no field {error}", run=SITE) from None
    except (TypeError, ValueError) as error:
        raise HostError("the plan is damaged", where=where, seen=f"{type(error).__name__}: {error}", run=SITE) from None
    return plan


def _make(kind: Any, value: Any) -> Any:
    """Make a value of a type annotation: a dataclass, a tuple of one type, a mapping, an optional, or a plain one."""
    if isinstance(kind, type) and is_dataclass(kind):
        hints = _hints(kind)
        return kind(**{field.name: _make(hints[field.name], value[field.name]) for field in fields(kind)})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return tuple(_make(arguments[0], each) for each in value)
    if origin in (typing.Union, types.UnionType):
        inner = next(each for each in arguments if each is not type(None))
        return None if value is None else _make(inner, value)
    if isinstance(kind, type) and kind in (str, int, bool) and not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


@functools.cache
def _hints(kind: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(kind)
