"""A bundle is refused before use when a byte, a file or a signature is not what its maker left."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from provision.controller.bundle import make, verify
from provision.controller.bundle.contents import KEY, MANIFEST, SIGNATURE, Bundle
from provision.controller.bundle.repository import Key
from provision.errors import HostError
from tests.sandboxes import provision

ABOUT = Bundle("trixie", "amd64", 17, "package", "0.8.0", versions={"tiny": "1.0"})
CONTROL = (
    "Package: tiny\nVersion: 1.0\nArchitecture: all\nMaintainer: a test <test@example.org>\nDescription: nothing\n"
)
PACKAGE = "pool/tiny_1.0_all.deb"


@dataclass(frozen=True)
class Made:
    """A bundle with one tiny package, and the key that signed it."""

    path: Path
    key: Key

    def changed(self, target: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
        """Write a copy in which some files are others."""
        with tarfile.open(self.path) as archive:
            files = {each.name: archive.extractfile(each).read() for each in archive}  # type: ignore[union-attr]
        change(files)
        with tarfile.open(target, "w:") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return target


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("bundle")
    with Key.made(folder / "key", "a test") as key:
        yield Made(seal(folder, key), key)


def seal(folder: Path, key: Key) -> Path:
    """Make a bundle as `provision bundle make` does, of a package of our own."""
    root, package = folder / "root", folder / "package"
    (package / "DEBIAN").mkdir(parents=True)
    (package / "DEBIAN/control").write_text(CONTROL)
    (root / "pool").mkdir(parents=True)
    subprocess.run(["dpkg-deb", "--build", package, root / PACKAGE], check=True, capture_output=True)
    make.seal(root, ABOUT, key)
    make.write(root, folder / "tiny.tar")
    return folder / "tiny.tar"


def refused(path: Path, fingerprint: str = "") -> HostError:
    with pytest.raises(HostError) as error:
        verify.verified(path, fingerprint)
    assert str(path) in error.value.what
    return error.value


def test_whole_bundle_says_what_it_holds_and_who_signed_it(made: Made) -> None:
    bundle = verify.verified(made.path)
    assert bundle.fingerprint == made.key.fingerprint
    assert {PACKAGE, "dists/bundle/InRelease", "dists/bundle/main/binary-amd64/Packages"} <= set(bundle.files)
    files = {"path": "", "fingerprint": "", "manifest_sha256": "", "files": {}}
    assert replace(bundle, **files) == ABOUT  # type: ignore[arg-type]


def test_fingerprint_may_be_written_as_gpg_shows_it(made: Made) -> None:
    spaced = " ".join(made.key.fingerprint[at : at + 4] for at in range(0, 40, 4)).lower()
    assert verify.verified(made.path, spaced).fingerprint == made.key.fingerprint


@pytest.mark.parametrize("at", [200, 1500, 3000, -30000, -12000])
def test_any_flipped_byte_is_found(made: Made, tmp_path: Path, at: int) -> None:
    content = bytearray(made.path.read_bytes())
    with tarfile.open(made.path) as archive:
        inside = [range(each.offset_data, each.offset_data + each.size) for each in archive]
    place = at % len(content)
    place = next(place for place in range(place, len(content)) if any(place in span for span in inside))
    content[place] ^= 1
    flipped = tmp_path / "flipped.tar"
    flipped.write_bytes(content)
    refused(flipped)


def test_flipped_byte_in_a_package_names_the_package_and_both_checksums(made: Made, tmp_path: Path) -> None:
    def change(files: dict[str, bytes]) -> None:
        files[PACKAGE] = files[PACKAGE][:-1] + bytes([files[PACKAGE][-1] ^ 1])

    error = refused(made.changed(tmp_path / "b.tar", change))
    assert error.where == PACKAGE
    assert error.seen.startswith("its SHA-256 is ")
    assert error.allowed == f"{verify.verified(made.path).files[PACKAGE]}, as in the manifest"


@pytest.mark.parametrize("name", [KEY, MANIFEST, SIGNATURE, PACKAGE, "dists/bundle/InRelease"])
def test_missing_file_is_named(made: Made, tmp_path: Path, name: str) -> None:
    error = refused(made.changed(tmp_path / "b.tar", lambda files: files.pop(name)))
    assert (error.where, error.seen) == (name, "it is missing")


def test_file_that_the_manifest_does_not_name_is_refused(made: Made, tmp_path: Path) -> None:
    error = refused(made.changed(tmp_path / "b.tar", lambda files: files.update({"pool/extra.deb": b"!"})))
    assert (error.where, error.seen) == ("pool/extra.deb", "it is not in the manifest")


def test_edited_manifest_has_a_wrong_signature(made: Made, tmp_path: Path) -> None:
    def change(files: dict[str, bytes]) -> None:
        files[MANIFEST] = files[MANIFEST].replace(b'"postgresql": 17', b'"postgresql": 16')

    error = refused(made.changed(tmp_path / "b.tar", change))
    assert error.where == SIGNATURE
    assert "BAD signature" in error.seen or "manipulated" in error.seen


def test_bundle_signed_again_with_another_key_has_another_fingerprint(made: Made, tmp_path: Path) -> None:
    with Key.made(tmp_path / "key", "somebody else") as key:
        other = seal(tmp_path, key)
    assert verify.verified(other).postgresql == 17  # whole, for whoever asks for no fingerprint
    error = refused(other, made.key.fingerprint)
    assert error.seen == f"signed by key {key.fingerprint}"
    assert made.key.fingerprint in error.allowed


def test_signature_of_another_key_than_the_one_inside_is_refused(made: Made, tmp_path: Path) -> None:
    with Key.made(tmp_path / "key", "somebody else") as key:
        (tmp_path / MANIFEST).write_bytes(b"{}")
        key.sign(tmp_path / MANIFEST, tmp_path / SIGNATURE)
    signature = (tmp_path / SIGNATURE).read_bytes()
    assert (
        refused(made.changed(tmp_path / "b.tar", lambda files: files.update({SIGNATURE: signature}))).where == SIGNATURE
    )


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside", "pool/../../outside"])
def test_names_that_lead_outside_are_refused(made: Made, tmp_path: Path, name: str) -> None:
    error = refused(made.changed(tmp_path / "b.tar", lambda files: files.update({name: b"!"})))
    assert error.where == name
    assert "outside the bundle" in error.seen


def test_link_is_refused(made: Made, tmp_path: Path) -> None:
    path = made.changed(tmp_path / "b.tar", lambda _: None)
    with tarfile.open(path, "a:") as archive:
        link = tarfile.TarInfo("pool/link.deb")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/shadow"
        archive.addfile(link)
    assert refused(path).where == "pool/link.deb"


def test_cut_file_and_what_is_no_bundle_are_refused(made: Made, tmp_path: Path) -> None:
    content = made.path.read_bytes()
    for name, text in (("cut.tar", content[: len(content) // 2]), ("empty.tar", b""), ("text.tar", b"hello" * 500)):
        (tmp_path / name).write_bytes(text)
        refused(tmp_path / name)
    refused(tmp_path / "not-there.tar")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--pgvector-version", "0.5.1"], "require each other"),
        (["--pgvector-version", "9.9", "--pgvector-url", "http://127.0.0.1:9/x"], "no recorded checksum"),
        (["--os", "debian11"], "unknown distribution"),
        (["--repository-uri", "http://127.0.0.1:9/pg"], "requires --repository-key"),
    ],
)
def test_requests_that_cannot_end_well_are_refused_before_anything_is_fetched(
    tmp_path: Path, given: list[str], expected: str
) -> None:
    done = provision("bundle", "make", tmp_path / "b.tar", *given)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "reading the package lists" not in done.stderr


def test_place_that_is_not_there_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    done = provision("bundle", "make", tmp_path / "not-there/b.tar")
    assert done.returncode == 2
    assert "no such directory" in done.stderr
    assert "reading the package lists" not in done.stderr


def test_command_verifies_and_prints_the_variables(made: Made) -> None:
    done = provision("bundle", "verify", made.path, "--fingerprint", made.key.fingerprint)
    assert done.returncode == 0, done.stderr
    assert f"postgresql_bundle_fingerprint: {made.key.fingerprint}" in done.stdout.splitlines()
    shown = provision("bundle", "verify", made.path, "--json")
    assert json.loads(shown.stdout)["versions"] == {"tiny": "1.0"}
    wrong = provision("bundle", "verify", made.path, "--fingerprint", "0" * 40)
    assert wrong.returncode == 1
    assert "next:    provision bundle make" in wrong.stderr
