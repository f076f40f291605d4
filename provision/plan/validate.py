"""Judge variables and a probe before anything changes: refusals, then warnings. Pure.

The input is typed variables, what the module host_plan saw and what the controller read; the output is sentences that
name the variable, the value seen, what is allowed, and the next step. The same inputs give the same verdict.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from provision import compatibility
from provision.distributions import by_codename, of, supported
from provision.plan import (
    adoption,
    credentials,
    names,
    neighbours,
    network,
    places,
    poolers,
    ports,
    schedules,
    sections,
    settings,
    sources,
    tenants,
    topology,
    upgrade,
    versions,
)
from provision.plan.context import Context, Verdict
from provision.tuning.model import MINIMUM_MEMORY_MB

SMALL_SHM_MB = 64
SMALL_MEMORY_MB = 1024
OUR_CLUSTER = adoption.OUR_CLUSTER
RESTORED = "restored"
"""How copies begin that `provision restore` makes beside ours."""
IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")
BCRYPT = re.compile(r"[$]2[aby][$]\d\d[$].{53}")
OWNED = {
    "port": "postgresql_port",
    "listen_addresses": "postgresql_listen_addresses",
    "shared_preload_libraries": "postgresql_preload_libraries",
    **dict.fromkeys(
        ("data_directory", "config_file", "hba_file", "ident_file", "external_pid_file", "unix_socket_directories"),
        "nothing (Debian's paths are required)",
    ),
    "password_encryption": "nothing (SCRAM is required)",
    "ssl": "tls_enabled",
    **dict.fromkeys(("ssl_cert_file", "ssl_key_file", "ssl_ca_file"), "tls_provided_certificate and related variables"),
    "ssl_min_protocol_version": "postgresql_tls_minimum_version",
}
"""Settings that roles write themselves, and the variable that changes each."""


def judge(
    v: Mapping[str, Any], host: Mapping[str, Any], profile: Mapping[str, Any], context: Context, pgvector: str
) -> Verdict:
    """Judge a database host; `pgvector` is the version that it will have."""
    verdict = Verdict()
    _names(v, verdict)
    _extensions(v, host, verdict)
    network.judge(v, host, verdict)
    _system(v, host, verdict)
    places.judge(v, host, verdict)
    _memory(v, host, verdict)
    versions.versions(v, host, context, pgvector, verdict)
    sources.judge(sections.source(v, host["distribution_codename"], context), host, verdict)
    _clusters(v, host, context, pgvector, verdict)
    upgrade.judge(v, host, context, verdict)
    ports.judge(v, host, verdict)
    credentials.passwords(v, profile, context, verdict)
    _pooler(v, host, verdict)
    credentials.certificates(v, context, verdict)
    credentials.backup(v, context, verdict)
    neighbours.judge(v, host, context, verdict)
    topology.judge(v, host, profile, context, verdict)
    poolers.judge(v, host, context, verdict)
    _monitoring(v, verdict)
    _maintenance(v, verdict)
    if context.runs("migrations"):
        verdict.refusals += [
            f"{name} is {v[name]!r}: expected a directory of the controller that exists" for name in context.absent
        ]
    schedules.judge(v, host, verdict)
    return verdict


def judge_other(
    v: Mapping[str, Any], host: Mapping[str, Any], profile: Mapping[str, Any], context: Context, pgvector: str
) -> Verdict:
    """Judge a host beside the databases: one that keeps backups, or one of a cluster with etcd or a pooler alone."""
    del pgvector
    verdict = Verdict()
    _system(v, host, verdict)
    places.system(host, verdict)
    credentials.certificates(v, context, verdict)
    topology.judge(v, host, profile, context, verdict)
    poolers.judge(v, host, context, verdict)
    return verdict


def judge_nothing(
    v: Mapping[str, Any], host: Mapping[str, Any], profile: Mapping[str, Any], context: Context, pgvector: str
) -> Verdict:
    """Let a play through that uses a converged host: a restore must work on a host that is in a bad state."""
    del v, host, profile, context, pgvector
    return Verdict()


def shipped(codename: str) -> tuple[int, str]:
    """Return PostgreSQL's major and pgvector's packaged version ("" for none) that a distribution ships."""
    found = by_codename(codename)
    return (found.postgresql, found.pgvector) if found else (0, "")


def _names(v: Mapping[str, Any], verdict: Verdict) -> None:
    """Refuse unsupported names, and settings that a role owns."""
    verdict.refusals += [*names.refusals(v), *tenants.refusals(v)]
    verdict.warnings += names.warnings(v)
    for setting in sorted(set(v["postgresql_settings"]) & set(OWNED)):
        verdict.refusals.append(f"postgresql_settings.{setting}: set {OWNED[setting]} instead")


def _extensions(v: Mapping[str, Any], host: Mapping[str, Any], verdict: Verdict) -> None:
    refusals, warnings = settings.extensions(v, host)
    verdict.refusals += refusals
    verdict.warnings += warnings


def _system(v: Mapping[str, Any], host: Mapping[str, Any], verdict: Verdict) -> None:
    found = of(host["distribution"], host["distribution_version"])
    if found is None:
        verdict.refusals.append(f"operating system {host['os']}: supported are {supported()}")
    elif not found.tested:
        verdict.warnings.append(f"{host['os']} takes the same path as Debian, but is not tested")
    if not host["root"]:
        verdict.refusals.append("not root: the run needs sudo; run: provision bootstrap HOST")
    if not host["systemd"] and v["plan_systemd_required"]:
        verdict.refusals.append(
            "systemd is not running, so no service can be started: use a host or container with systemd, or set "
            "plan_systemd_required to false when you build an image"
        )
    elif not host["systemd"]:
        major = v["postgresql_version"]
        verdict.warnings.append(
            f"systemd is not running: start the server with pg_ctlcluster {major} main start after each boot; the "
            "pooler, the exporters and every timer (dumps, backups, restore tests, maintenance) are left out"
        )
    lock = host["package_lock"]
    if lock:
        verdict.refusals.append(
            f"{lock['path']} is held by process {lock['pid']} ({lock['command']}): let it finish, then run again "
            "(plan_packages_wait sets how long to wait)"
        )


def _memory(v: Mapping[str, Any], host: Mapping[str, Any], verdict: Verdict) -> None:
    memory, shm, least = host["memory_mb"], host["shm_mb"], v["plan_minimum_memory_mb"]
    if least < MINIMUM_MEMORY_MB:
        verdict.refusals.append(f"plan_minimum_memory_mb is {least}: expected {MINIMUM_MEMORY_MB} or more")
    if memory < least:
        verdict.refusals.append(
            f"the host has {memory} MB of memory: at least {least} MB are required (plan_minimum_memory_mb)"
        )
    elif memory < SMALL_MEMORY_MB:
        verdict.warnings.append(f"{memory} MB of memory are enough to start, but not to build a large HNSW index")
    if shm <= SMALL_SHM_MB:
        verdict.warnings.append(
            f"shared memory (/dev/shm) has {shm} MB, which limits parallel index builds: give a container --shm-size 1g"
        )


def _clusters(v: Mapping[str, Any], host: Mapping[str, Any], context: Context, pgvector: str, verdict: Verdict) -> None:
    major = str(v["postgresql_version"])
    verdict.adopting = not host["ours"] and v["adopt_cluster"] == f"{major}/{OUR_CLUSTER}"
    verdict.refusals += adoption.refusals(v, host, pgvector)
    for cluster in host["clusters"]:
        label = f"{cluster['major']}/{cluster['name']} ({cluster['data_directory']}, port {cluster['port']})"
        if cluster["major"] == major and cluster["name"] == OUR_CLUSTER:
            if cluster["version_file"] not in ("", major):
                verdict.refusals.append(
                    f"cluster {label} holds data of PostgreSQL {cluster['version_file']}, postgresql_version is "
                    f"{major}: see docs/move-to-another-major.md"
                )
            elif not host["ours"] and not host["cluster_half_made"] and not verdict.adopting:
                verdict.refusals.append(
                    f"cluster {label} exists and was not created by provision: use a new host, or preview its adoption "
                    f"with -e adopt_cluster={major}/{OUR_CLUSTER} --check --diff (docs/adopt-an-existing-database.md)"
                )
        elif upgrade.allowed(cluster, host, context) or (
            cluster["major"] == major and cluster["name"].startswith(RESTORED)
        ):
            continue
        elif cluster["running_pid"]:
            way = f"{upgrade.way(cluster, host, int(major))} ({upgrade.PAGE})"
            verdict.refusals.append(
                f"cluster {label} of PostgreSQL {cluster['major']} is running (process {cluster['running_pid']}), "
                f"postgresql_version is {major}: the cluster was left running; {way}"
            )
        elif seen := upgrade.stopped(cluster, host, context, int(major)):
            verdict.refusals.append(seen)
    for unknown in [] if host["cluster_half_made"] else host["unknown_clusters"]:
        if unknown["data_directory"] == f"/var/lib/postgresql/{major}/{OUR_CLUSTER}":
            verdict.refusals.append(
                f"{unknown['data_directory']} holds data of PostgreSQL {unknown['version_file']} that pg_lsclusters "
                "does not know: move it away, or register it with pg_createcluster"
            )


def _pooler(v: Mapping[str, Any], host: Mapping[str, Any], verdict: Verdict) -> None:
    package = host["package_versions"]["pgbouncer"]
    if package:
        verdict.notices += compatibility.pooler_warnings(package, v["pgbouncer_accept_advisories"])


def _monitoring(v: Mapping[str, Any], verdict: Verdict) -> None:
    where = v["monitoring_listen_address"]
    if v["monitoring_exporters"] and where not in ports.LOOPBACKS and not v["tls_enabled"]:
        verdict.refusals.append(
            f"monitoring_listen_address is {where}, where metrics would travel unencrypted: set tls_enabled to true, "
            "or listen on 127.0.0.1 and scrape through a tunnel (docs/monitoring.md)"
        )
    if where in ("", "*", "0.0.0.0", "::"):  # noqa: S104 - refused, not bound
        verdict.refusals.append(f"monitoring_listen_address is {where!r}: expected one address of this host")
    for name, text in v["monitoring_users"].items():
        if not BCRYPT.fullmatch(str(text)):
            verdict.refusals.append(f"monitoring_users.{name}: expected a bcrypt hash (htpasswd -nBC 10 {name})")


def _maintenance(v: Mapping[str, Any], verdict: Verdict) -> None:
    for number, rule in enumerate(v["maintenance_extra_retention"], 1):
        for key in ("table", "column"):
            if not IDENTIFIER.fullmatch(rule[key]):
                verdict.refusals.append(
                    f"maintenance_extra_retention, rule {number}: {key} {rule[key]!r}: expected a to z, digits and _"
                )
