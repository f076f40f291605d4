"""An S3 server on 127.0.0.1 with TLS, for tests: moto's, which keeps its buckets in memory and asks for no signature.

`python -m tests.s3 PORT CERTIFICATE KEY` serves until it is ended. Unlike moto's own program it ends each connection
with TLS's closing message; without it OpenSSL 3 reports a truncated answer.
"""

from __future__ import annotations

import sys
from contextlib import suppress

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, run_simple


class Handler(WSGIRequestHandler):
    """Says in TLS that the connection ends."""

    def finish(self) -> None:
        """Send the closing message; the client need not answer it."""
        super().finish()
        with suppress(OSError):
            self.connection.settimeout(1)
            self.connection.unwrap()


def main() -> None:
    """Serve."""
    port, certificate, key = sys.argv[1:]
    application = DomainDispatcherApplication(create_backend_app)
    run_simple(
        "127.0.0.1", int(port), application, threaded=True, request_handler=Handler, ssl_context=(certificate, key)
    )


if __name__ == "__main__":
    main()
