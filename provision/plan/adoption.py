"""Judge whether a cluster that was set up by hand can be taken over as it is (adopt_cluster). Pure.

Refuses what the roles could not keep: another name or place, a configuration that does not include conf.d, a newer
pgvector than the run would build, and a server that does not run, for it could not be asked what it holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

OUR_CLUSTER = "main"


def refusals(v: Mapping[str, Any], host: Mapping[str, Any], pgvector: str) -> list[str]:
    """Return the objections to the adoption of adopt_cluster; `pgvector` is the version that the run would install."""
    adopt, major = v["adopt_cluster"], str(v["postgresql_version"])
    ours = f"{major}/{OUR_CLUSTER}"
    there = {f"{each['major']}/{each['name']}": each for each in host["clusters"]}
    if not adopt or (host["ours"] and adopt == ours):
        return []
    if adopt not in there:
        return [f"adopt_cluster {adopt}: this host has {', '.join(there) or 'no cluster'}"]
    if adopt != ours:
        version = adopt.partition("/")[0]
        hint = f"set postgresql_version to {version}" if version != major else "pg_renamecluster can rename it"
        return [f"adopt_cluster {adopt}: only {ours} can be adopted; {hint}"]
    if not there[adopt]["running_pid"]:
        start = f"pg_ctlcluster {adopt.replace('/', ' ')} start"
        return [
            f"adopt_cluster {adopt}: the server is not running, so its contents cannot be read; on the host: {start}"
        ]
    return _of_running(there[adopt], f"adopt_cluster {adopt}", f"/var/lib/postgresql/{adopt}") + _of_pgvector(
        str(host.get("pgvector_version") or ""), v["pgvector_install_method"], pgvector
    )


def _of_running(cluster: Mapping[str, Any], label: str, place: str) -> list[str]:
    found = []
    if cluster["data_directory"] != place:
        found.append(
            f"{label}: its data is in {cluster['data_directory']}; move it to {place}, or mount it there "
            "(pg_ctlcluster stop, then data_directory in postgresql.conf, then start)"
        )
    if not cluster["includes_conf_d"]:
        found.append(
            f"{label}: its postgresql.conf does not include conf.d, where the settings go; add include_dir = 'conf.d'"
        )
    return found


def _of_pgvector(have: str, method: str, requested: str) -> list[str]:
    if method != "source" or _parts(have) <= _parts(requested):
        return []
    return [
        f"pgvector {have} is installed, and {requested} would replace it: set pgvector_version, with its URL and "
        f"checksum, to {have} or newer"
    ]


def _parts(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]
