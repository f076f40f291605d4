"""Judge the places that a run writes to, before anything changes: data directory, file systems, locale, clock. Pure."""

from __future__ import annotations

import difflib
import locale
import posixpath
import re
from collections.abc import Mapping
from typing import Any

from provision.plan import adoption
from provision.plan.context import Verdict, repository_kind

ASIDE = "/var/lib/postgresql"
PACKAGES_MB = 500
"""Free MiB that the packages of a fresh host need, downloaded and installed, without the compiler."""
CLOCK_LIMIT_S = 3600
"""A host further behind rejects apt's signed lists and our certificates as not yet valid."""
VOLATILE = ("tmpfs", "ramfs")
NO_ENCODING = ("C", "POSIX")
"""Locales that initdb accepts with every encoding."""
NAME = re.compile(r"(?P<language>[A-Za-z]+(_[A-Za-z]+)?)(\.(?P<encoding>[\w-]+))?(@(?P<modifier>\w+))?", re.A)


PATH = re.compile(r"/[^/].*")
REMOTE_PATH = re.compile(r"(/[A-Za-z0-9_][A-Za-z0-9._-]*)+")
"""A path on a backup host, as the module host_repository takes it: sshd runs a command line that contains it."""
SHARED = frozenset(
    f"/{name}"
    for name in (
        "bin", "boot", "dev", "etc", "home", "lib", "opt", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "var",
        "usr/local", "var/backups", "var/cache", "var/lib", "var/log", "var/spool", "var/tmp",
    )
)  # fmt: skip
"""Directories of the system (hier(7)), which a run must not close to others."""


def judge(v: Mapping[str, Any], host: Mapping[str, Any], verdict: Verdict) -> None:
    """Judge a database host: its system and, unless it has the cluster already, the place of a new one."""
    system(host, verdict)
    _paths(v, verdict)
    major = str(v["postgresql_version"])
    _space(v, host, major, verdict)
    _file_system(host, verdict)
    if not any((each["major"], each["name"]) == (major, "main") for each in host["clusters"]):
        _data(host, verdict)
        _locale(v["postgresql_locale"], host, verdict)
    _kept_locale(v, host, verdict)


def _paths(v: Mapping[str, Any], verdict: Verdict) -> None:
    """Refuse directories of dumps and backups that are relative, that a tool cannot take, or that others use."""
    kind, data = repository_kind(v), f"/var/lib/postgresql/{v['postgresql_version']}/main"
    remote = (REMOTE_PATH, "an absolute path of letters, digits, _ . and -, without a slash at its end")
    for name, used, (form, expected) in (
        ("backup_dump_directory", v["backup_logical"], (PATH, "an absolute path")),
        ("backup_repository_path", v["backup_physical"], remote if kind == "host" else (PATH, "an absolute path")),
        ("backup_second_s3.path", v["backup_second_s3"].get("path"), (PATH, "an absolute path")),
    ):
        option, _, key = name.partition(".")
        path = (v[option].get(key) or "") if key else v[option]
        bucket = (name == "backup_repository_path" and kind == "s3") or name == "backup_second_s3.path"
        if not used or (bucket and path == "/"):
            continue
        plain = posixpath.normpath(path)
        if not form.fullmatch(path):
            verdict.refusals.append(f"{name} is {path!r}: expected {expected}")
        elif not bucket and (plain in SHARED or f"{plain}/".startswith(f"{data}/")):
            verdict.refusals.append(
                f"{name} is {path!r}, which others use: expected a directory of its own, which the run closes to others"
            )


def system(host: Mapping[str, Any], verdict: Verdict) -> None:
    """Refuse what stops every run: read-only file systems, an incomplete PATH of root, a wrong clock."""
    if host["unwritable"]:
        verdict.refusals.append(
            f"{', '.join(host['unwritable'])} cannot be written: the file system is mounted read-only; on the host, "
            f"find the cause with dmesg --level=err, then run {_remount(host['unwritable'][0])}"
        )
    if host["hidden_programs"]:
        verdict.refusals.append(
            f"root's PATH is {host['hidden_programs']}, without /usr/sbin, so dpkg fails; on the host, set "
            "secure_path in /etc/sudoers or PATH in /etc/environment to /usr/local/sbin:/usr/local/bin:/usr/sbin:"
            "/usr/bin:/sbin:/bin"
        )
    offset = host["clock_offset_s"]
    if abs(offset) > CLOCK_LIMIT_S:
        verdict.refusals.append(
            f"the host's clock is {_duration(abs(offset))} {'ahead of' if offset > 0 else 'behind'} the controller's, "
            "so certificates and package lists are expired or not yet valid; on the host: timedatectl set-ntp true, "
            "or set the time with date --set"
        )


def _remount(path: str) -> str:
    return f'mount -o remount,rw "$(findmnt -no TARGET --target {path})"'


def _duration(seconds: float) -> str:
    hours = round(seconds / 3600)
    return f"{hours} h" if hours < 72 else f"{round(hours / 24)} days"


def _space(v: Mapping[str, Any], host: Mapping[str, Any], major: str, verdict: Verdict) -> None:
    disk = host["disk_free_mb"]
    if disk < v["plan_minimum_disk_mb"]:
        verdict.refusals.append(
            f"{disk} MB are free below {ASIDE}: at least {v['plan_minimum_disk_mb']} MB are required "
            "(plan_minimum_disk_mb)"
        )
    if f"postgresql-{major}" not in host["packages"]:
        for name, free in host["free_for_packages_mb"].items():
            if free < PACKAGES_MB:
                verdict.refusals.append(f"{free} MB are free in {name}: the packages need {PACKAGES_MB} MB; free space")


def _file_system(host: Mapping[str, Any], verdict: Verdict) -> None:
    data = host["data"]
    if data["read_only"] and not host["unwritable"]:
        verdict.refusals.append(
            f"{data['path']} is on a file system that is mounted read-only; on the host: {_remount(ASIDE)}"
        )
    if data["file_system"] in VOLATILE:
        verdict.warnings.append(f"{data['path']} is on a {data['file_system']}: a reboot loses the database")


def _data(host: Mapping[str, Any], verdict: Verdict) -> None:
    """Refuse a place where a cluster cannot be created, or where a restore could not rename it."""
    data = host["data"]
    path = data["path"]
    parent = path.rpartition("/")[0]
    if data["link"]:
        verdict.refusals.append(
            f"{data['link']} is a link to {data['target']}: a new cluster needs a plain directory; remove the link, "
            f"and mount the file system at {ASIDE} or link {ASIDE} itself"
        )
    elif data["mount"]:
        verdict.refusals.append(
            f"{path} is a mount point, which a restore could not rename; on the host: umount {path}, then mount "
            f"that file system at {ASIDE} or {parent} and change its line in /etc/fstab"
        )
    elif data["file"]:
        verdict.refusals.append(
            f"{path} is a file, but a new cluster needs a directory there; on the host: mv {path} {path}.old"
        )
    elif data["entries"] and not host["cluster_half_made"] and not _cluster(path, host):
        verdict.refusals.append(
            f"{path} holds {', '.join(data['entries'])} but no cluster: a new cluster needs an empty directory; on the "
            f"host: mv {path} {path}.old"
        )
    for closed in data["closed"]:
        verdict.refusals.append(
            f"the user postgres, who owns the data directory, cannot enter {closed}; on the host: chmod o+x {closed}"
        )


def _cluster(path: str, host: Mapping[str, Any]) -> bool:
    return any(each["data_directory"] == path for each in host["unknown_clusters"])


def _locale(requested: str, host: Mapping[str, Any], verdict: Verdict) -> None:
    """Refuse a locale that is not a UTF-8 locale of the host; `charmap` is None if no host was probed."""
    if requested in NO_ENCODING:
        return
    name = NAME.fullmatch(requested)
    if not name:
        verdict.refusals.append(
            f"postgresql_locale is {requested!r}: expected the name of a UTF-8 locale, such as C.UTF-8 or de_DE.UTF-8"
        )
        return
    modifier = f"@{name['modifier']}" if name["modifier"] else ""
    alias = locale.locale_alias.get(name["language"].lower(), "")
    language = name["language"] if "_" in name["language"] else alias.partition(".")[0] or name["language"]
    wanted = f"{language}.UTF-8{modifier}"
    encoding = name["encoding"] or ""
    if host["charmap"] not in (None, "", "UTF-8") or (encoding and encoding.lower().replace("-", "") != "utf8"):
        seen = host["charmap"] or encoding
        verdict.refusals.append(
            f"postgresql_locale is {requested}, whose encoding is {seen}: databases are UTF-8; set it to {wanted}"
        )
    elif host["charmap"] == "":
        verdict.refusals.append(_missing(requested, language, wanted, modifier, host["locales"]))


def _kept_locale(v: Mapping[str, Any], host: Mapping[str, Any], verdict: Verdict) -> None:
    """Warn if an existing cluster has another locale; refuse one that cannot hold UTF-8 databases."""
    major, cure = v["postgresql_version"], "docs/the-locale-differs.md"
    seen = host.get("cluster_locale") or {}
    if not seen:
        return
    label = f"cluster {major}/{adoption.OUR_CLUSTER}"
    locales = sorted({seen["collate"], seen["ctype"]} - {""})
    if any(_plain_locale(each) != _plain_locale(v["postgresql_locale"]) for each in locales):
        verdict.warnings.append(
            f"postgresql_locale is {v['postgresql_locale']}, {label} has {' and '.join(locales)} and keeps it, "
            f"because a cluster's locale cannot be changed: set postgresql_locale to {locales[-1]}, or move the data "
            f"into a new cluster ({cure})"
        )
    missing = sorted({v["database_name"], *v["database_extra_databases"]} - set(seen["databases"]))
    if seen["encoding"] not in ("", "UTF8") and not {"C", "POSIX"} >= {seen["ctype"]} and missing:
        verdict.refusals.append(
            f"{label} has encoding {seen['encoding']} and locale {seen['ctype']}, so database {missing[0]} cannot be "
            f"created with UTF-8: move the data into a new cluster ({cure})"
        )


def _plain_locale(name: str) -> str:
    """Return a locale's name without the differences that libc ignores: C.UTF-8 is C.utf8."""
    language, _, encoding = name.partition(".")
    return f"{language}.{encoding.replace('-', '').lower()}" if encoding else language


def _missing(requested: str, language: str, wanted: str, modifier: str, there: list[str]) -> str:
    known = {each.partition(".")[0].partition("@")[0] for each in locale.locale_alias.values()}
    seen = f"postgresql_locale is {requested}: the host has {', '.join(there) or 'no locale'}"
    if language not in known:
        near = difflib.get_close_matches(language, sorted(known), 1)
        hint = f"; did you mean {near[0]}.UTF-8?" if near else ""
        return f"{seen}, and no such locale is known{hint}"
    # Of a locale with a modifier, the line has the modifier after the language: sr_RS@latin UTF-8.
    line = f"{language}{modifier} UTF-8" if modifier else f"{wanted} UTF-8"
    return (
        f"{seen}; set one of them, or on the host: apt-get update && apt-get install -y locales && "
        f"echo '{line}' >>/etc/locale.gen && locale-gen"
    )
