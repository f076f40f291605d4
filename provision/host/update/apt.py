"""Installed and available versions of a host's packages, and their installation without restarts. Does IO, as root.

Only packages that are installed are updated, to the version that apt prefers; a package on hold stays. Majors have
packages of their own, so an update never leaves its major.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from provision import secure_path, system
from provision.compatibility import compare_packages
from provision.errors import HostError
from provision.plan.packages import EXPORTERS
from provision.plan.schema import Plan
from provision.system import run

POLICY = Path("/usr/sbin/policy-rc.d")
POLICY_TEXT = "#!/bin/sh\nexit 101\n"
"""As Ansible's module apt writes it, so that role packages removes one that a killed run has left."""
BUNDLE = "/etc/provision/bundle.apt.conf"
NAMES = ("pgbouncer", "pgbackrest", *EXPORTERS)
CLUSTER = ("patroni", "etcd-server", "etcd-client")
BALANCER = "haproxy"
"""Of hosts of a cluster, and of those with a balancer: elsewhere they are not ours."""
SERVER = re.compile(r"postgresql-(?:[a-z][a-z0-9]*-)?(?P<major>\d+)(?:-.*)?")
LOCK_S = 120
TIMEOUT_S = 1800


@dataclass(frozen=True)
class Package:
    """One installed package: its version, the one that apt would install, and whether it is on hold."""

    name: str
    installed: str
    candidate: str
    held: bool = False
    kept: bool = True
    """Whether a package source still has the installed version, so that apt can go back to it."""

    @property
    def newer(self) -> bool:
        """Whether apt has a newer version."""
        return compare_packages(self.candidate, self.installed) > 0


def environment(plan: Plan) -> dict[str, str]:
    """Return apt's environment: no questions, English, no restarts by needrestart, and the bundle's sources."""
    found = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", "NEEDRESTART_SUSPEND": "1"}
    return found | ({"APT_CONFIG": BUNDLE} if plan.source.kind == "bundle" else {})


def refresh(plan: Plan) -> None:
    """Read the package lists. Raises HostError where a source cannot be read."""
    run("apt-get", "update", "--error-on=any", f"-oDPkg::Lock::Timeout={LOCK_S}", environment=environment(plan))


def look(plan: Plan) -> list[Package]:
    """Return the installed packages of the database, in the order of their names. Raises HostError."""
    shown = run("dpkg-query", "--show", "--showformat=${db:Status-Abbrev}${Package}\n").stdout
    installed = [line[3:] for line in shown.splitlines() if line[1:2] not in "nc"]
    names = list(ours(installed, plan.server.major, tools(plan)))
    held = set(run("apt-mark", "showhold", *names).stdout.split())
    policy = run("apt-cache", "policy", *names, environment=environment(plan)).stdout
    return sorted(parse(policy, held), key=lambda each: each.name)


def tools(plan: Plan) -> tuple[str, ...]:
    """Return the names of the packages beside those of PostgreSQL that an update of this host concerns."""
    balancer = (BALANCER,) if plan.balancer.enabled else ()
    return (*NAMES, *CLUSTER, *balancer) if plan.cluster else NAMES


def ours(installed: Iterable[str], major: int, tools: Collection[str] = NAMES) -> Iterator[str]:
    """Yield the names of packages that an update concerns: the major's server, client and extensions, and the tools."""
    for name in installed:
        server = SERVER.fullmatch(name)
        if name in tools or (server and int(server["major"]) == major):
            yield name


def parse(policy: str, held: Iterable[str]) -> Iterator[Package]:
    """Read the output of apt-cache policy."""
    holds = set(held)
    for part in re.split(r"^(?=\S)", policy, flags=re.M):
        about = dict(re.findall(r"^  (Installed|Candidate): (\S+)$", part, re.M))
        if "(none)" in about.values() or len(about) < 2:
            continue
        name, installed = part.partition(":")[0], about["Installed"]
        table = re.search(rf"^ (?:\*\*\*|   ) {re.escape(installed)} \d+\n((?: {{6,}}.*\n?)*)", part, re.M)
        sources = [line for line in table[1].splitlines() if "/var/lib/dpkg/status" not in line] if table else []
        yield Package(name, installed, about["Candidate"], name in holds, kept=bool(sources))


def finish(plan: Plan) -> None:
    """Configure packages that a killed run has left half-installed. Raises HostError."""
    with no_services():
        run("dpkg", "--configure", "-a", "--force-confdef", "--force-confold", environment=environment(plan))


def download(plan: Plan, packages: Iterable[Package]) -> None:
    """Fetch the packages, so that nothing waits for the network later. Raises HostError."""
    _install(plan, "--download-only", *_versions(packages))


def install(plan: Plan, packages: Iterable[Package]) -> None:
    """Install the packages; no service is stopped or restarted. Raises HostError."""
    with no_services():
        _install(plan, *_versions(packages))


def _versions(packages: Iterable[Package]) -> list[str]:
    return [f"{each.name}={each.candidate}" for each in packages]


def _install(plan: Plan, *words: str) -> None:
    options = ("--yes", "--no-install-recommends", "--no-remove", f"-oDPkg::Lock::Timeout={LOCK_S}")
    keep = ("-oDpkg::Options::=--force-confdef", "-oDpkg::Options::=--force-confold")
    run(
        "apt-get", "install", *options, *keep, *words,
        environment=environment(plan), timeout=TIMEOUT_S, detached=True,
    )  # fmt: skip


@contextmanager
def no_services() -> Iterator[None]:
    """Keep packages from starting and stopping services (policy-rc.d) for the duration of a `with` block."""
    found = secure_path.about(POLICY)
    if found is not None and POLICY.read_text() != POLICY_TEXT:
        raise HostError(
            "policy-rc.d exists and is not ours", where=str(POLICY), seen="a file of the administrator",
            allowed="no such file during an update", run=f"mv {POLICY} {POLICY}.aside, then repeat the command",
        )  # fmt: skip
    system.write(POLICY, POLICY_TEXT, mode=0o755, owner=(0, 0))
    yield
    secure_path.remove(POLICY)  # not after a failure: dpkg may still run; the next update or site.yml removes it


def way_back(packages: Iterable[Package]) -> str:
    """Return the command that installs the old versions again."""
    old = " ".join(f"{each.name}={each.installed}" for each in packages)
    return f"apt-get install --allow-downgrades --no-remove --no-install-recommends {old}"
