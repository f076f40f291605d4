"""Judge apt's sources and packages before anything changes: entries that conflict with ours, holds and pins. Pure.

apt refuses every command of a host on which two entries of one repository and suite name different keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from provision.plan import schema
from provision.plan.context import Verdict

FILE = "/etc/apt/sources.list.d/provision-postgresql.sources"
"""Where role packages places the source; a test compares both."""


def judge(source: schema.Source, host: Mapping[str, Any], verdict: Verdict) -> None:
    """Refuse a host whose apt cannot read its sources, or could not once ours is placed.

    A converged host may need no package: its fault is only reported here, and refused by `uninstallable`.
    """
    placed = any(row["file"] == FILE and _same(row, source) for row in host["sources"])
    # With our entry in place and no fault, apt has accepted them together.
    judged = source.key and (host["sources_fault"] or not placed)
    found = [*_conflicts(source, host["sources"])] if judged else []
    verdict.refusals += found
    # A conflict with our own entry, from an earlier run, is named above.
    if not found:
        (verdict.notices if host["ours"] else verdict.refusals).extend(_fault(source, host))


def _fault(source: schema.Source, host: Mapping[str, Any]) -> list[str]:
    """Name what apt cannot read. A bundle needs none of these sources; a damaged file of ours is placed again."""
    fault = host["sources_fault"]
    if source.kind == "bundle":
        return []
    discs = dict.fromkeys(row["file"] for row in host["sources"] if row["uri"].startswith("cdrom:"))
    found = [f"{file} names a CD-ROM, with which apt-get update fails: remove that entry" for file in discs]
    if not fault or FILE in fault:
        return found
    named = [file for file in dict.fromkeys(row["file"] for row in host["sources"]) if _mentions(file, fault, host)]
    where = f" (see {', '.join(named)})" if named else ""
    return [
        *found,
        f"apt cannot read the host's sources: {fault}{where}; correct that entry on the host; "
        "apt-get update must then succeed",
    ]


def _conflicts(source: schema.Source, rows: Iterable[Mapping[str, str]]) -> Iterable[str]:
    rows = list(rows)
    ours = [row for row in rows if row["file"] != FILE and _same(row, source) and row["signed_by"] != source.key]
    for file in dict.fromkeys(row["file"] for row in ours):
        key = next(row["signed_by"] for row in ours if row["file"] == file)
        alone = file.startswith("/etc/apt/sources.list.d/") and all(
            _same(row, source) for row in rows if row["file"] == file
        )
        cure = f"on the host: mv {file} {file}.disabled" if alone else f"remove that entry from {file}"
        seen = {"": "without Signed-By", "embedded": "with an embedded key"}.get(key, f"with Signed-By {key}")
        yield (
            f"{file} names {source.uri} {source.suite} {seen}, which conflicts with the entry of this run (Signed-By "
            f"{source.key}): every apt command would fail; {cure}"
        )


def _same(row: Mapping[str, str], source: schema.Source) -> bool:
    """Compare as apt does, without the scheme and the last slash."""
    return (_place(row["uri"]), row["suite"].rstrip("/")) == (_place(source.uri), source.suite)


def _place(uri: str) -> str:
    return uri.partition("://")[2].rstrip("/")


def _mentions(file: str, fault: str, host: Mapping[str, Any]) -> bool:
    return file not in fault and any(row["file"] == file and _place(row["uri"]) in fault for row in host["sources"])


def uninstallable(missing: Iterable[str], source: schema.Source, host: Mapping[str, Any]) -> list[str]:
    """Refuse missing packages that a fault of the sources, a hold or, without a source of our own, a pin withholds."""
    names = set(missing)
    found = _fault(source, host) if names else []
    held = sorted(names & set(host["packages_held"]))
    if held:
        found.append(
            f"{', '.join(held)}: on hold, so apt does not install it; on the host: apt-mark unhold {' '.join(held)}"
        )
    barred = sorted(names & set(host["packages_barred"])) if source.kind == "distribution" else []
    if barred:
        found.append(
            f"{', '.join(barred)}: a pin bars every version that the host's sources have; change it in "
            f"/etc/apt/preferences or /etc/apt/preferences.d (apt-cache policy {barred[0]})"
        )
    return found
