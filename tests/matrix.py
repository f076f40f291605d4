"""Converge dev and prod on each system with each PostgreSQL major that is to be had, and note what came of it.

Run by `make test-matrix`, outside CI. Majors beside the distributions' own come from a mirror, by the environment
variables of docs/test-pg14.md. Each combination has hosts of its own, must converge, and must change nothing when it is
run again. Writes docs/tested.json, from which `make docs` makes a table of the README; ends with 1 if any failed.
"""

from __future__ import annotations

import datetime
import gzip
import json
import lzma
import os
import re
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from provision import compatibility
from provision.distributions import DISTRIBUTIONS, Distribution, by_key
from tests.sandboxes import Host, Hosts
from tests.system.playbooks import ROOT, Run, play
from tests.system.production import Production

RESULTS = ROOT / "docs/tested.json"
PROFILES = ("dev", "prod")
READERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.decompress, ".xz": lzma.decompress}
SANDBOXES: list[Distribution] = [each for each in DISTRIBUTIONS if each.has_sandbox]
ON_THE_HOST_ITSELF = {
    "backup_repository_inventory_name": "",
    "backup_repository_host": "",
    "backup_allow_local_only": True,
}
TIMEOUT_S = 1800  # pgvector is compiled where it comes from source, on a machine that may do other work


@dataclass(frozen=True)
class Combination:
    """One cell of the matrix; `variables` are what a user would set."""

    os: str
    profile: str
    repository: str
    variables: dict[str, Any]

    @property
    def allowed(self) -> dict[str, Any]:
        """Overrides that prod requires where pgBackRest is too old for a repository on another host."""
        key, needed = compatibility.version_key, compatibility.REMOTE_REPOSITORY_PGBACKREST
        too_old = key(by_key(self.os).pgbackrest) < key(needed)
        return ON_THE_HOST_ITSELF if self.profile == "prod" and too_old else {}


@dataclass(frozen=True)
class Outcome:
    """What came of it, as docs/tested.json keeps it; `allowed` names what the profile refuses and this run allowed."""

    system: str
    architecture: str
    profile: str
    packages_from: str
    packager: str
    postgresql: str
    pgvector: str
    pgvector_from: str
    date: str
    result: str
    allowed: str


def combinations() -> Iterator[Combination]:
    """Name the distributions' own majors, then the mirror's."""
    for each in SANDBOXES:
        for profile in PROFILES:
            yield Combination(each.key, profile, "distribution", {})
    for each in SANDBOXES:
        for variables in mirrored(each.codename):
            for profile in PROFILES:
                yield Combination(each.key, profile, "mirror", variables)


def mirrored(codename: str) -> Iterator[dict[str, Any]]:
    """Give the variables of each major that the mirror has for a release, with a pgvector that goes with it."""
    uri = os.environ.get("PROVISION_PG14_MIRROR_URI", "").rstrip("/")
    if not uri:
        return
    suite = (os.environ.get("PROVISION_PG14_MIRROR_SUITE") or "CODENAME-pgdg").replace("CODENAME", codename)
    component = os.environ.get("PROVISION_PG14_MIRROR_COMPONENT") or "main"
    names = set(re.findall(r"^Package: (\S+)$", index(f"{uri}/dists/{suite}/{component}/binary-amd64/Packages"), re.M))
    role = yaml.safe_load((ROOT / "roles/pgvector/defaults/main.yml").read_text())
    for major in [each for each in compatibility.POSTGRESQL if f"postgresql-{each}" in names]:
        package = f"postgresql-{major}-pgvector" in names
        if not package and major not in compatibility.PGVECTOR[role["pgvector_version"]].compiles:
            print(f"PostgreSQL {major} of {codename}: the mirror has no pgvector that goes with it", file=sys.stderr)
            continue
        source = {
            "pgvector_version": role["pgvector_version"],
            "pgvector_source_sha256": role["pgvector_source_sha256"],
            "pgvector_source_url": os.environ["PROVISION_PGVECTOR_URL"] if not package else "",
        }
        yield {
            "postgresql_version": major,
            "postgresql_repository": "mirror",
            "postgresql_mirror_uri": uri,
            "postgresql_mirror_suite": suite,
            "postgresql_mirror_component": component,
            "postgresql_mirror_key": str(Path(os.environ["PROVISION_PG14_MIRROR_KEY"]).resolve()),
            "pgvector_install_method": "package" if package else "source",
            **({} if package else source),
        }


def index(url: str) -> str:
    """Read an index of packages, plain or compressed; one that is not there is empty. Other failures raise."""
    for ending, read in READERS.items():
        try:
            with urllib.request.urlopen(f"{url}{ending}", timeout=30) as answer:  # noqa: S310 - the user's own mirror
                content: bytes = answer.read()
                return read(content).decode()
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
    return ""


def outcome(combination: Combination, folder: Path) -> Outcome:
    """Make hosts, converge them twice, and remove them."""
    with Hosts.made(folder) as hosts:
        options = ["-e", json.dumps({**combination.variables, **combination.allowed})]
        if combination.profile == "prod":
            (folder / "inventory").mkdir()
            made = Production.make(hosts, folder / "inventory", combination.os)
            host, runs = made.database, [made.play(*options, timeout=TIMEOUT_S) for _ in range(2)]
        else:
            host = hosts.up("db1", os=combination.os)
            runs = [play("site.yml", host.inventory, *options, timeout=TIMEOUT_S) for _ in range(2)]
        return note(combination, host, runs)


def note(combination: Combination, host: Host, runs: list[Run]) -> Outcome:
    """Say what is on the host, asked of the host itself."""
    good = all(run.code == 0 for run in runs) and not any(row.changed for row in runs[1].recap.values())
    if not good:
        print("\n".join(run.output for run in runs), file=sys.stderr)
    version = host.run("runuser -u postgres -- psql -XAtc 'SHOW server_version'").stdout.split()
    vector = "SELECT extversion FROM pg_extension WHERE extname = $$vector$$"
    wanted = {**host.container.spec.variables, **combination.variables}
    return Outcome(
        system=host.run(". /etc/os-release; printf '%s %s' Debian $VERSION_ID").stdout,
        architecture=host.run("dpkg --print-architecture").stdout.strip(),
        profile=combination.profile,
        packages_from=combination.repository,
        packager=host.run("dpkg-query -Wf '${Maintainer}' " + f"postgresql-{wanted['postgresql_version']}").stdout,
        postgresql=version[0] if version else str(wanted["postgresql_version"]),
        pgvector=host.run(f"runuser -u postgres -- psql -d minion -XAtc '{vector}'").stdout.strip(),
        pgvector_from=wanted["pgvector_install_method"],
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        result="tested" if good else "failed",
        allowed=", ".join(name for name, value in combination.allowed.items() if value is True),
    )


def keep(found: Outcome) -> None:
    """Put an outcome into docs/tested.json, in the place of an earlier one of the same combination."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    noted = {_place(row): row for row in rows} | {_place(asdict(found)): asdict(found)}
    RESULTS.write_text(json.dumps([noted[place] for place in sorted(noted)], indent=1) + "\n")


def _place(row: dict[str, str]) -> tuple[str, ...]:
    major = row["postgresql"].split(".")[0]
    return row["system"], row["architecture"], row["packages_from"], major, row["profile"]


def main() -> int:
    """Try every combination, and keep what came of each at once."""
    found = []
    for combination in combinations():
        label = f"{combination.os} {combination.profile} {combination.repository}"
        label += f" {combination.variables.get('postgresql_version', '')}"
        print(f"==> {label}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="provision-matrix-") as folder:
            found.append(outcome(combination, Path(folder)))
        keep(found[-1])
        print(json.dumps(asdict(found[-1])), flush=True)
    return 0 if all(each.result == "tested" for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
