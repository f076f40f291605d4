"""A package source laid out as PGDG lays out its own, filled with Debian's packages, for hosts of the sandbox to reach.

Does IO: takes packages out of a bundle, gives them versions as PGDG's, signs with keys of its own, serves over HTTP on
an address of this machine that hosts reach. Everything lives in one folder and ends with the fixture.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from provision.controller.bundle.repository import Key, publish

LONG_AGO = ("--faked-system-time", "20200101T000000")
SUFFIX = "+pgdg"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and prints nothing."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the one that it replaces
        """Say nothing."""


@dataclass(frozen=True)
class Archive:
    """Suites below one root. Each suite has the same packages, and one thing that is wrong with it."""

    root: Path
    uri: str
    key: Path
    other_key: Path
    expired_key: Path

    @classmethod
    @contextlib.contextmanager
    def served(cls, folder: Path, address: str, packages: list[Path], suite: str) -> Iterator[Archive]:
        """Serve `suite` as it should be, and as many others as there are things that go wrong."""
        root = folder / "root"
        (root / "pool").mkdir(parents=True)
        for path in packages:
            renamed(path, root / "pool", SUFFIX)
        with (
            Key.made(folder / "key", "a test") as key,
            Key.made(folder / "other", "another test") as other,
            Key.made(folder / "old", "an old test", "30d", LONG_AGO) as old,
        ):
            key.export(root / "key.asc")
            other.export(root / "other.gpg")
            old.export(root / "expired.asc")
            publish(root, suite, key, architecture="amd64")
            publish(root, "late", key, architecture="amd64", ValidTime="1")
            # What a publisher does whose key is about to expire: who has the key as it was cannot verify any more.
            published = Key(old.home, old.fingerprint)
            published.extend("1y")
            publish(root, "renewed", published, architecture="amd64")
            handler = functools.partial(Quiet, directory=str(root))
            with http.server.ThreadingHTTPServer((address, 0), handler) as server:
                threading.Thread(target=server.serve_forever, daemon=True).start()
                uri = f"http://{address}:{server.server_port}"
                try:
                    yield cls(root, uri, root / "key.asc", root / "other.gpg", root / "expired.asc")
                finally:
                    server.shutdown()

    def without(self, package: str) -> None:
        """Take a package out of the pool, but not out of the index that names it."""
        for path in (self.root / "pool").glob(f"{package}_*"):
            path.rename(self.root / f"{path.name}.gone")

    def whole(self) -> None:
        """Put back what was taken out."""
        for path in self.root.glob("*.gone"):
            path.rename(self.root / "pool" / path.name.removesuffix(".gone"))


def renamed(package: Path, pool: Path, suffix: str) -> None:
    """Write a package under a version that is newer than its own, as PGDG's packages have one."""
    tree = pool / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", str(package), str(tree)], check=True)
    control = tree / "DEBIAN/control"
    lines = control.read_text().splitlines()
    control.write_text("".join(f"{line}{suffix if line.startswith('Version: ') else ''}\n" for line in lines))
    name, version, rest = package.name.split("_")
    words = [
        "dpkg-deb",
        "--root-owner-group",
        "-Zgzip",
        "-z1",
        "--build",
        tree,
        pool / f"{name}_{version}{suffix}_{rest}",
    ]
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)


def packages_of(bundle: Path, names: set[str], folder: Path) -> list[Path]:
    """Take packages out of a bundle."""
    with tarfile.open(bundle) as archive:
        paths = [path for path in archive.getnames() if path.startswith("pool/") and path[5:].split("_")[0] in names]
    assert {path[5:].split("_")[0] for path in paths} == names
    subprocess.run(["tar", "-xf", str(bundle), "-C", str(folder), *paths], check=True)
    return [folder / path for path in paths]
