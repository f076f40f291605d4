#!/usr/bin/python
"""Probe a host: what it is, what holds its ports and package locks, which clusters it has; and take its lock.

One round trip for everything that the plan is built from. Standard library only, because a bare host has nothing
else. Judges nothing: that is provision.plan.validate, on the controller, through the action plugin of the same name.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import platform
import re
import stat
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import applied, apt_state, host_places, listeners, neighbourhood, secure_path
from ..module_utils.lock import acquire
from ..module_utils.program import run
from ..module_utils.provision_detect import detect
from ..module_utils.timers import elapses

DOCUMENTATION = r"""
module: host_plan
short_description: Probe and lock a host, and build its plan
description:
  - The module probes the host (read-only) and takes the host lock; the action plugin of the same name collects every
    role's variables, builds the plan, and fails with all problems at once before anything changes.
  - The result is the plan, section by section, for C(register). It holds no secret.
options:
  ports:
    description: TCP ports to report the holder of (set by the action plugin).
    type: list
    elements: int
    default: []
  package_names:
    description: Packages whose versions to report (set by the action plugin).
    type: list
    elements: str
    default: []
  locale:
    description: Locale whose encoding to report (set by the action plugin).
    type: str
    default: C
  schedules:
    description: Calendar expressions that systemd-analyze judges (set by the action plugin).
    type: list
    elements: str
    default: []
  packages_wait:
    description: Seconds to wait for another process that holds dpkg's or apt's lock (set by the action plugin).
    type: int
    default: 0
  major:
    description: PostgreSQL major, for its data directory and its source build of pgvector (set by the action plugin).
    type: int
    default: 0
  listen:
    description: Addresses and names on which services will listen (set by the action plugin).
    type: list
    elements: str
    default: []
  repository:
    description: C(host) and C(port) of the SSH server of the backup repository (set by the action plugin).
    type: dict
    default: {}
  run:
    description: Identity of the run that takes the host lock (set by the action plugin).
    type: dict
    default: {}
  take_from:
    description: PID of the lock's holder, if its run is known to have ended (set by the action plugin).
    type: int
    default: 0
  waits:
    description: Whether the run waits for a lock that another run holds (set by the action plugin).
    type: bool
    default: false
author: The provision developers
"""

EXAMPLES = r"""
- name: Probe the host, build its plan and refuse invalid input
  minion.provision.host_plan:
  register: plan
"""

RETURN = r"""
host: {description: Hardware and system of the host., returned: success, type: dict}
server: {description: "PostgreSQL: version, port, settings, access rules.", returned: success, type: dict}
state: {description: Current state of the host as probed., returned: success, type: dict}
text: {description: Contents of /etc/provision/plan.json., returned: success, type: str}
"""

PLAN = Path("/etc/provision/plan.json")
MANIFESTS = Path("/etc/provision/files.d")
OLD_PLAN = Path("/etc/provision/host.json")
"""What version 1 of the plan was called."""
EXPORTERS = Path("/etc/provision/exporters.yml")
CLUSTER_PORTS = ("rest_port", "client_port", "peer_port")
OLD_EXPORTER_PORTS = [9100, 9187]
"""Those of hosts whose description is still OLD_PLAN; there was no variable."""
TOOLKIT = Path("/usr/local/bin/provision")
VERIFIED = Path("/var/lib/provision/verified.json")
UPGRADE = Path("/var/lib/provision/upgrade.json")
BUILD_STAMP = "/usr/local/src/pgvector-for-{major}.built"
BUILD_PACKAGES = "/usr/local/src/pgvector-build-packages"
BUNDLE_MANIFEST = Path("/var/cache/provision/bundle/bundle.json")
NO_CLUSTER = "/etc/postgresql-common/createcluster.d/50-provision.conf"
"""Placed on database hosts alone, before the server's packages: they create no cluster of their own."""
CONFIGURATION = Path("/etc/postgresql")
ADOPTED = Path("/etc/provision/adopted")
"""Copies of the configuration that adoptions keep, made before anything else is changed."""


def os_release() -> dict[str, str]:
    """Read distribution, version and code name."""
    release = Path("/etc/os-release")  # of root, and a link on Debian
    text = release.read_text() if release.exists() else ""
    found = dict(re.findall(r"""^(\w+)=["']?(.*?)["']?$""", text, re.M))  # Python 3.9 has no freedesktop_os_release
    return {
        "distribution": found.get("ID", ""),
        "distribution_version": found.get("VERSION_ID", ""),
        "distribution_codename": found.get("VERSION_CODENAME", ""),
        "os": found.get("PRETTY_NAME", ""),
    }


def clusters() -> list[dict[str, Any]]:
    """List the clusters that Debian's tools know, and whether each one runs."""
    found = []
    for conf in sorted(Path("/etc/postgresql").glob("*/*/postgresql.conf")):
        settings = {}
        for line in _lines(conf):
            name, separator, value = line.split("#")[0].partition("=")
            if separator:
                settings[name.strip()] = value.strip().strip("'")
        data = Path(settings.get("data_directory", f"/var/lib/postgresql/{conf.parts[3]}/{conf.parts[4]}"))
        pid, port = _running(data)
        found.append(
            {
                "major": conf.parts[3],
                "name": conf.parts[4],
                "port": settings.get("port", "5432"),
                "data_directory": str(data),
                "version_file": "".join(_lines(data / "PG_VERSION")).strip(),
                "running_pid": pid,
                "running_port": port,
                "includes_conf_d": any(re.match(r"\s*include_dir\s*=?\s*'?conf\.d'?", line) for line in _lines(conf)),
            }
        )
    return found


LOCALE = (
    "SELECT pg_encoding_to_char(encoding), datcollate, datctype, (SELECT string_agg(datname, chr(10)) FROM pg_database)"
    " FROM pg_database WHERE datname = 'template0'"
)
"""New databases are made of template0, so its locale is the cluster's."""
NUMBER = re.compile(r"[0-9]{1,10}")
"""A process id or a port. postgres owns the file, so that it may hold any text."""
PSQL_S = 10
"""Seconds for the answer of a server, which a lock on pg_database or a stopped process would delay without end."""


def cluster_locale(known: list[dict[str, Any]], major: int) -> dict[str, Any]:
    """Return encoding, locale and databases of the cluster MAJOR/main; {} without one.

    A running server is asked. Of a stopped one only the locale that initdb wrote into postgresql.conf is known.
    """
    cluster = next((row for row in known if (row["major"], row["name"]) == (str(major), "main")), None)
    if cluster is None:
        return {}
    if cluster["running_pid"] and os.geteuid() == 0:
        command = ["runuser", "-u", "postgres", "--", "psql", "-XAtq", "-F", "\x1f", "-R", "\x1e", "-d", "postgres"]
        command += ["-p", str(cluster["running_port"]), "-c", LOCALE]
        shown = run(*command, timeout=PSQL_S)
        words = shown.stdout.strip("\n\x1e").split("\x1f")
        if shown.returncode == 0 and len(words) == 4:
            return {"encoding": words[0], "collate": words[1], "ctype": words[2], "databases": words[3].split("\n")}
    conf = _lines(CONFIGURATION / str(major) / "main/postgresql.conf")
    written = [match[1] for line in conf if (match := re.match(r"\s*lc_monetary\s*=\s*'([^']*)'", line))]
    return {"encoding": "", "collate": written[-1], "ctype": "", "databases": []} if written else {}


def extension_files(major: int) -> list[str]:
    """Name the extensions whose control files the host has for a major."""
    return sorted(path.stem for path in Path(f"/usr/share/postgresql/{major}/extension").glob("*.control"))


VERSION_LENGTH = 20


def strangers(known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Find data directories below /var/lib/postgresql that Debian's tools do not know."""
    owned = {row["data_directory"] for row in known}
    return [
        {"data_directory": str(path.parent), "version_file": "".join(_lines(path)[:1])[:VERSION_LENGTH]}
        for path in sorted(Path("/var/lib/postgresql").glob("*/*/PG_VERSION"))
        if str(path.parent) not in owned
    ]


def _running(data: Path) -> tuple[int, int]:
    """Return the pid and the port of the server that runs on a data directory, or zeros."""
    words = _lines(data / "postmaster.pid")
    pid, port = (int(words[at]) if len(words) > at and NUMBER.fullmatch(words[at].strip()) else 0 for at in (0, 3))
    return (pid, port) if pid and Path(f"/proc/{pid}").exists() else (0, 0)


def networks() -> list[str]:
    """Name the networks that this host is directly on, as CIDR: what `samenet` means in pg_hba.conf."""
    found = []
    for line in _lines("/proc/net/route")[1:]:
        words = line.split()
        gateway, mask = words[2], bytes.fromhex(words[7])[::-1]
        if gateway == "00000000" and mask != b"\0\0\0\0":
            address = ipaddress.IPv4Address(bytes.fromhex(words[1])[::-1])
            found.append(f"{address}/{ipaddress.IPv4Address(mask)}")
    for line in _lines("/proc/net/if_inet6"):
        words = line.split()
        if words[3] != "20" and words[5] != "lo":  # 20: link-local, which no client reaches without naming its card
            found.append(f"{ipaddress.IPv6Address(bytes.fromhex(words[0]))}/{int(words[2], 16)}")
    return sorted({str(ipaddress.ip_network(each, strict=False)) for each in found})


def _json(path: Path) -> dict[str, Any]:
    """Read what an earlier run left on this host; {} where there is nothing to read."""
    try:
        found = json.loads(secure_path.text(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _toolkit() -> str:
    """Return the checksum of the installed command, or "" when its owner or mode is not what it should be."""
    try:
        about = TOOLKIT.lstat()
    except OSError:
        return ""
    right = stat.S_ISREG(about.st_mode) and (about.st_uid, about.st_gid, about.st_mode & 0o7777) == (0, 0, 0o755)
    return hashlib.sha256(TOOLKIT.read_bytes()).hexdigest() if right else ""


def ours() -> bool:
    """Return whether an earlier run created the cluster, was about to, or completed its adoption."""
    # By the file, not by the manifest: a backup host has that manifest too, and its cluster may be another's.
    listed = [row.get("path") for row in _json(MANIFESTS / "packages.json").get("files", [])]
    # An adoption installs packages before it judges the schema. Its settings are placed last.
    adopting = ADOPTED.is_dir() and not (MANIFESTS / "postgresql.json").exists()
    return (NO_CLUSTER in listed or (MANIFESTS / "postgresql-cluster.json").exists()) and not adopting


def upgrade() -> dict[str, Any]:
    """Return what a run judges of the last upgrade, as root recorded it; {} without one."""
    try:
        if UPGRADE.lstat().st_uid != 0:
            return {}
    except OSError:
        return {}
    judged = ("state", "from", "to", "method", "part", "handed_over")
    return {name: value for name, value in _json(UPGRADE).items() if name in judged}


def exporter_ports(monitoring: dict[str, Any]) -> list[int]:
    """Return the exporters' ports of a plan."""
    return [monitoring[f"{name}_port"] for name in ("node", "postgres")] if monitoring.get("exporters") else []


def earlier(major: int) -> dict[str, Any]:
    """Return the records of earlier runs: whether the host was verified, ports of services, builds and bundles."""
    plan, old = _json(PLAN), _json(OLD_PLAN)
    monitoring = plan.get("monitoring") or {}
    stamp = _lines(BUILD_STAMP.format(major=major))
    manifest = BUNDLE_MANIFEST.read_bytes() if BUNDLE_MANIFEST.exists() else b""
    return {
        "ours": ours(),
        "proved": VERIFIED.exists() or bool(old.get("verified")),
        "old_layout": OLD_PLAN.exists(),
        "pooler_port": (plan.get("pooler") or old.get("pooler") or {}).get("port", 0),
        "exporter_ports": OLD_EXPORTER_PORTS if old and EXPORTERS.exists() else exporter_ports(monitoring),
        "cluster_ports": [found[name] for name in CLUSTER_PORTS if (found := plan.get("cluster") or {})],
        "manifests": sorted(path.stem for path in MANIFESTS.glob("*.json")),
        "pgvector_build": stamp[0].strip() if stamp else "",
        "build_packages": [line.strip() for line in _lines(BUILD_PACKAGES)],
        "toolkit_sha256": _toolkit(),
        "plan_major": (plan.get("server") or {}).get("major", 0),
        "plan_scope": (plan.get("cluster") or {}).get("scope", ""),
        "upgrade": upgrade(),
        "bundle_sha256": hashlib.sha256(manifest).hexdigest() if manifest else "",
    }


def _lines(path: str | Path) -> list[str]:
    try:
        return secure_path.text(Path(path)).splitlines()  # postgres may have put a link or a pipe there
    except (OSError, ValueError):  # a path with a NUL, which postgres can write into its configuration
        return []


def main() -> None:
    """Run the module."""
    os.umask(0o022)  # 027, as on a hardened host, would close new directories to their users
    module = AnsibleModule(
        argument_spec={
            "ports": {"type": "list", "elements": "int", "default": []},
            "package_names": {"type": "list", "elements": "str", "default": []},
            "locale": {"type": "str", "default": "C"},
            "schedules": {"type": "list", "elements": "str", "default": []},
            "packages_wait": {"type": "int", "default": 0},
            "major": {"type": "int", "default": 0},
            "listen": {"type": "list", "elements": "str", "default": []},
            "repository": {"type": "dict", "default": {}},
            "run": {"type": "dict", "default": {}},
            "take_from": {"type": "int", "default": 0},
            "waits": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    given = module.params
    lock = {"taken": True, "holder": {}}
    if given["run"] and not module.check_mode and os.geteuid() == 0:
        lock = acquire(given["run"], given["take_from"], given["waits"])
        if not lock["taken"]:
            module.exit_json(changed=False, host={}, **lock)
    known = clusters()
    data = Path(f"/var/lib/postgresql/{given['major']}/main")
    lock_holder = apt_state.locked(given["packages_wait"])
    installed, held = apt_state.packages()
    policy = apt_state.policy(given["package_names"])
    host = {
        **os_release(),
        **detect(str(data)),
        **earlier(given["major"]),
        "architecture": platform.machine(),
        "systemd": Path("/run/systemd/system").exists(),
        "root": os.geteuid() == 0,
        "network_administration": host_places.network_administration(),
        "clock": time.time(),
        "hidden_programs": host_places.hidden_programs(),
        "disk_free_mb": host_places.free_mb(data),
        "unwritable": host_places.unwritable(),
        "free_for_packages_mb": host_places.free_for_packages(),
        "data": host_places.data_directory(data),
        "locales": host_places.locales(),
        "charmap": host_places.charmap(given["locale"]),
        "listeners": listeners.found(given["ports"]),
        "package_lock": lock_holder,
        "packages": installed,
        "packages_held": held,
        "packages_barred": [name for name, about in policy.items() if about["barred"]],
        "package_versions": {name: about["version"] for name, about in policy.items()},
        "sources": apt_state.sources(),
        "sources_fault": apt_state.sources_fault(),
        "schedules": elapses(given["schedules"]),
        "networks": networks(),
        "addresses": neighbourhood.own_addresses(),
        "interfaces": neighbourhood.own_interfaces(),
        "listen": neighbourhood.listen(given["listen"]),
        "repository": neighbourhood.ssh_server(
            str(given["repository"].get("host", "")), int(given["repository"].get("port", 22))
        ),
        "applied": applied.values(given["major"]),
        "packages_interrupted": apt_state.interrupted(),
        "services_blocked": apt_state.services_blocked(),
        "package_lists_age_s": apt_state.lists_age(),
        "clusters": known,
        "unknown_clusters": strangers(known),
        "cluster_locale": cluster_locale(known, given["major"]),
        "extension_files": extension_files(given["major"]),
        "cluster_half_made": Path("/etc/provision/cluster-being-made").exists(),
    }
    module.exit_json(changed=False, host=host, **lock)


if __name__ == "__main__":
    main()
