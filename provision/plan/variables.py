"""Judge the variables of a run against the roles' argument specifications: names, types, choices. Pure.

Every problem is reported, each in one sentence: the variable, the value seen (of a secret, its type), the values
allowed. A scalar where a list belongs is refused, for Ansible would split a string at commas.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from provision.plan import limits

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
KINDS = {"str": "a string", "path": "a path", "int": "an integer", "float": "a number", "bool": "true or false",
         "list": "a list", "dict": "a mapping"}  # fmt: skip
LONGEST = 60
"""Characters of a value that a message shows."""

RENAMED = {
    f"preflight_{name}": f"plan_{name}"
    for name in (
        "profile_name",
        "minimum_disk_mb",
        "minimum_memory_mb",
        "systemd_required",
        "packages_wait",
        "lock_wait",
    )
}
"""Old names that are still read, with a warning, and the new ones."""


def judge(specs: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return typed values by name, and the problems; `specs` is option name -> its specification.

    A value that is missing, or that has a problem, is left out of the values.
    """
    values, problems = {}, []
    for name, spec in specs.items():
        if name not in given:
            if spec.get("required"):
                problems.append(f"{name} is required: {spec['description']}")
            continue
        found: list[str] = []
        value = _value(name, given[name], spec, found)
        problems += found
        if not found:
            values[name] = value
    return values, problems


def unknown(names: Collection[str], known: Collection[str], prefixes: Collection[str]) -> list[str]:
    """Refuse variables that nothing reads: those that begin like one of ours, or are nearly spelt like one.

    `prefixes` are the first words of our variables ("postgresql_"); other names may be the user's own.
    """
    found = []
    for name in sorted(set(names) - set(known)):
        ours = name.startswith(tuple(prefixes))
        near = difflib.get_close_matches(name, known, 1, 0.6 if ours else 0.93)
        if near:
            found.append(f"unknown variable {name}: did you mean {near[0]}?")
        elif ours:
            found.append(f"unknown variable {name}: see the README of the role {name.partition('_')[0]}")
    return found


def _value(where: str, value: Any, spec: Mapping[str, Any], problems: list[str]) -> Any:
    kind, secret = spec.get("type", "str"), bool(spec.get("no_log"))
    read = {"list": _list, "dict": _dict}.get(kind)
    if read:
        return read(where, value, spec, problems)
    plain = _scalar(value, kind)
    if kind in ("str", "path") and (isinstance(value, float) or (secret and not isinstance(value, str))):
        plain = None  # YAML has changed it: 0.10 is 0.1, 012 is 10, 1e5 is 100000.0
    if plain is None:
        hint = "; put it in quotes" if kind in ("str", "path") and _is_scalar(value) else _whole(value, kind)
        problems.append(_message(where, value, KINDS[kind], secret=secret) + hint)
        return None
    outside = _outside(where, plain)
    if outside:
        problems.append(_message(where, value, outside, secret=secret))
        return None
    choices = spec.get("choices")
    if choices and plain not in choices:
        near = difflib.get_close_matches(str(plain), [str(each) for each in choices], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        problems.append(_message(where, value, ", ".join(str(each) or "empty" for each in choices)) + hint)
    return plain


def _scalar(value: Any, kind: str) -> Any:
    """Return a plain value of the kind, or None for one that is not of it."""
    if kind in ("str", "path"):
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            return None
        return "".join((value,)) if isinstance(value, str) else str(value + 0)
    text = str(value).strip().lower() if isinstance(value, (str, int, float)) else ""
    if kind == "bool":
        return True if text in TRUE else False if text in FALSE else None
    if isinstance(value, bool) or not text:
        return None
    # int() and float() also read 1_5, digits of other scripts, nan and inf.
    number = r"[+-]?[0-9]+" if kind == "int" else r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]{1,2})?"
    if len(text) > LONGEST or not re.fullmatch(number, text):
        return None
    return int(text) if kind == "int" else float(text)


def _is_scalar(value: Any) -> bool:
    return value is not None and not isinstance(value, (Mapping, Sequence))


def _whole(value: Any, kind: str) -> str:
    whole = kind == "int" and isinstance(value, float) and value.is_integer() and abs(value) < limits.LARGEST
    return f"; write {int(value)}" if whole else ""


def _outside(where: str, value: Any) -> str:
    """Return what is allowed for an option (`name`, `name.key`, `name[0].key`), if the value is not."""
    name = re.sub(r"\[[^]]*\]", "", where)
    if isinstance(value, str):
        if not value.isprintable() and name not in limits.ANY_TEXT:
            # Each may end up in a file of one line for each value.
            at_end = value.endswith("\n") and value[:-1].isprintable()
            return "one line of printable characters" + (", without a line break at its end" if at_end else "")
        if not value and name in limits.NOT_EMPTY:
            return "no empty element"
        pattern, described = limits.PATTERNS.get(name, ("", ""))
        return described if value and pattern and not re.fullmatch(pattern, value) else ""
    if isinstance(value, bool) or not isinstance(value, int):
        return ""
    least, most = limits.RANGES.get(name, (0, limits.LARGEST))
    return "" if least <= value <= most else f"{least} to {most}"


def _list(where: str, value: Any, spec: Mapping[str, Any], problems: list[str]) -> Any:
    if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
        secret = bool(spec.get("no_log"))
        hint = f"; write [{_shown(value)}]" if isinstance(value, (str, int, float)) and not secret else ""
        problems.append(_message(where, value, KINDS["list"], secret=secret) + hint)
        return None
    inner = {"type": spec.get("elements", "raw"), "options": spec.get("options")}
    if inner["type"] == "raw":
        return [plain(each) for each in value]
    return [_value(f"{where}[{number}]", each, inner, problems) for number, each in enumerate(value)]


def _dict(where: str, value: Any, spec: Mapping[str, Any], problems: list[str]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(_message(where, value, KINDS["dict"], secret=bool(spec.get("no_log"))))
        return None
    options: Mapping[str, Any] | None = spec.get("options")
    if not options:
        return _free(where, value, bool(spec.get("no_log")), problems)
    for key in value:
        if key not in options:
            near = difflib.get_close_matches(str(key), list(options), 1)
            allowed = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(options)}"
            problems.append(f"{where}.{key}: unknown key; {allowed}")
    found = {}
    for key, inner in options.items():
        if key in value and value[key] is None and not inner.get("required"):
            found[key] = inner.get("default")  # as if it were left out
        elif key in value:
            found[key] = _value(f"{where}.{key}", value[key], inner, problems)
        elif inner.get("required"):
            problems.append(f"{where}.{key} is required: {inner['description']}")
        elif "default" in inner:
            found[key] = inner["default"]
    return found


def _free(where: str, value: Mapping[Any, Any], secret: bool, problems: list[str]) -> Any:
    """Judge the values of a mapping with keys of the user's own."""
    kind = limits.VALUES.get(where)
    if not kind:
        return plain(value)
    inner = {"type": kind, "no_log": secret}
    return {str(plain(key)): _value(f"{where}[{plain(key)}]", each, inner, problems) for key, each in value.items()}


def plain(value: Any) -> Any:
    """Return a value made of plain types alone, whatever subclasses of them Ansible uses to tag values."""
    if isinstance(value, Mapping):
        return {plain(key): plain(each) for key, each in value.items()}
    if isinstance(value, str):
        return "".join((value,))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return value + 0
    if isinstance(value, (list, tuple, set)):
        return [plain(each) for each in value]
    return str(value)


def _message(where: str, value: Any, allowed: str, *, secret: bool = False) -> str:
    seen = f"a secret of type {type(plain(value)).__name__}" if secret else _shown(value)
    return f"{where} is {seen}: expected {allowed}"


def _shown(value: Any) -> str:
    """Show a value shortened; of a mapping its keys alone, for its values may be secrets."""
    if isinstance(value, Mapping):
        return "a mapping of " + (", ".join(map(str, value)) or "nothing")
    text = repr(plain(value))
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."
