"""Look after etcd on this host: a snapshot each day, defragmentation, alarms. Does IO, as root.

A snapshot restores the cluster's state (`etcdctl snapshot restore`) after the loss of every member. Defragmentation
stops a member for less than a second at this size; each host does its own, at another time than the others.
Source: etcd's documentation ("Maintenance", "Disaster recovery").
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from provision.errors import DriftError
from provision.host.dcs import admin, apply
from provision.plan.schema import Plan
from provision.system import compact

SNAPSHOTS = Path("/var/lib/etcd/snapshots")
KEPT = 7
WASTE = 2
"""Defragment a file of this many times the size of its content, and more than SMALL_BYTES."""
SMALL_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Maintained:
    """What `maintain` did; sizes in bytes."""

    snapshot: str
    size: int
    in_use: int
    defragmented: bool
    removed: tuple[str, ...]


def maintain(plan: Plan) -> Maintained:
    """Take a snapshot, remove old ones, defragment if needed. Raises HostError, and DriftError for an alarm of etcd."""
    root = apply.root(plan)
    SNAPSHOTS.mkdir(mode=0o700, exist_ok=True)
    for each in SNAPSHOTS.glob("*.part"):  # of a killed run
        each.unlink()
    path = SNAPSHOTS / f"etcd-{compact()}.db"
    part = path.with_suffix(".part")
    with part.open("wb") as stream:
        part.chmod(0o600)
        root.snapshot(stream.write)
    part.rename(path)
    old = sorted(SNAPSHOTS.glob("etcd-*.db"))[:-KEPT]
    for each in old:
        each.unlink()
    status = root.call("maintenance/status", {})
    size, in_use = int(status["dbSize"]), int(status.get("dbSizeInUse", status["dbSize"]))
    wasteful = size > SMALL_BYTES and size > WASTE * in_use
    if wasteful:
        root.call("maintenance/defragment", {})
    if alarms := root.call("maintenance/alarm", {"action": "GET"}).get("alarms"):
        raise DriftError(
            "etcd reports an alarm", where=admin.own(plan), allowed="none",
            seen=", ".join(sorted({str(each.get("alarm")) for each in alarms})),
            run="see docs/cluster.md, Faults",
        )  # fmt: skip
    return Maintained(str(path), size, in_use, wasteful, tuple(each.name for each in old))
