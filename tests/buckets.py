"""A bucket for tests: moto's S3 server behind TLS, with a certificate of the test.

Does IO: starts tests.s3 in a process of its own, which keeps its objects in memory, and ends it with the block.
"""

from __future__ import annotations

import http.client
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.clusters import free_port, run
from tests.contract.repository import ROOT

BUCKET = "backups"
CREDENTIAL = "AWS4-HMAC-SHA256 Credential=id/20260101/us-east-1/s3/aws4_request"
"""moto looks at the name in it, not at a signature."""


def configured(folder: Path, secrets: str, main: str, more: str = "") -> Path:
    """Write the two rendered files of role backup as one, with pgBackRest's own paths below a folder of the server."""
    for name in ("spool", "lock", "log"):
        (folder / name).mkdir()
        shutil.chown(folder / name, "postgres", "postgres")
    here = "\n".join(f"{name}-path={folder / name}" for name in ("spool", "lock", "log"))
    main = main.replace("lock-path=/var/spool/pgbackrest/lock\n", "")
    main = main.replace("spool-path=/var/spool/pgbackrest", here)
    assert here in main
    path = folder / "pgbackrest.conf"
    path.write_text(f"{secrets}\n{main}{more}")
    shutil.chown(path, "postgres", "postgres")
    path.chmod(0o600)
    return path


@dataclass(frozen=True)
class Store:
    """The endpoint, and the authority that its certificate is checked with."""

    port: int
    authority: Path

    def variables(self, **more: object) -> dict[str, object]:
        """Return the keys of `backup_s3` for this bucket."""
        return {
            "bucket": BUCKET, "endpoint": "localhost", "region": "us-east-1", "uri_style": "path", "port": self.port,
            "ca_file": str(self.authority), "key": "id", "key_secret": "secret", **more,
        }  # fmt: skip

    def ask(self, path: str, method: str = "GET") -> bytes:
        """Send a request. Fails unless it is answered with success."""
        context = ssl.create_default_context(cafile=str(self.authority))
        with closing(http.client.HTTPSConnection("localhost", self.port, timeout=10, context=context)) as connection:
            connection.request(method, f"/{path}", headers={"Authorization": CREDENTIAL})
            answer = connection.getresponse()
            body = answer.read()
        assert answer.status in (200, 204), (path, body[:300])
        return body

    def names(self) -> list[str]:
        """List the objects of the bucket."""
        return re.findall("<Key>(.*?)</Key>", self.ask(f"{BUCKET}?list-type=2").decode())

    def objects(self) -> dict[str, bytes]:
        """Return the objects of the bucket."""
        return {name: self.ask(f"{BUCKET}/{name}") for name in self.names()}

    def empty(self) -> None:
        """Remove every object of the bucket."""
        while names := self.names():
            for name in names:
                self.ask(f"{BUCKET}/{name}", "DELETE")


@contextmanager
def served(folder: Path) -> Iterator[Store]:
    """Serve an empty bucket within a `with` block, with the certificate and the log in `folder`."""
    key, authority, port = folder / "s3.key", folder / "s3.crt", free_port()
    run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", authority,
    )  # fmt: skip
    authority.chmod(0o644)
    words = [sys.executable, "-m", "tests.s3", str(port), str(authority), str(key)]
    with (folder / "moto.log").open("w") as log, subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log) as server:
        try:
            made, deadline = Store(port, authority), time.monotonic() + 30
            while True:
                try:
                    made.ask(BUCKET, "PUT")
                    break
                except ConnectionRefusedError:
                    assert server.poll() is None, (folder / "moto.log").read_text()
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            yield made
        finally:
            server.terminate()
