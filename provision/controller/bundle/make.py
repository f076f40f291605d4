"""Collect a bundle on the controller: apt chooses and checks, as for an empty host, from this machine's own mirror.

Does IO through apt with folders of its own: neither the lists nor the packages of this machine are touched or believed.
Refuses to write a bundle that it could not verify itself. What apt fetched is named by signed indexes, or not taken.
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
    """A repository that is laid out as PGDG's, beside the distribution's archive."""

    uri: str
    suite: str
    component: str
    key: Path


@dataclass(frozen=True)
class Wish:
    """What a bundle is to be made for. Empty and zero mean what the release itself offers."""

    os: str
    architecture: str = ""
    postgresql: int = 0
    pgvector_install_method: str = ""
    pgvector_version: str = ""
    pgvector_url: str = ""
    mirror: str = ""
    repository: Repository | None = None


def make(target: Path, wish: Wish, narration: Narration) -> Bundle:
    """Write the bundle and return what it holds. Raises UsageError, or HostError with what apt said."""
    distribution = by_key(wish.os)
    _judge(target, wish)
    about = Bundle(
        release=distribution.codename,
        architecture=wish.architecture or run("dpkg", "--print-architecture").strip(),
        postgresql=wish.postgresql or distribution.postgresql,
        pgvector_install_method=wish.pgvector_install_method or distribution.pgvector_install_method,
        pgvector_version="",
    )
    if not all(Path(file).exists() for file in TOOLS.values()):  # only this needs the rights of root
        Machine(narration).install_packages(TOOLS)
    source = mirror.find(platform.freedesktop_os_release().get("VERSION_CODENAME", ""), wish.mirror)
    with tempfile.TemporaryDirectory(prefix="provision-bundle-") as folder:
        work, root = Path(folder), Path(folder, "bundle")
        (root / "pool").mkdir(parents=True)
        with narration.stage(f"reading the package lists of {distribution.codename}"):
            words = _apt(work, about, source, wish.repository)
        with narration.stage("fetching the packages, with all that they depend on"):
            versions = _fetch(words, work, root, packages.bundled(about.postgresql, about.pgvector_install_method))
        about = replace(about, versions=versions)
        if about.pgvector_install_method == "source":
            with narration.stage("fetching pgvector's source"):
                about = _source(root, about, wish, source)
        else:
            package = versions[f"postgresql-{about.postgresql}-pgvector"]
            about = replace(about, pgvector_version=".".join(map(str, compatibility.version_key(package))))
        with narration.stage("indexing and signing it"), Key.made(work / "key", f"bundle {target.name}") as key:
            seal(root, about, key)
        with narration.stage(f"writing {target}"):
            write(root, target)
    return verify.verified(target, key.fingerprint)


def _judge(target: Path, wish: Wish) -> None:
    """Refuse what cannot end well before anything is fetched."""
    if not target.resolve().parent.is_dir():
        raise UsageError("the bundle cannot be written there", where=str(target), seen="no such directory")
    if bool(wish.pgvector_version) != bool(wish.pgvector_url):
        raise UsageError(
            "a version of pgvector and the place of its tarball belong together",
            where="--pgvector-version, --pgvector-url",
            allowed="both (the role's pgvector_source_url, or a copy), or neither for the Debian mirror's newest",
        )
    if wish.pgvector_version:
        compatibility.source_checksum(wish.pgvector_version)


def _apt(work: Path, about: Bundle, source: mirror.Mirror, extra: Repository | None) -> list[str | Path]:
    """Return the words of an apt-get that knows these sources, no installed package and nothing of this machine."""
    signed = f"signed-by={mirror.KEYRING}" if mirror.KEYRING.exists() else ""
    options = f"[arch={about.architecture} {signed}]"
    lines = [line.replace("deb ", f"deb {options} ", 1) for line in source.sources(about.release)]
    if extra:
        # apt reads a key by its name's end, and as its own user: a copy here.
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
        **({"APT::Sandbox::User": "root"} if os.geteuid() == 0 else {}),  # apt's own user may not enter our folder
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
        raise HostError("a package source cannot be read", seen=apt.source(error.seen, change)) from None
    return list(words)


def _fetch(words: list[str | Path], work: Path, root: Path, names: list[str]) -> dict[str, str]:
    """Fetch packages and all that they depend on into the pool; return their versions."""
    try:
        run(*words, "install", "--download-only", *names)
    except HostError as error:
        raise HostError(
            "the packages cannot be had", where=(work / "sources.list").read_text().split("\n")[0],
            seen=apt.failure(error.seen), allowed="a major that the release or --repository-uri has",
        ) from None  # fmt: skip
    versions = {}
    for path in sorted((work / "archives").glob("*.deb")):
        name, version, _ = path.name.split("_")
        versions[name] = version.replace("%3a", ":")
        shutil.move(path, root / "pool" / path.name.replace("%3a", "."))  # a name that needs no escape in a URI
    return versions


def _source(root: Path, about: Bundle, wish: Wish, source: mirror.Mirror) -> Bundle:
    """Fetch pgvector's tarball: from a URL, of a version whose checksum is on record, or the newest of the mirror."""
    if wish.pgvector_url:
        checksum = compatibility.source_checksum(wish.pgvector_version)
        tarball = mirror.Source(wish.pgvector_version, wish.pgvector_url, checksum)
    else:
        tarball = mirror.pgvector_source(source)
    name = f"pgvector-{tarball.version}.tar.gz"
    mirror.fetch(tarball.url, root / name, f"SHA256:{tarball.sha256}")
    return replace(about, pgvector_version=tarball.version, pgvector_sha256=tarball.sha256, pgvector_file=name)


def seal(root: Path, about: Bundle, key: Key) -> None:
    """Index the packages, and sign both the index and a manifest of every file."""
    publish(root, SUITE, key, component=COMPONENT, architecture=about.architecture)
    files = {path.relative_to(root).as_posix(): _sha256(path) for path in sorted(root.rglob("*")) if path.is_file()}
    key.export(root / KEY)
    manifest: dict[str, Any] = {"schema": SCHEMA, **asdict(replace(about, files=files))}
    for name in ("path", "fingerprint", "manifest_sha256"):  # known of the file itself only once it is read
        del manifest[name]
    (root / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    key.sign(root / MANIFEST, root / SIGNATURE)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write(root: Path, target: Path) -> None:
    """Write one file, whole or not at all; the manifest comes last, so that whoever has unpacked it has the rest."""
    last = (SIGNATURE, MANIFEST)
    paths = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name not in last]
    temporary = target.with_name(f".{target.name}.new")
    try:
        with tarfile.open(temporary, "w:") as archive:
            for path in [*paths, *(root / name for name in last)]:
                archive.add(path, path.relative_to(root).as_posix(), filter=_plain)
        temporary.replace(target)
    except OSError as error:
        raise HostError("the bundle cannot be written", where=str(target), seen=error.strerror or str(error)) from None
    finally:
        temporary.unlink(missing_ok=True)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out who made it: root owns it on the host, and anybody may read it there."""
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode = 0o644
    return member
