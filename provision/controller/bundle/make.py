"""Build a bundle on the controller: apt resolves packages as for an empty host, from this machine's mirror.

Does IO through apt with separate folders: this machine's package lists and packages are neither used nor changed. Apt
accepts only files listed in signed indexes. The finished bundle is verified.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tarfile
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from provision import compatibility
from provision.controller import apt, mirror
from provision.controller.bundle import verify
from provision.controller.bundle.contents import COMPONENT, KEY, MANIFEST, SCHEMA, SIGNATURE, SUITE, Bundle
from provision.controller.bundle.repository import TOOLS, Key, publish, run
from provision.controller.machine import Machine
from provision.controller.narration import Narration
from provision.distributions import by_key
from provision.errors import HostError, UsageError
from provision.plan import packages

PREFERENCES = """Package: *
Pin: release n={suite}
Pin-Priority: -1

Package: {packages}
Pin: release n={suite}
Pin-Priority: 700
"""


@dataclass(frozen=True)
class Repository:
    """An additional repository with PGDG's layout."""

    uri: str
    suite: str
    component: str
    key: Path


@dataclass(frozen=True)
class Request:
    """Target of a bundle. Empty and zero mean the distribution's own version or method."""

    os: str
    architecture: str = ""
    postgresql: int = 0
    pgvector_install_method: str = ""
    pgvector_version: str = ""
    pgvector_url: str = ""
    mirror: str = ""
    repository: Repository | None = None


def make(target: Path, request: Request, narration: Narration) -> Bundle:
    """Write the bundle and return its contents. Raises UsageError, and HostError with apt's message."""
    distribution = by_key(request.os)
    _validate(target, request)
    about = Bundle(
        release=distribution.codename,
        architecture=request.architecture or run("dpkg", "--print-architecture").strip(),
        postgresql=request.postgresql or distribution.postgresql,
        pgvector_install_method=request.pgvector_install_method or distribution.pgvector_install_method,
        pgvector_version="",
    )
    if not all(Path(file).exists() for file in TOOLS.values()):  # only this needs root
        Machine(narration).install_packages(TOOLS)
    source = mirror.find(platform.freedesktop_os_release().get("VERSION_CODENAME", ""), request.mirror)
    with tempfile.TemporaryDirectory(prefix="provision-bundle-") as folder:
        work, root = Path(folder), Path(folder, "bundle")
        (root / "pool").mkdir(parents=True)
        with narration.stage(f"reading the package lists of {distribution.codename}"):
            words = _apt(work, about, source, request.repository)
        with narration.stage("fetching the packages and their dependencies"):
            versions = _fetch(words, work, root, packages.bundled(about.postgresql, about.pgvector_install_method))
        about = replace(about, versions=versions)
        if about.pgvector_install_method == "source":
            with narration.stage("fetching pgvector's source"):
                about = _source(root, about, request, source)
        else:
            package = versions[f"postgresql-{about.postgresql}-pgvector"]
            about = replace(about, pgvector_version=".".join(map(str, compatibility.version_key(package))))
        with narration.stage("indexing and signing the bundle"), Key.made(work / "key", f"bundle {target.name}") as key:
            seal(root, about, key)
        with narration.stage(f"writing {target}"):
            write(root, target)
    return verify.verified(target, key.fingerprint)


def _validate(target: Path, request: Request) -> None:
    """Refuse an invalid request before anything is fetched. Raises UsageError."""
    if not target.resolve().parent.is_dir():
        raise UsageError("cannot write the bundle", where=str(target), seen="no such directory")
    if bool(request.pgvector_version) != bool(request.pgvector_url):
        raise UsageError(
            "--pgvector-version and --pgvector-url require each other",
            where="--pgvector-version, --pgvector-url",
            allowed="both (the role's pgvector_source_url or a copy), or neither for the mirror's newest",
        )
    if request.pgvector_version:
        compatibility.source_checksum(request.pgvector_version)


def _apt(work: Path, about: Bundle, source: mirror.Mirror, extra: Repository | None) -> list[str | Path]:
    """Return an apt-get command that uses only these sources, and assumes no installed packages."""
    signed = f"signed-by={mirror.KEYRING}" if mirror.KEYRING.exists() else ""
    options = f"[arch={about.architecture} {signed}]"
    lines = [line.replace("deb ", f"deb {options} ", 1) for line in source.sources(about.release)]
    if extra:
        # apt detects a key's format by its suffix and reads it as user _apt, so copy it here.
        text = extra.key.read_bytes()
        copy = work / ("repository.asc" if text.lstrip().startswith(b"-----BEGIN") else "repository.gpg")
        copy.write_bytes(text)
        options = f"[arch={about.architecture} signed-by={copy}]"
        lines.append(f"deb {options} {extra.uri} {extra.suite} {extra.component}")
        names = " ".join(compatibility.pgdg_packages(about.postgresql, about.release))
        (work / "preferences").write_text(PREFERENCES.format(suite=extra.suite, packages=names))
    (work / "sources.list").write_text("".join(f"{line}\n" for line in lines))
    (work / "status").touch()
    for folder in ("lists/partial", "archives/partial"):
        (work / folder).mkdir(parents=True)
    settings = {
        "Dir::Etc::SourceList": work / "sources.list", "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": work / "preferences", "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State::Lists": work / "lists", "Dir::State::status": work / "status",
        "Dir::Cache": work, "Dir::Cache::Archives": work / "archives",
        "APT::Architecture": about.architecture, "APT::Architectures": about.architecture,
        "APT::Install-Recommends": "false", "Acquire::Languages": "none", "Acquire::Retries": "2",
        "Debug::NoLocking": "true",
        **({"APT::Sandbox::User": "root"} if os.geteuid() == 0 else {}),  # user _apt cannot read our folder
    }  # fmt: skip
    words = [
        "env",
        "LC_ALL=C",
        "apt-get",
        "-qy",
        *(w for name, value in settings.items() for w in ("-o", f"{name}={value}")),
    ]
    try:
        run(*words, "update", "--error-on=any")
    except HostError as error:
        change = {"uri": "--mirror or --repository-uri", "suite": "--os or --repository-suite",
                  "component": "--repository-component", "key": "--repository-key"}  # fmt: skip
        raise HostError("cannot read a package source", seen=apt.source(error.seen, change)) from None
    return list(words)


def _fetch(words: list[str | Path], work: Path, root: Path, names: list[str]) -> dict[str, str]:
    """Fetch packages and their dependencies into the pool; return their versions."""
    try:
        run(*words, "install", "--download-only", *names)
    except HostError as error:
        raise HostError(
            "cannot fetch the packages", where=(work / "sources.list").read_text().split("\n")[0],
            seen=apt.failure(error.seen), allowed="a major of the distribution or of --repository-uri",
        ) from None  # fmt: skip
    versions = {}
    for path in sorted((work / "archives").glob("*.deb")):
        name, version, _ = path.name.split("_")
        versions[name] = version.replace("%3a", ":")
        shutil.move(path, root / "pool" / path.name.replace("%3a", "."))  # a name without URI escapes
    return versions


def _source(root: Path, about: Bundle, request: Request, source: mirror.Mirror) -> Bundle:
    """Fetch pgvector's tarball: from the URL, checked against the recorded checksum, or the newest of the mirror."""
    if request.pgvector_url:
        checksum = compatibility.source_checksum(request.pgvector_version)
        tarball = mirror.Source(request.pgvector_version, request.pgvector_url, checksum)
    else:
        tarball = mirror.pgvector_source(source)
    name = f"pgvector-{tarball.version}.tar.gz"
    mirror.fetch(tarball.url, root / name, f"SHA256:{tarball.sha256}")
    return replace(about, pgvector_version=tarball.version, pgvector_sha256=tarball.sha256, pgvector_file=name)


def seal(root: Path, about: Bundle, key: Key) -> None:
    """Index the packages; sign the index and a manifest of every file."""
    publish(root, SUITE, key, component=COMPONENT, architecture=about.architecture)
    files = {path.relative_to(root).as_posix(): _sha256(path) for path in sorted(root.rglob("*")) if path.is_file()}
    key.export(root / KEY)
    manifest: dict[str, Any] = {"schema": SCHEMA, **asdict(replace(about, files=files))}
    for name in ("path", "fingerprint", "manifest_sha256"):  # known only after reading the bundle
        del manifest[name]
    (root / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    key.sign(root / MANIFEST, root / SIGNATURE)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write(root: Path, target: Path) -> None:
    """Write the file atomically. The manifest comes last: if it was unpacked, so was everything else."""
    last = (SIGNATURE, MANIFEST)
    paths = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name not in last]
    temporary = target.with_name(f".{target.name}.new")
    try:
        with tarfile.open(temporary, "w:") as archive:
            for path in [*paths, *(root / name for name in last)]:
                archive.add(path, path.relative_to(root).as_posix(), filter=_plain)
        temporary.replace(target)
    except OSError as error:
        raise HostError("cannot write the bundle", where=str(target), seen=error.strerror or str(error)) from None
    finally:
        temporary.unlink(missing_ok=True)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Drop the builder's user: on the host the files belong to root and are world-readable."""
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode = 0o644
    return member
