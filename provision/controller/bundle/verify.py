"""Verify a bundle before use: complete, signed, and without files missing from its manifest.

Reads one file and runs gpgv, or sqv where apt depends on that instead. The bundle contains its key: alone it detects
accidental changes; with the fingerprint printed by `provision bundle make` it authenticates
the bundle. Unpacks nothing.
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
MOST_READ = 16 << 20  # bytes of a manifest; a larger one is invalid


def verified(path: Path, fingerprint: str = "") -> Bundle:
    """Return the contents of a valid bundle. Raises HostError with the file in it and the reason."""
    sums, texts = _read(path)
    for needed in (KEY, MANIFEST, SIGNATURE):
        if needed not in texts:
            raise _bad(path, needed, "it is missing", "a bundle with its key, its manifest and its signature")
    signer = _signer(path, texts)
    if fingerprint and signer != re.sub(r"\s", "", fingerprint).upper():
        raise _bad(path, SIGNATURE, f"signed by key {signer}", f"key {fingerprint} (postgresql_bundle_fingerprint)")
    manifest = _manifest(path, texts[MANIFEST])
    named = manifest["files"]
    for name in sorted(named.keys() | sums.keys() - {KEY, MANIFEST, SIGNATURE}):
        if name not in sums:
            raise _bad(path, name, "it is missing", "every file of the manifest")
        if name not in named:
            raise _bad(path, name, "it is not in the manifest", "only files of the manifest")
        if sums[name] != named[name]:
            raise _bad(path, name, f"its SHA-256 is {sums[name]}", f"{named[name]}, as in the manifest")
    known = {each.name for each in fields(Bundle)}
    about = {name: value for name, value in manifest.items() if name in known}
    digest = hashlib.sha256(texts[MANIFEST]).hexdigest()
    return Bundle(**{**about, "path": str(path), "fingerprint": signer, "manifest_sha256": digest})


def _bad(path: Path, name: str, seen: str, allowed: str) -> HostError:
    return HostError(f"the bundle {path} is invalid", where=name, seen=seen, allowed=allowed, run=AGAIN)


def _read(path: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """Return the SHA-256 of each file, and the contents of key, manifest and signature."""
    sums: dict[str, str] = {}
    texts: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                # Also refuse paths outside the bundle, although no valid manifest lists one.
                if not member.isreg() or member.name.startswith("/") or ".." in Path(member.name).parts:
                    raise _bad(path, member.name, "it is a link, a device or outside the bundle", "plain files")
                if member.name in sums:
                    raise _bad(path, member.name, "it is a duplicate", "each file once")
                stream = archive.extractfile(member)
                assert stream is not None  # noqa: S101 - not None for a plain file
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
        raise _bad(path, str(path), seen, "a complete file written by `provision bundle make`") from None
    return sums, texts


def _signer(path: Path, texts: dict[str, bytes]) -> str:
    """Return the fingerprint of the key that signed the manifest."""
    program = next((name for name in ("gpgv", "sqv") if shutil.which(name)), "")
    if not program:
        raise HostError("no program to verify a signature", seen="neither gpgv nor sqv", run="apt install gpgv")
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
        raise _bad(path, SIGNATURE, f"{program}: {said}", f"a signature of {MANIFEST} by {KEY}")
    return found[1] or found[2]


def _manifest(path: Path, text: bytes) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(text)
    if manifest.get("schema") != SCHEMA:
        raise _bad(path, MANIFEST, f"schema {manifest.get('schema')}", f"schema {SCHEMA}")
    return manifest
