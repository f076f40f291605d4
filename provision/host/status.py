"""Summarise a host in a few lines: for the end of a run of site.yml, and for `provision status`.

`gather` reads the plan and the evidence, `lines` is pure. The URLs name a CA file that exists where they are read: on
the host, or on the controller.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from provision import system
from provision.host.cluster import pooler
from provision.plan import connect, load
from provision.plan.schema import Plan


def gather(name: str = "", *, for_controller: bool = False) -> dict[str, Any]:
    """Return what the plan and the evidence say of this host; `name` replaces the plan's. Raises HostError.

    `for_controller`: the summary is read on the controller, at the end of a run.
    """
    plan = load.load()
    ca = plan.tls.client_ca if for_controller else plan.tls.ca
    application = connect.connection(plan, _application(plan), ca=ca)
    administrator = connect.connection(plan, plan.access.owner, ca=ca)
    return {
        "name": name or plan.name,
        "host": asdict(plan.host),
        "warnings": plan.warnings,
        "url": administrator.url(plan.server.port),
        "application_url": application.url(),
        "pooled": bool(application.pool_port),
        "follows": _follows(plan),
        "connect": f"provision connect {plan.selection()}" if for_controller else "provision connect",
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
    if facts.get("follows"):
        return [
            *shown,
            facts["follows"],
            f"applications: psql '{facts['application_url']}' (the pooler)",
            *(f"warning: {text}" for text in facts["warnings"]),
            "next: provision cluster status and provision doctor on the host; docs/cluster.md",
        ]
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
        f"applications: psql '{facts['application_url']}'" + (" (the pooler)" if facts["pooled"] else ""),
        f"administrators and migrations: psql '{facts['url']}'",
        *_evidence(facts),
        *(f"warning: {text}" for text in facts["warnings"]),
        f"next: {facts['connect']} prints .env and CA (docs/connect-an-application.md); run provision doctor on the"
        " host; docs/README.md lists the runbooks",
    ]


def _follows(plan: Plan) -> str:
    """Describe a host with a pooler alone; "" for any other."""
    if not plan.cluster or not plan.pooler_alone:
        return ""
    target = pooler.target(pooler.FILE)
    found = f"connects to {target}, the primary" if target else "has not found the primary"
    return f"pooler only: PgBouncer {plan.pooler.version} {found} of the cluster {plan.cluster.scope}"


def _application(plan: Plan) -> str:
    """Return the application's role, or the owner where the application has no password of its own."""
    with_password = {each.name for each in plan.access.roles if each.state == "present" and each.has_password}
    return plan.access.application if plan.access.application in with_password else plan.access.owner


def _sets(view: dict[str, Any]) -> str:
    return f"backups: {len(view['sets'])} sets, newest {view['sets'][-1]['label']}; {view['window']}"


def _evidence(facts: dict[str, Any]) -> list[str]:
    shown = []
    backup, drill = facts["backup"], facts["drill"]
    if backup.get("sets"):
        shown.append(_sets(backup))
    if (second := backup.get("second", {})).get("sets"):
        shown.append(f"{_sets(second)}, in the second repository, {second['repository']['place']}")
    shown += [f"backup alarm: {text}" for text in backup.get("alarms", [])]
    if drill:
        shown.append(f"restore test {drill.get('when', '?')}: {'passed' if drill.get('passed') else 'FAILED'}")
    shown += [
        f"maintenance {job}: {last.get('outcome')} {last.get('when', '')}".rstrip()
        for job, last in sorted(facts["maintenance"].items())
    ]
    return shown
