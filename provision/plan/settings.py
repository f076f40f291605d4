"""Judge the user's settings of PostgreSQL and extensions before anything changes; spell them as the server does. Pure.

Settings come from postgresql_settings, and from `settings` of each role of database_roles and database_extra_roles.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from provision.plan import packages
from provision.tuning import catalogue

ROLES = ("database_roles", "database_extra_roles")
OTHER_WORDS = {"pgvector": "vector", "pg_vector": "vector", "pgcron": "pg_cron", "partman": "pg_partman"}
"""Common wrong names, and the extension's own name."""


def typed(v: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the variables with every valid setting as the server spells it, and the problems of the others."""
    major, problems = v["postgresql_version"], []
    done = catalogue.judge("postgresql_settings", v["postgresql_settings"], major)
    problems += done.problems
    found = {**v, "postgresql_settings": done.values}
    for variable in ROLES:
        roles = []
        for each in v[variable]:
            label = f"{variable}, role {each['name']}, settings"
            own = catalogue.judge(label, each.get("settings") or {}, major, role=True)
            problems += own.problems
            roles.append({**each, "settings": own.values} if each.get("settings") else each)
        found[variable] = roles
    return found, problems


def extensions(v: Mapping[str, Any], host: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return refusals and warnings of database_extensions.

    Accepted are PostgreSQL's own extensions, those whose packages we install, and those with control files on the host;
    `extension_files` is missing if no host was probed.
    """
    major, there = v["postgresql_version"], host.get("extension_files")
    known = {*packages.EXTENSIONS, *packages.contrib(major), *(there or ())}
    refusals, warnings = [], []
    for name in v["database_extensions"]:
        if name in known:
            continue
        label = f"database_extensions has {name!r}"
        near = difflib.get_close_matches(name.lower(), sorted(known), 1, 0.75)
        other = OTHER_WORDS.get(name.lower()) or (near[0] if near else "")
        if other:
            refusals.append(f"{label}, which is not an extension of PostgreSQL {major}: did you mean {other}?")
        elif there is None:
            warnings.append(f"{label}, which only a run on the host can check: install its package on the host first")
        else:
            refusals.append(
                f"{label}: not found in PostgreSQL {major}, in packages that provision installs or on the host; "
                "install its package on the host first, or remove the name"
            )
    return refusals, warnings
