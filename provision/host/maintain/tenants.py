"""Maintenance of every tenant: the same jobs in its schema, as the tenant. Does IO.

Tenants are taken one after another. A tenant that fails, or takes longer than an hour, does not stop the others; the
job then fails and names it.
"""

from __future__ import annotations

from typing import Any

from provision.errors import ProvisionError
from provision.host.maintain import run
from provision.host.tenants import catalog, login
from provision.plan.schema import Plan

NAMED = 5
"""Failed tenants that the reason names."""


def run_all(
    plan: Plan, facts: dict[str, Any], *, dry: bool = False, say: run.Say = lambda _text: None
) -> dict[str, Any]:
    """Run the job of `facts` for each tenant, and return `facts` with one sentence for each in `tenants`.

    Nothing runs where the database's own run was skipped. Raises DatabaseError.
    """
    if facts["outcome"] == "skipped":
        return facts
    results: dict[str, str] = {}
    failed: list[str] = []
    with login.superuser(plan) as session:
        login.clean_up(session)
        for tenant in catalog.known(session):
            if not tenant.sound:
                results[tenant.name] = "skipped, its schema cannot be used"
                continue
            try:
                with login.acting(plan, session, tenant.name, limit_s=login.LIMIT_S) as acting:
                    done = run.run(plan, facts["job"], dry=dry, url=acting.url)
            except ProvisionError as error:
                done = {"outcome": "failed", "why": f"{error.what}: {error.seen}"}
            results[tenant.name] = _sentence(done)
            failed += [tenant.name] if done["outcome"] == "failed" else []
            say(f"tenant {tenant.name}: {results[tenant.name]}")
    found = facts | {"tenants": results} if results else facts
    if not failed:
        return found
    named = "; ".join(f"tenant {name}: {results[name]}" for name in failed[:NAMED])
    more = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
    before = f"{facts['why']}; " if facts.get("why") else ""
    return found | {"outcome": "failed", "why": f"{before}{named}{more}"}


def _sentence(done: dict[str, Any]) -> str:
    rows = sum(step["rows"] for step in done.get("steps", []) if isinstance(step.get("rows"), int))
    why = f", {done['why']}" if done.get("why") else ""
    return f"{done['outcome']}, {rows} rows in {len(done.get('steps', []))} steps{why}"
