"""An apt repository of a folder's packages with PGDG's layout, and its signing key.

Does IO through apt-ftparchive and gpg. A key exists only in its own temporary folder and signs nothing else. Refuses
nothing: apt on the host verifies the repository.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from provision import system

TOOLS = {"apt-utils": "/usr/bin/apt-ftparchive", "gpg": "/usr/bin/gpg", "gpgconf": "/usr/bin/gpgconf"}
"""Required packages, each with a file that only it installs."""


def run(*words: str | Path, where: Path | None = None) -> str:
    """Run a program in a folder and return its output. Raises HostError with its last lines."""
    return system.run(*words, directory=where).stdout


@dataclass(frozen=True)
class Key:
    """A signing key in a GnuPG folder."""

    home: Path
    fingerprint: str
    options: tuple[str, ...] = ()

    @classmethod
    @contextlib.contextmanager
    def made(cls, home: Path, name: str, expires: str = "never", options: Sequence[str] = ()) -> Iterator[Key]:
        """Create a key without a passphrase; it disappears with its folder. Always stop gpg's agent.

        `options` are added to every gpg command, such as `--faked-system-time` for an expired key.
        """
        home.mkdir(mode=0o700, parents=True)
        try:
            gpg: list[str | Path] = ["gpg", "--homedir", home, "--batch", "--quiet", *options]
            run(*gpg, "--passphrase", "", "--quick-generate-key", name, "ed25519", "sign", expires)
            listed = run(*gpg, "--with-colons", "--list-keys")
            fingerprint = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))
            yield cls(home, fingerprint, tuple(options))
        finally:
            run("gpgconf", "--homedir", home, "--kill", "all")

    def _gpg(self, *words: str | Path) -> str:
        return run("gpg", "--homedir", self.home, "--batch", "--yes", "--quiet", *self.options, *words)

    def export(self, path: Path) -> None:
        """Write the public key, ASCII-armoured if the name ends with .asc."""
        self._gpg(*(["--armor"] if path.suffix == ".asc" else []), "--output", path, "--export", self.fingerprint)

    def extend(self, expires: str) -> None:
        """Extend the key's expiry."""
        self._gpg("--quick-set-expire", self.fingerprint, expires)

    def sign(self, path: Path, signature: Path, *, clear: bool = False) -> None:
        """Write a detached signature of a file, or with `clear` the file with its signature."""
        kind = "--clear-sign" if clear else "--detach-sign"
        self._gpg("--digest-algo", "SHA512", "--output", signature, kind, path)


def publish(root: Path, suite: str, key: Key, *, component: str = "main", architecture: str, **fields: str) -> None:
    """Index the packages in `root/pool` as `dists/SUITE` and sign the index.

    `fields` are apt-ftparchive's options for the Release file: `ValidTime="86400"` sets Valid-Until.
    """
    index = root / "dists" / suite / component / f"binary-{architecture}"
    index.mkdir(parents=True, exist_ok=True)
    (index / "Packages").write_text(run("apt-ftparchive", "packages", "pool", where=root))
    about = {"Suite": suite, "Codename": suite, "Architectures": architecture, "Components": component, **fields}
    options = [word for name, value in about.items() for word in ("-o", f"APT::FTPArchive::Release::{name}={value}")]
    release = root / "dists" / suite / "Release"
    release.unlink(missing_ok=True)
    (release.parent / "InRelease").unlink(missing_ok=True)
    text = run("apt-ftparchive", *options, "release", release.parent)
    release.write_text(text)
    key.sign(release, release.parent / "InRelease", clear=True)
    key.sign(release, release.parent / "Release.gpg")
