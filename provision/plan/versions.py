"""Judge versions and package sources before anything changes: of PostgreSQL, pgvector and pgBackRest. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from provision import compatibility
from provision.distributions import ARCHITECTURES, by_codename
from provision.plan.context import Context, Verdict, repository_kind

RELEASES = "https://github.com/pgvector/pgvector/archive/refs/tags/v{}.tar.gz"


def tarball(v: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables of pgvector's tarball: those given, else the URL and recorded checksum of the release."""
    if v["pgvector_install_method"] != "source":
        return {}
    version = v["pgvector_version"]
    known = compatibility.PGVECTOR.get(version)
    return {
        "pgvector_source_url": v["pgvector_source_url"] or RELEASES.format(version),
        "pgvector_source_sha256": v["pgvector_source_sha256"] or (known.sha256 if known else ""),
    }


def versions(v: Mapping[str, Any], host: Mapping[str, Any], context: Context, pgvector: str, verdict: Verdict) -> None:
    """Refuse versions and sources that do not work together; warn of known defects."""
    major, method, repository = v["postgresql_version"], v["pgvector_install_method"], v["postgresql_repository"]
    for finding in compatibility.check(
        major, pgvector, method, today=context.today, accepted=v["pgvector_accept_advisories"]
    ):
        refused = finding.level is compatibility.Level.REFUSAL
        (verdict.refusals if refused else verdict.warnings).append(
            f"{finding.message}; {finding.remedy} ({finding.id})"
        )
    if method == "source":
        _tarball(v, verdict)
    _pgbackrest(v, host, verdict)
    if repository == "mirror":
        _mirror(v, host, verdict)
    if repository == "bundle":
        _bundle(v, host, context, verdict)
    if repository == "distribution":
        found = by_codename(host["distribution_codename"])
        if found and found.postgresql != major:
            verdict.refusals.append(
                f"postgresql_version is {major}: {host['os']} ships {found.postgresql} only; set postgresql_version to "
                f"{found.postgresql}, or postgresql_repository to pgdg"
            )
        elif major != compatibility.DEFAULT_POSTGRESQL:
            verdict.warnings.append(
                f"PostgreSQL {major} comes from the distribution, not the default "
                f"{compatibility.DEFAULT_POSTGRESQL} from PGDG"
            )
        if found and method == "package" and not found.pgvector:
            verdict.refusals.append(
                f"pgvector_install_method is package: {host['os']} has no package of pgvector; set it to source"
            )


def _tarball(v: Mapping[str, Any], verdict: Verdict) -> None:
    """Refuse a checksum that belongs to another release, and an empty one for a release that is not recorded."""
    version, checksum = v["pgvector_version"], v["pgvector_source_sha256"].lower()
    of = next((each for each, row in compatibility.PGVECTOR.items() if row.sha256 == checksum), version)
    if of != version:
        recorded = version in compatibility.PGVECTOR
        remedy = f"remove it, and pgvector_source_url if that is a tarball of {of}" if recorded else "set its own"
        verdict.refusals.append(
            f"pgvector_source_sha256 is the checksum of pgvector {of}, but pgvector_version is {version}: {remedy}, "
            f"or set pgvector_version to {of}"
        )
    if not checksum and compatibility.newer_pgvector(version):
        verdict.refusals.append(
            f"pgvector_source_sha256 is empty, and no checksum is recorded for pgvector {version}: download "
            f"{v['pgvector_source_url']}, check it, and set pgvector_source_sha256 to the output of sha256sum; or set "
            f"pgvector_version to {compatibility.NEWEST_PGVECTOR}"
        )


def _pgbackrest(v: Mapping[str, Any], host: Mapping[str, Any], verdict: Verdict) -> None:
    """Refuse a pgBackRest that is too old, where its version is known before it is installed."""
    major, codename, remote = v["postgresql_version"], host["distribution_codename"], repository_kind(v) == "host"
    known = by_codename(codename)
    found = host["package_versions"]["pgbackrest"] or (known.pgbackrest if known else "")
    newer = v["postgresql_repository"] in ("pgdg", "mirror")
    if newer and "pgbackrest" in compatibility.pgdg_packages(major, codename):
        return
    least = compatibility.minimum_pgbackrest(major, remote=remote)
    key = compatibility.version_key
    where = " with a repository on another host" if remote else ""
    if v["backup_physical"] and found and key(found) < key(least):
        verdict.refusals.append(
            f"pgBackRest {found} is too old for PostgreSQL {major}{where}: {least} or newer is required; install a "
            "newer one, the same on both hosts (Debian 13 has 2.55.1, PGDG newer ones), keep the repository in S3 "
            "(backup_s3), which older ones support, or set backup_physical to false"
        )


def _mirror(v: Mapping[str, Any], host: Mapping[str, Any], verdict: Verdict) -> None:
    for name in ("postgresql_mirror_uri", "postgresql_mirror_key"):
        if not v[name]:
            verdict.refusals.append(f"{name} is empty: postgresql_repository mirror needs it")
    # Nearly all of the suite is pinned away, so it must not be one that the host lives on.
    codename, suite = host["distribution_codename"], v["postgresql_mirror_suite"]
    own = {codename, *(f"{codename}-{part}" for part in ("backports", "proposed-updates", "security", "updates"))}
    if suite in own:
        verdict.refusals.append(
            f"postgresql_mirror_suite is {suite}, a suite of the distribution: a mirror laid out as PGDG's has "
            f"{codename}-pgdg"
        )


def _bundle(v: Mapping[str, Any], host: Mapping[str, Any], context: Context, verdict: Verdict) -> None:
    """Refuse a bundle that is damaged, or was made for another host or other variables."""
    bundle = context.bundle
    if bundle.get("problem"):
        verdict.refusals.append(f"postgresql_bundle: {bundle['problem']}")
        return
    source = v["pgvector_install_method"] == "source"
    rows = [
        ("release", host["distribution_codename"], bundle["release"]),
        ("architecture", ARCHITECTURES.get(host["architecture"], host["architecture"]), bundle["architecture"]),
        ("postgresql_version", v["postgresql_version"], bundle["postgresql"]),
        ("pgvector_install_method", v["pgvector_install_method"], bundle["pgvector_install_method"]),
    ]
    if source:
        rows += [
            ("pgvector_version", v["pgvector_version"], bundle["pgvector_version"]),
            ("pgvector_source_sha256", v["pgvector_source_sha256"], bundle["pgvector_sha256"]),
        ]
    for name, ours, its in rows:
        if ours != its:
            verdict.refusals.append(
                f"postgresql_bundle {bundle['path']} was made for another {name}: {its}, this run has {ours}; make a "
                "bundle for it with provision bundle make, or set the value that the bundle was made for"
            )
