"""This machine's Debian mirror, used to build sandbox images and by the hosts themselves.

Asks apt for its configuration, so that every format, proxies and keys are supported. Has no default mirror: this
repository contains no mirror host names.
"""

import functools
import hashlib
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from provision.controller.machine import PATH, run
from provision.distributions import DEFAULT_KEY, by_key
from provision.errors import HostError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# apt settings needed to reach and accept the mirror; copied to the hosts.
APT_OPTIONS = re.compile(r'^(Acquire::(?:https?|ftp)::[^ ]*[Pp]roxy[^ ]*|Acquire::Check-(?:Valid-Until|Date)) "(.+)";$')
INDEX = re.compile(r"^ [0-9a-f]{64} +\d+ main/binary-\w+/Packages$", re.MULTILINE)
"""The checksum of a package index in a Release file."""
DOWNLOAD = (
    "/usr/lib/apt/apt-helper",
    "-o",
    "Acquire::Retries=1",
    "download-file",
)  # uses apt's proxies and CA certificates
PGVECTOR_SUITES = ("sid", by_key(DEFAULT_KEY).codename)  # newest first; a partial mirror may lack sid
OVERRIDE = "provision sandbox up --mirror http://HOST/debian"


@dataclass(frozen=True)
class Mirror:
    """URLs of the package archives. `security` is empty if the machine has no security archive."""

    archive: str
    security: str
    has_updates: bool
    apt_options: tuple[str, ...]

    def sources(self, codename: str) -> tuple[str, ...]:
        """Return the one-line apt sources of a release, with its updates and security archive."""
        return tuple(f"deb {archive} {suite} main" for archive, suite in self.suites(codename))

    def suites(self, codename: str) -> tuple[tuple[str, str], ...]:
        """Return the archive and name of each suite of a release."""
        found = [(self.archive, codename)]
        if self.has_updates:
            found.append((self.archive, f"{codename}-updates"))
        if self.security:
            found.append((self.security, f"{codename}-security"))
        return tuple(found)


@dataclass(frozen=True)
class Source:
    """An upstream tarball on the mirror, with the checksum from the signed index."""

    version: str
    url: str
    sha256: str

    def variables(self) -> dict[str, str]:
        """Return the inventory variables that build pgvector from it."""
        return {
            "pgvector_version": self.version,
            "pgvector_source_url": self.url,
            "pgvector_source_sha256": self.sha256,
        }


def _ask(*command: str, where: str = "", advice: str = OVERRIDE) -> str:
    try:
        answer = run(command, env={"LC_ALL": "C", "PATH": PATH})
    except FileNotFoundError:
        raise HostError(f"{command[0]} not found: not a Debian-family machine", allowed="Debian 12 or newer") from None
    if answer.returncode:
        errors = [line for line in answer.stderr.splitlines() if line.startswith(("E:", "W:", "Err:"))]
        raise HostError(
            "cannot read the Debian mirror",
            where=where,
            seen="; ".join(errors[:4]) or answer.stderr.strip(),
            allowed="a mirror that this machine's apt can read",
            run=advice,
        )
    return answer.stdout


def find(codename: str, override: str = "") -> Mirror:
    """Return the mirror of this machine, which runs `codename`. Raises HostError if it has none."""
    options = tuple(f'{name} "{value}"' for name, value in parse_options(_ask("apt-config", "dump")))
    if override:
        return Mirror(override.rstrip("/"), "", has_updates=False, apt_options=options)
    layout = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    targets = _ask("apt-get", "indextargets", "--format", layout, "Created-By: Packages")
    return choose([line.split(" ") for line in targets.splitlines()], codename, options)


def choose(targets: Sequence[Sequence[str]], codename: str, options: tuple[str, ...] = ()) -> Mirror:
    """Choose the Debian archive from (uri, release, component) rows, preferably one that also has updates.

    A vendor's repository may have the release's name too, but has no `-updates`.
    """
    main = [(uri.rstrip("/"), release) for uri, release, component in targets if component == "main"]
    archives = [uri for uri, release in main if release == codename]
    updates = [uri for uri, release in main if release == f"{codename}-updates"]
    security = [uri for uri, release in main if release == f"{codename}-security"]
    archives.sort(key=lambda uri: (uri not in updates, not uri.endswith("debian")))
    if not archives:
        raise HostError(
            "no Debian mirror in this machine's apt configuration",
            where="/etc/apt/sources.list, /etc/apt/sources.list.d",
            seen=", ".join(sorted({f"{uri} {release}" for uri, release in main})) or "no sources",
            allowed=f"a source of {codename} with component main",
            run=OVERRIDE,
        )
    return Mirror(archives[0], security[0] if security else "", archives[0] in updates, options)


def parse_options(dump: str) -> list[tuple[str, str]]:
    """Return the (name, value) pairs in `apt-config dump` that are needed to reach the mirror."""
    found = (APT_OPTIONS.match(line) for line in dump.splitlines())
    return [(match[1], match[2]) for match in found if match]


def require_release(mirror: Mirror, codename: str) -> None:
    """Raise HostError with the URL unless the mirror has a release."""
    _require(f"{mirror.archive}/dists/{codename}/InRelease")


@functools.cache
def indexes(mirror: Mirror, codename: str) -> str:
    """Return a hash of a release's package indexes, which changes with every new version of a package.

    Asks the mirror once per process. Raises HostError with the URL.
    """
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(prefix="provision-") as folder:
        for number, (archive, suite) in enumerate(mirror.suites(codename)):
            target = Path(folder, str(number))
            fetch(f"{archive}/dists/{suite}/InRelease", target)
            for line in INDEX.findall(target.read_text()):
                digest.update(line.encode())
    return digest.hexdigest()


def _require(url: str, *checksum: str) -> None:
    """Raise HostError unless a file can be downloaded (and has the checksum, TYPE:SUM, if given)."""
    with tempfile.TemporaryDirectory(prefix="provision-") as folder:
        fetch(url, Path(folder, "file"), *checksum)


def fetch(url: str, target: Path, *checksum: str) -> None:
    """Download a file with this machine's apt settings. Raises HostError with the URL."""
    _ask(*DOWNLOAD, url, str(target), *checksum, where=url)


def pgvector_source(mirror: Mirror) -> Source:
    """Return the newest pgvector tarball that the mirror lists in a signed index and actually serves."""
    failures = []
    for suite in PGVECTOR_SUITES:
        try:
            source = parse_source_uris(_source_uris(mirror, suite, "pgvector"))
            _require(source.url, f"SHA256:{source.sha256}")  # a partial mirror may not have the file
        except HostError as error:
            failures.append(error)
        else:
            return source
    raise failures[0]


def _source_uris(mirror: Mirror, suite: str, package: str) -> str:
    signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    with tempfile.TemporaryDirectory(prefix="provision-") as folder:
        Path(folder, "lists/partial").mkdir(parents=True)
        sources = Path(folder, "sources.list")
        sources.write_text(f"deb-src {signed}{mirror.archive} {suite} main\n")
        settings = (
            "Etc::SourceList=" + str(sources),
            "Etc::SourceParts=/dev/null",
            f"State::Lists={folder}/lists",
            f"Cache={folder}",
        )
        options = [word for setting in settings for word in ("-o", f"Dir::{setting}")]
        if Path(folder).owner() == "root":
            options += ["-o", "APT::Sandbox::User=root"]  # user _apt cannot read our folder
        where = f"{mirror.archive}/dists/{suite}/main/source"
        _ask("apt-get", *options, "update", "--error-on=any", where=where)
        return _ask("apt-get", *options, "source", "--print-uris", "--only-source", package, where=where)


def parse_source_uris(text: str) -> Source:
    """Parse the upstream tarball from `apt-get source --print-uris`: 'URL' NAME SIZE SHA256:SUM."""
    match = re.search(r"^'(\S+)' \w+_([^_\s]+)\.orig\.tar\.\w+ \d+ SHA256:([0-9a-f]{64})$", text, re.MULTILINE)
    if not match:
        raise HostError(
            "no upstream tarball in the mirror's index",
            seen=text.strip()[-300:],
            allowed="an .orig.tar with a SHA256",
        )
    return Source(version=match[2], url=match[1], sha256=match[3])
