"""What a host is and how it is doing, in a few lines: they end a run of site.yml and `provision status` shows them.

`gather` reads the host's record and evidence, `lines` is pure.
"""

from __future__ import annotations

from typing import Any

from provision.host.backup import plan as evidence
from provision.plan import record


def gather(name: str) -> dict[str, Any]:
    """Give a host's facts: what its last run recorded, and the evidence that its timers left. Raises HostError."""
    known = record.read()
    return {
        "name": name,
        **known.get("about", {}),
        "profile": known.get("profile", ""),
        "verified": known.get("verified", {}),
        "backup": evidence.evidence("backup"),
        "drill": evidence.evidence("drill"),
        "maintenance": evidence.evidence("maintain").get("jobs", {}),
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """Tell those facts; the URL has no password."""
    host, verified = facts.get("host", {}), facts["verified"]
    shown = [f"{facts['name']}: {host['os']}, {host['cpus']} CPUs, {host['memory_mb']} MB"] if host else [facts["name"]]
    if verified:
        extensions = ", ".join(f"{key} {value}" for key, value in sorted(verified["extensions"].items()))
        shown += [
            f"PostgreSQL {verified['server']} with {extensions}",
            f"migration {verified['migration']}, {len(verified.get('tables', []))} tables; a memory was written,"
            " found by its vector and rolled back",
        ]
    else:
        shown.append("nothing has been proved here yet: run site.yml")
    if facts.get("url"):
        shown.append(f"connect: psql '{facts['url']}'")
    return [
        *shown,
        *_evidence(facts),
        *(f"warning: {text}" for text in facts.get("warnings", [])),
        "next: point the application at this URL; provision doctor on the host says what is wrong; docs/ has the pages",
    ]


def _evidence(facts: dict[str, Any]) -> list[str]:
    shown = []
    backup, drill = facts["backup"], facts["drill"]
    if backup.get("sets"):
        shown.append(f"backups: {len(backup['sets'])} sets, newest {backup['sets'][-1]['label']}; {backup['window']}")
    shown += [f"backup alarm: {text}" for text in backup.get("alarms", [])]
    if drill:
        shown.append(f"drill of {drill.get('when', '?')}: {'passed' if drill.get('passed') else 'FAILED'}")
    shown += [
        f"house-keeping, {job}: {last.get('outcome')} {last.get('when', '')}"
        for job, last in sorted(facts["maintenance"].items())
    ]
    return shown
