"""Summarise a host in a few lines: for the end of a run of site.yml, and for `provision status`.

`gather` reads the plan and the evidence, `lines` is pure.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from provision import system
from provision.plan import load


def gather(name: str = "") -> dict[str, Any]:
    """Return what the plan and the evidence say of this host; `name` replaces the plan's. Raises HostError."""
    plan = load.load()
    return {
        "name": name or plan.name,
        "host": asdict(plan.host),
        "warnings": plan.warnings,
        "url": plan.url(),
        "pooler_url": plan.pooler_url(),
        "profile": plan.profile,
        "verified": system.evidence("verified"),
        "backup": system.evidence("backup"),
        "drill": system.evidence("drill"),
        "maintenance": system.evidence("maintain").get("jobs", {}),
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """Format those facts; the URL has no password."""
    host, verified = facts["host"], facts["verified"]
    shown = [f"{facts['name']}: {host['os']}, {host['cpus']} CPUs, {host['memory_mb']} MB"]
    if verified:
        extensions = ", ".join(f"{key} {value}" for key, value in sorted(verified["extensions"].items()))
        shown += [
            f"PostgreSQL {verified['server']} with {extensions}",
            f"migration {verified['migration']}, {len(verified.get('tables', []))} tables; verified by writing a memory"
            " and finding it by vector (rolled back)",
        ]
    else:
        shown.append("not verified yet: run site.yml")
    return [
        *shown,
        f"connect: psql '{facts['url']}'",
        *([f"through the poolers: psql '{facts['pooler_url']}'"] if facts.get("pooler_url") else []),
        *_evidence(facts),
        *(f"warning: {text}" for text in facts["warnings"]),
        "next: point the application at this URL; run provision doctor on the host; see docs/ for the runbooks",
    ]


def _evidence(facts: dict[str, Any]) -> list[str]:
    shown = []
    backup, drill = facts["backup"], facts["drill"]
    if backup.get("sets"):
        shown.append(f"backups: {len(backup['sets'])} sets, newest {backup['sets'][-1]['label']}; {backup['window']}")
    shown += [f"backup alarm: {text}" for text in backup.get("alarms", [])]
    if drill:
        shown.append(f"restore test {drill.get('when', '?')}: {'passed' if drill.get('passed') else 'FAILED'}")
    shown += [
        f"maintenance {job}: {last.get('outcome')} {last.get('when', '')}".rstrip()
        for job, last in sorted(facts["maintenance"].items())
    ]
    return shown
