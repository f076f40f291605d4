"""Judge a host and what is wanted of it before anything is changed: refusals, then warnings. Pure.

Input is what the Ansible module host_probe saw and what the playbook wants; output is sentences that say what was
seen, what is allowed and what to do next. The same facts always give the same answer, but for `today`.
"""

from __future__ import annotations

import datetime
import difflib
import re
from dataclasses import dataclass, field
from typing import Any

from provision import compatibility, distributions
from provision.distributions import ARCHITECTURES
from provision.errors import UsageError
from provision.plan import adoption, hba, secrets
from provision.tuning import pools

DEVELOPMENT_PASSWORD = "minion_secret"  # noqa: S105 - the published one, known so that prod can refuse it
MINIMUM_PASSWORD_LENGTH = 20
SMALL_SHM_MB = 64
SMALL_MEMORY_MB = 1024
OUR_CLUSTER = adoption.OUR_CLUSTER
RESTORED = "restored"  # copies that `provision restore` makes beside it
NAME = re.compile(r"[a-z_][a-z0-9_-]{0,62}")
RESERVED = {"postgres", "template0", "template1", "all", "replication", "sameuser", "samerole", "public"}
LONGEST_CERTIFICATE_DAYS = 825  # what clients on macOS take at most
# Settings that roles write themselves, and the variable that changes each.
OWNED = {
    "port": "postgresql_port",
    "listen_addresses": "postgresql_listen_addresses",
    "shared_preload_libraries": "postgresql_preload_libraries",
    **dict.fromkeys(
        ("data_directory", "config_file", "hba_file", "ident_file", "external_pid_file", "unix_socket_directories"),
        "nothing (Debian's places are relied on)",
    ),
    "password_encryption": "nothing (SCRAM is relied on)",
    "ssl": "tls_enabled",
    **dict.fromkeys(("ssl_cert_file", "ssl_key_file", "ssl_ca_file"), "tls_provided_certificate and its like"),
    "ssl_min_protocol_version": "postgresql_tls_minimum_version",
}
DEFAULT_MAJOR = 14
BACKUP_ELSEWHERE = " with a repository on another host"
PUBLISHED = {
    "preflight_profile",
    "preflight_host",
    "preflight_warnings",
    "preflight_bundle",
    "preflight_pgvector_version",
    "preflight_serving_port",
    "preflight_adopting",
}  # what preflight itself makes


@dataclass
class Verdict:
    """What must stop the run, and what must only be said."""

    refusals: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    pgvector_version: str = ""
    serving_port: int = 0
    adopting: bool = False
    bundle: dict[str, str] = field(default_factory=dict)  # what roles need to know of a bundle that may be used


def judge(host: dict[str, Any], wanted: dict[str, Any], today: datetime.date) -> Verdict:
    """Judge a probe of a host against the wishes of `roles/preflight/vars/main.yml`."""
    if not wanted["wanted"]:  # a playbook that uses a converged host, and wants nothing else of it
        verdict = Verdict()
        _names(wanted, verdict)
        if not host["record"]:
            verdict.refusals.append("this host was not converged: ansible-playbook site.yml first")
        return verdict
    if "postgresql" not in wanted["wanted"]:  # a host beside the database, such as the one that keeps backups
        verdict = Verdict()
        _names(wanted, verdict)
        _system(host, wanted, verdict)
        _certificates(wanted["wanted"]["tls"], wanted["profile"], verdict)
        return verdict
    verdict = Verdict(pgvector_version=_pgvector_version(host, wanted["wanted"]))
    _names(wanted, verdict)
    _meant(wanted["wanted"], verdict)
    _system(host, wanted, verdict)
    _resources(host, wanted, verdict)
    _versions(host, wanted["wanted"], verdict, today)
    _clusters(host, wanted["wanted"], verdict)
    _ports(host, wanted["wanted"], verdict)
    _credentials(wanted["wanted"], wanted["profile"], verdict)
    _pooler(host, wanted["wanted"]["pooler"], verdict)
    _certificates(wanted["wanted"]["tls"], wanted["profile"], verdict)
    return verdict


def _names(wanted: dict[str, Any], verdict: Verdict) -> None:
    known = set(wanted["known"]) | PUBLISHED
    roles = tuple({f"{name.partition('_')[0]}_" for name in known})
    for name in sorted(set(wanted["given"]) - known):
        # A name that begins like no role's may be the user's own, unless it is nearly one of ours.
        ours = name.startswith(roles)
        near = difflib.get_close_matches(name, known, 1, 0.6 if ours else 0.93)
        if not near and not ours:
            continue
        hint = f"; did you mean {near[0]}?" if near else "; see the README of the role whose name it begins with"
        verdict.refusals.append(f"variable {name}: no role has it{hint}")


def _meant(wanted: dict[str, Any], verdict: Verdict) -> None:
    """Refuse names that SQL, pg_hba or a URL would take for something else, and settings that a role owns."""
    for variable, name in (("database_name", wanted["database"]), ("database_owner", wanted["owner"])):
        if not NAME.fullmatch(name) or name in RESERVED or name.startswith("pg_"):
            verdict.refusals.append(
                f"{variable} {name!r}: allowed are a to z, digits, _ and -, beginning with a letter, 63 at most, and "
                f"none of {', '.join(sorted(RESERVED))}"
            )
    for setting in sorted(set(wanted["postgresql"]["settings"]) & set(OWNED)):
        verdict.refusals.append(f"postgresql_settings.{setting}: set {OWNED[setting]} instead")
    for network in wanted["postgresql"]["allowed_networks"]:
        if network not in hba.KEYWORDS and not hba.is_network(network):
            verdict.refusals.append(
                f"postgresql_allowed_networks {network}: not a network; write 10.0.0.5/32 for one address, "
                f"10.0.0.0/24, {' or '.join(hba.KEYWORDS)}"
            )
    verdict.refusals += hba.problems(wanted["postgresql"]["extra_rules"], tls=wanted["tls"]["enabled"])


def _certificates(tls: dict[str, Any], profile: str, verdict: Verdict) -> None:
    """Refuse what the role tls could not make or place; what is in the files it judges itself."""
    if not tls["enabled"]:
        return
    if len(tls["passphrase"]) < MINIMUM_PASSWORD_LENGTH:
        verdict.refusals.append(
            f"tls_ca_passphrase has {len(tls['passphrase'])} characters, at least {MINIMUM_PASSWORD_LENGTH} are "
            f"needed: provision secrets init inventories/{profile} makes it"
        )
    if not 1 <= tls["valid_days"] <= LONGEST_CERTIFICATE_DAYS:
        verdict.refusals.append(f"tls_valid_days {tls['valid_days']}: allowed are 1 to {LONGEST_CERTIFICATE_DAYS}")
    missing = [name for name, path in tls["provided"].items() if not path]
    if missing and len(missing) < len(tls["provided"]):
        verdict.refusals.append(f"{', '.join(missing)}: empty; a certificate of your own needs all three files")


def _system(host: dict[str, Any], wanted: dict[str, Any], verdict: Verdict) -> None:
    distribution = distributions.of(host["distribution"], host["distribution_version"])
    if distribution and not distribution.tested:
        verdict.warnings.append(f"{host['os']}: takes the same path as Debian, but nobody has tested it")
    elif not distribution:
        verdict.refusals.append(f"operating system {host['os']}: allowed are {distributions.supported()}")
    if not host["root"]:
        verdict.refusals.append("not root: the run needs sudo; run: provision bootstrap HOST")
    if not host["systemd"] and wanted["systemd_required"]:
        verdict.refusals.append(
            "systemd is not running: services could not be started; use a host or container with it, or for an image "
            "that is being built set preflight_systemd_required to false"
        )
    elif not host["systemd"]:
        major = wanted["wanted"]["postgresql"]["version"]
        verdict.warnings.append(
            f"systemd is not running: the server is started by pg_ctlcluster {major} main start, which whoever starts "
            "this machine must call again; left out are the pooler, exporters, and every timer (dumps, backups, "
            "drills, upkeep)"
        )
    lock = host["package_lock"]
    if lock:
        verdict.refusals.append(
            f"{lock['path']} is held by process {lock['pid']} ({lock['command']}): let it finish, then run again "
            "(preflight_packages_wait says how long to wait)"
        )


def _resources(host: dict[str, Any], wanted: dict[str, Any], verdict: Verdict) -> None:
    disk, memory, shm = host["disk_free_mb"], host["memory_mb"], host["shm_mb"]
    if disk < wanted["minimum_disk_mb"]:
        verdict.refusals.append(
            f"disk: {disk} MB free below /var/lib/postgresql, at least {wanted['minimum_disk_mb']} are needed "
            "(preflight_minimum_disk_mb)"
        )
    if memory < wanted["minimum_memory_mb"]:
        verdict.refusals.append(
            f"memory: {memory} MB, at least {wanted['minimum_memory_mb']} are needed (preflight_minimum_memory_mb)"
        )
    elif memory < SMALL_MEMORY_MB:
        verdict.warnings.append(f"memory: {memory} MB is enough to start, not to build a large HNSW index")
    if shm <= SMALL_SHM_MB:
        verdict.warnings.append(
            f"shared memory (/dev/shm) has {shm} MB: it limits parallel index builds; give a container --shm-size 1g"
        )


def _versions(host: dict[str, Any], wanted: dict[str, Any], verdict: Verdict, today: datetime.date) -> None:
    major, method = wanted["postgresql"]["version"], wanted["pgvector"]["install_method"]
    for finding in compatibility.check(
        major,
        verdict.pgvector_version,
        method,
        today=today,
        accepted=wanted["pgvector"]["accept_advisories"],
    ):
        refused = finding.level is compatibility.Level.REFUSAL
        (verdict.refusals if refused else verdict.warnings).append(
            f"{finding.message}; {finding.remedy} ({finding.id})"
        )
    _pgbackrest(host, wanted, verdict)
    if wanted["postgresql"]["repository"] == "mirror":
        _mirror(host, wanted["postgresql"]["mirror"], verdict)
    if wanted["postgresql"]["repository"] == "bundle":
        _bundle(host, wanted, verdict)
    if wanted["postgresql"]["repository"] == "distribution":
        distribution = distributions.by_codename(host["distribution_codename"])
        shipped = distribution.postgresql if distribution else major
        packaged = distribution is None or distribution.pgvector
        if shipped != major:
            verdict.refusals.append(
                f"postgresql_version {major}: {host['os']} ships {shipped} only; set postgresql_version: {shipped}, or "
                "postgresql_repository: pgdg"
            )
        elif major != DEFAULT_MAJOR:
            verdict.warnings.append(
                f"PostgreSQL {major} of the distribution, not the default {DEFAULT_MAJOR}: PGDG is not used"
            )
        if method == "package" and not packaged:
            verdict.refusals.append(
                f"pgvector_install_method package: {host['os']} has no package of pgvector; set it to source"
            )


def _pgbackrest(host: dict[str, Any], wanted: dict[str, Any], verdict: Verdict) -> None:
    """Refuse a pgBackRest that is too old where it is known already which it will be; else the role asks it later."""
    major, backup = wanted["postgresql"]["version"], wanted["backup"]
    codename = host["distribution_codename"]
    distribution = distributions.by_codename(codename)
    # A fresh host's apt has no lists yet.
    found = host["package_versions"]["pgbackrest"] or (distribution.pgbackrest if distribution else "")
    newer = wanted["postgresql"]["repository"] in ("pgdg", "mirror")
    if newer and "pgbackrest" in compatibility.pgdg_packages(major, codename):
        return
    least = compatibility.minimum_pgbackrest(major, remote=backup["remote"])
    key = compatibility.version_key
    if backup["physical"] and found and key(found) < key(least):
        verdict.refusals.append(
            f"pgbackrest {found} is too old for PostgreSQL {major}{BACKUP_ELSEWHERE if backup['remote'] else ''}: "
            f"allowed are {least} and newer; install a newer one, the same on both hosts (Debian 13 has 2.55.1, "
            "PGDG newer ones), keep the repository in S3 (backup_s3), which older ones can do, or set "
            "backup_physical to false"
        )


def _mirror(host: dict[str, Any], mirror: dict[str, str], verdict: Verdict) -> None:
    for name in ("uri", "key"):
        if not mirror[name]:
            verdict.refusals.append(f"postgresql_mirror_{name} is empty: postgresql_repository mirror needs it")
    # Nearly all of the suite is then shut out, so it must not be one that the host lives on.
    codename, suite = host["distribution_codename"], mirror["suite"]
    if suite in {
        codename,
        *(f"{codename}-{part}" for part in ("backports", "proposed-updates", "security", "updates")),
    }:
        verdict.refusals.append(
            f"postgresql_mirror_suite {suite}: that is the distribution's own; a mirror laid out as PGDG's has "
            f"{codename}-pgdg"
        )


def _bundle(host: dict[str, Any], wanted: dict[str, Any], verdict: Verdict) -> None:
    """Refuse a bundle that is damaged, or was made for something else than this host and this run."""
    bundle, pgvector = wanted["postgresql"]["bundle"], wanted["pgvector"]
    if bundle["problem"]:
        verdict.refusals.append(f"postgresql_bundle: {bundle['problem']}")
        return
    verdict.bundle = {name: str(bundle[name]) for name in ("manifest_sha256", "pgvector_file")}
    architecture = ARCHITECTURES.get(host["architecture"], host["architecture"])
    source = pgvector["install_method"] == "source"
    rows = [
        ("release", host["distribution_codename"], bundle["release"], "another release of the system"),
        ("architecture", architecture, bundle["architecture"], "another architecture"),
        ("postgresql_version", wanted["postgresql"]["version"], bundle["postgresql"], "another major"),
        ("pgvector_install_method", pgvector["install_method"], bundle["pgvector_install_method"], "another method"),
        ("pgvector_version", pgvector["version"] if source else "", bundle["pgvector_version"] if source else "", ""),
        (
            "pgvector_source_sha256",
            *((pgvector["source_sha256"], bundle["pgvector_sha256"]) if source else ("", "")),
            "",
        ),
    ]
    for name, mine, its, why in rows:
        if mine != its:
            verdict.refusals.append(
                f"postgresql_bundle {bundle['path']}: made for {why or 'another tarball'}: its {name} is {its}, wanted "
                f"is {mine}; make one with provision bundle make, or set what it was made for"
            )


def _pgvector_version(host: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Tell which pgvector a host will have: its build, the distribution's package, or PGDG's, which is the newest."""
    if wanted["pgvector"]["install_method"] == "source":
        return str(wanted["pgvector"]["version"])
    if wanted["postgresql"]["repository"] == "distribution":
        distribution = distributions.by_codename(host["distribution_codename"])
        return distribution.pgvector if distribution else ""
    if wanted["postgresql"]["repository"] == "bundle":
        return str(wanted["postgresql"]["bundle"].get("pgvector_version", ""))
    return list(compatibility.PGVECTOR)[-1]


def _clusters(host: dict[str, Any], wanted: dict[str, Any], verdict: Verdict) -> None:
    major = str(wanted["postgresql"]["version"])
    adopt = wanted["postgresql"]["adopt"]
    verdict.adopting = not host["ours"] and adopt == f"{major}/{OUR_CLUSTER}"
    verdict.refusals += adoption.refusals(host, wanted, verdict.pgvector_version)
    for cluster in host["clusters"]:
        label = f"{cluster['major']}/{cluster['name']} ({cluster['data_directory']}, port {cluster['port']})"
        if cluster["major"] == major and cluster["name"] == OUR_CLUSTER:
            if cluster["version_file"] not in ("", major):
                verdict.refusals.append(
                    f"cluster {label} holds data of PostgreSQL {cluster['version_file']}, wanted is {major}: "
                    "see docs/move-to-another-major.md"
                )
            elif not host["ours"] and not host["cluster_half_made"] and not verdict.adopting:
                verdict.refusals.append(
                    f"cluster {label} exists and was not made by this toolkit: nothing was touched; use a new host, or "
                    "see what it would become with "
                    f"-e adopt_cluster={major}/{OUR_CLUSTER} --check --diff (docs/adopt-an-existing-database.md)"
                )
        elif cluster["running_pid"] and not (cluster["major"] == major and cluster["name"].startswith(RESTORED)):
            verdict.refusals.append(
                f"cluster {label} of PostgreSQL {cluster['major']} is serving (process {cluster['running_pid']}), "
                f"wanted is {major}: it goes on serving; see docs/move-to-another-major.md"
            )
    for stranger in [] if host["cluster_half_made"] else host["unknown_clusters"]:
        if stranger["data_directory"] == f"/var/lib/postgresql/{major}/{OUR_CLUSTER}":
            verdict.refusals.append(
                f"{stranger['data_directory']} holds data of PostgreSQL {stranger['version_file']} that pg_lsclusters "
                "does not know: nothing was touched; move it away or register it with pg_createcluster"
            )


def _ports(host: dict[str, Any], wanted: dict[str, Any], verdict: Verdict) -> None:
    port = wanted["postgresql"]["port"]
    if not 1024 <= port <= 65535:
        verdict.refusals.append(f"postgresql_port {port}: allowed are 1024 to 65535")
    known = host["ours"] or verdict.adopting
    serving = next((each["running_port"] for each in host["clusters"] if each["running_port"] and known), port)
    verdict.serving_port = serving
    if serving != port and not wanted["postgresql"]["restart_allowed"]:
        verdict.refusals.append(
            f"postgresql_port {port}: the server serves on {serving}, and a new port needs a restart, which "
            "postgresql_restart_allowed forbids; run again with -e postgresql_restart_allowed=true when connections "
            "may be cut"
        )
    # By port, not by pid: a container may hide which process of another user listens.
    # That of a cluster that is not ours was refused by name above.
    ours = {cluster["running_port"] for cluster in host["clusters"]}
    ours |= {host["record"].get("pooler", {}).get("port", 0)}
    for row in host["listeners"]:
        if row["port"] not in ours:
            holder = (
                f"process {row['pid']} ({row['command']})" if row["pid"] else "a process that this host does not show"
            )
            verdict.refusals.append(f"port {row['port']} is taken by {holder}: stop it, or choose another port")


def _pooler(host: dict[str, Any], wanted: dict[str, Any], verdict: Verdict) -> None:
    if not 1024 <= wanted["port"] <= 65535:
        verdict.refusals.append(f"pgbouncer_port {wanted['port']}: allowed are 1024 to 65535")
    if wanted["port"] == verdict.serving_port:
        verdict.refusals.append(f"pgbouncer_port {wanted['port']}: that is the server's own; choose another")
    for network in wanted["allowed_networks"]:
        if network not in hba.KEYWORDS and not hba.is_network(network):
            verdict.refusals.append(
                f"pgbouncer_allowed_networks {network}: not a network; write 10.0.0.5/32 for one address, 10.0.0.0/24, "
                f"{' or '.join(hba.KEYWORDS)}"
            )
    limits = pools.limits(wanted["roles"])
    fitted = pools.fit(wanted["max_connections"], wanted["wished"], wanted["pools"], limits)
    verdict.refusals += fitted.refusals
    verdict.warnings += fitted.warnings
    package = host["package_versions"]["pgbouncer"]
    if package:
        verdict.warnings += compatibility.pooler_warnings(package, wanted["accept_advisories"])


def _credentials(wanted: dict[str, Any], profile: str, verdict: Verdict) -> None:
    credentials, owner = wanted.get("credentials") or {}, wanted["owner"]
    vault = f"inventories/{profile}/group_vars/all/vault.yml (ansible-vault edit)"
    for path in wanted.get("plain_vaults", []) if profile == "prod" else []:
        verdict.refusals.append(f"{path} is not encrypted: ansible-vault encrypt {path}")
    for role in wanted.get("password_roles") or [owner]:
        if role not in credentials:
            verdict.refusals.append(
                f"database_credentials has nothing for {role}: set its password and its salt in {vault}; "
                f"provision secrets init inventories/{profile} makes both"
            )
    for role, secret in sorted(credentials.items()):
        try:
            secrets.scram_verifier(secret.get("password") or "", secret.get("salt") or "")
        except UsageError as error:
            verdict.refusals.append(f"database_credentials.{role}: {error.what}; allowed: {error.allowed}; in {vault}")
            continue
        problem = _weakness(secret["password"], credentials) if profile == "prod" else ""
        if problem:
            verdict.refusals.append(
                f"the password of {role} {problem}: set database_credentials.{role}.password in {vault}"
            )


def _weakness(password: str, credentials: dict[str, Any]) -> str:
    if password == DEVELOPMENT_PASSWORD:
        return "is the published one of development"
    if len(password) < MINIMUM_PASSWORD_LENGTH:
        return f"has {len(password)} characters, at least {MINIMUM_PASSWORD_LENGTH} are needed"
    if sum(other.get("password") == password for other in credentials.values()) > 1:
        return "is used for another role too"
    return ""
