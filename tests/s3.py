"""An S3 server on 127.0.0.1 with TLS, for tests: moto's, which keeps its buckets in memory and asks for no signature.

`python -m tests.s3 PORT CERTIFICATE KEY` serves until it is ended. moto's own program speaks HTTP/1.0 and ends each
connection without TLS's close, which OpenSSL 3 takes for an attack; HTTP/1.1 keeps the connection open.
"""

from __future__ import annotations

import sys

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, run_simple


class Handler(WSGIRequestHandler):
    """Speaks HTTP/1.1."""

    protocol_version = "HTTP/1.1"


def main() -> None:
    """Serve."""
    port, certificate, key = sys.argv[1:]
    application = DomainDispatcherApplication(create_backend_app)
    run_simple(
        "127.0.0.1", int(port), application, threaded=True, request_handler=Handler, ssl_context=(certificate, key)
    )


if __name__ == "__main__":
    main()
