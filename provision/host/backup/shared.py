"""Evidence of backups that the members of a cluster share: restore tests, reference counts, the last dump. Does IO.

Each member keeps it in files, as a single host does. `sync` exchanges the newer ones through etcd, so that every member
can test the backups that another one took and knows the last test. While etcd is silent, a member uses its own files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from provision import system
from provision.errors import HostError
from provision.host.backup.scratch_cluster import KILLED
from provision.host.cluster import access, orders
from provision.host.cluster.dcs import Dcs
from provision.plan.schema import Plan

DUMP = "dump"
NAMES = ("drill", "drill-2", "dump-drill", DUMP)
"""Evidence of which the newest counts."""
FIGURES = "backup-figures"
"""Reference counts, one key for each set."""
SETS_KEPT = 60


def sync(plan: Plan) -> None:
    """Exchange evidence with the other members; nothing on a single host."""
    if not plan.server.patroni:
        return
    try:
        reach = access.of(plan)
        _exchange(Dcs.of(reach), f"{orders.folder(reach.cluster.scope)}backup/")
    except HostError:
        return


def _exchange(dcs: Dcs, folder: str) -> None:
    found = {key.removeprefix(folder): _facts(each.text) for key, each in dcs.read(folder).items()}
    for name in NAMES:
        ours, theirs = _local(name), found.get(name, {})
        if replaces(theirs, ours, os.uname().nodename):
            system.keep(name, theirs)
        elif replaces(ours, theirs, os.uname().nodename):
            dcs.put(f"{folder}{name}", json.dumps(ours, default=str))
    ours = _local(FIGURES).get("sets", {})
    theirs = {key.partition("/")[2]: facts for key, facts in found.items() if key.startswith(f"{FIGURES}/")}
    kept = dict(sorted({**theirs, **ours}.items())[-SETS_KEPT:])
    for label in kept.keys() - theirs.keys():
        dcs.put(f"{folder}{FIGURES}/{label}", json.dumps(kept[label], default=str))
    for label in theirs.keys() - kept.keys():
        dcs.delete(f"{folder}{FIGURES}/{label}")
    if kept != ours:
        system.keep(FIGURES, {"sets": kept})


def replaces(one: Mapping[str, Any], other: Mapping[str, Any], here: str) -> bool:
    """Return whether evidence replaces another piece: the newer one does, and of one run its host's last word. Pure.

    The mark of a running test stays on its host, whose lock distinguishes a running test from a killed one.
    """
    if not one or one == other or one.get("failure") == KILLED:
        return False
    begun = (str(one.get("when", "")), str(other.get("when", "")))
    return begun[0] > begun[1] or (begun[0] == begun[1] and one.get("host") == here)


def _local(name: str) -> dict[str, Any]:
    return {key: value for key, value in system.evidence(name).items() if key != "schema"}


def _facts(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
