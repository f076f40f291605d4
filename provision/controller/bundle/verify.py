"""Judge a bundle before anything of it is used: whole, signed, and nothing in it that its manifest does not name.

Reads one file and asks gpgv, or sqv where apt brought that instead. The key is inside: alone it proves that nothing was
changed by accident; with the fingerprint that `provision bundle make` printed it proves who made it. Unpacks nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tarfile
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

from provision import system
from provision.controller.bundle.contents import KEY, MANIFEST, SCHEMA, SIGNATURE, Bundle
from provision.errors import HostError

AGAIN = "provision bundle make"
CHUNK = 1 << 20
MOST_READ = 16 << 20  # bytes of a manifest: a larger one is none


def verified(path: Path, fingerprint: str = "") -> Bundle:
    """Return what a bundle holds. Raises HostError that names the file in it and the reason."""
    sums, texts = _read(path)
    for needed in (KEY, MANIFEST, SIGNATURE):
        if needed not in texts:
            raise _bad(path, needed, "it is missing", "a bundle with its key, its manifest and its signature")
    signer = _signer(path, texts)
    if fingerprint and signer != re.sub(r"\s", "", fingerprint).upper():
        raise _bad(
            path, SIGNATURE, f"made with the key {signer}", f"the key {fingerprint} (postgresql_bundle_fingerprint)"
        )
    manifest = _manifest(path, texts[MANIFEST])
    named = manifest["files"]
    for name in sorted(named.keys() | sums.keys() - {KEY, MANIFEST, SIGNATURE}):
        if name not in sums:
            raise _bad(path, name, "it is missing", "every file that the manifest names")
        if name not in named:
            raise _bad(path, name, "the manifest does not name it", "only files that the manifest names")
        if sums[name] != named[name]:
            raise _bad(path, name, f"its SHA-256 is {sums[name]}", f"{named[name]}, which the manifest names")
    known = {each.name for each in fields(Bundle)}
    about = {name: value for name, value in manifest.items() if name in known}
    digest = hashlib.sha256(texts[MANIFEST]).hexdigest()
    return Bundle(**{**about, "path": str(path), "fingerprint": signer, "manifest_sha256": digest})


def _bad(path: Path, name: str, seen: str, allowed: str) -> HostError:
    return HostError(f"the bundle {path} must not be used", where=name, seen=seen, allowed=allowed, run=AGAIN)


def _read(path: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """Return the SHA-256 of each file, and the text of the three that are read here."""
    sums: dict[str, str] = {}
    texts: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                # Also what would be written elsewhere: such a name is in no manifest of ours, yet is refused by itself.
                if not member.isreg() or member.name.startswith("/") or ".." in Path(member.name).parts:
                    raise _bad(path, member.name, "it is a link, a device or outside of the bundle", "plain files")
                if member.name in sums:
                    raise _bad(path, member.name, "it is there twice", "each file once")
                stream = archive.extractfile(member)
                assert stream is not None  # noqa: S101 - a plain file has one
                if member.name in (KEY, MANIFEST, SIGNATURE):
                    texts[member.name] = stream.read(MOST_READ)
                    sums[member.name] = hashlib.sha256(texts[member.name]).hexdigest()
                    continue
                digest = hashlib.sha256()
                while chunk := stream.read(CHUNK):
                    digest.update(chunk)
                sums[member.name] = digest.hexdigest()
    except (OSError, tarfile.TarError) as error:
        seen = (error.strerror if isinstance(error, OSError) else None) or f"{error} (cut short, or no tar archive)"
        raise _bad(path, str(path), seen, "a whole file that `provision bundle make` wrote") from None
    return sums, texts


def _signer(path: Path, texts: dict[str, bytes]) -> str:
    """Return the fingerprint of the key that signed the manifest."""
    program = next((name for name in ("gpgv", "sqv") if shutil.which(name)), "")
    if not program:
        raise HostError("nothing here can check a signature", seen="neither gpgv nor sqv", run="apt install gpgv")
    with tempfile.TemporaryDirectory(prefix="provision-") as folder:
        for name, content in texts.items():
            Path(folder, name).write_bytes(content)
        words = {
            "gpgv": ["gpgv", "--status-fd", "1", "--keyring", f"./{KEY}", SIGNATURE, MANIFEST],
            "sqv": ["sqv", "--keyring", KEY, SIGNATURE, MANIFEST],
        }[program]
        done = system.run(*words, directory=Path(folder), check=False)
    found = re.search(r"VALIDSIG .*?([0-9A-F]{40,64})$|^([0-9A-F]{40,64})$", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1].strip()
        raise _bad(path, SIGNATURE, f"{program} says: {said}", f"a signature of {MANIFEST} by {KEY}")
    return found[1] or found[2]


def _manifest(path: Path, text: bytes) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(text)
    if manifest.get("schema") != SCHEMA:
        raise _bad(path, MANIFEST, f"schema {manifest.get('schema')}", f"schema {SCHEMA}, which this version reads")
    return manifest
