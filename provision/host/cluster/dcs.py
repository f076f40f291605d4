"""Client of etcd's version 3 API: keys, leases, snapshots, administration. Does IO; standard library only.

Speaks the JSON gateway over HTTPS (https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/), which etcd 3.4 and 3.5 serve
below /v3. All reads are linearizable: without a quorum they fail instead of returning old values. Endpoints are tried
in order; one that does not answer goes to the end. Passwords travel in the body of a request. Not thread-safe: one
client for each thread.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from provision.errors import HostError
from provision.host.cluster import access
from provision.host.cluster.access import Access

TIMEOUT_S = 2.0
"""For each endpoint. An etcd member answers within milliseconds, also when its disk takes 100 ms for an fsync."""
TOKEN_ERRORS = ("invalid auth token", "revision in header is old", "user name is empty")
"""Errors of a token that expired, or that an etcd member forgot in a restart: authenticate again."""
REJECTIONS = (
    "authentication failed",
    "permission denied",
    "invalid auth token",
    "user name is empty",
    "user name not found",
    "authentication is not enabled",
)
"""Errors that no other endpoint would answer differently."""
DIGEST = hashlib.sha256().digest_size


class DcsError(HostError):
    """etcd is unreachable, has no quorum, or rejected the request."""


class RejectedError(DcsError):
    """etcd answers, and the user has not the right or the password."""


@dataclass(frozen=True)
class Value:
    """A key's value. `revision` is that of its last change, 0 for a key that does not exist."""

    key: str
    text: str
    revision: int
    lease: int


class Dcs:
    """A session with one of the etcd members."""

    def __init__(
        self,
        endpoints: Sequence[str],
        context: Callable[[], ssl.SSLContext],
        user: str,
        password: str,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Store the parameters; the first request connects and authenticates, unless `user` is "".

        `context` is called for each connection, so that a process that runs for months uses renewed certificates.
        """
        self._endpoints, self._context, self._timeout_s = list(endpoints), context, timeout_s
        self._user, self._password = user, password
        self._token = ""
        self._connection: http.client.HTTPSConnection | None = None

    @classmethod
    def of(cls, reach: Access, user: str = "", timeout_s: float = TIMEOUT_S) -> Dcs:
        """Make a client for a user of etcd, by default the one of this host's programs."""
        user = user or reach.user
        return cls(
            reach.cluster.endpoints, lambda: access.context(reach.ca, reach.for_etcd), user, reach.etcd[user], timeout_s
        )

    def read(self, *keys: str) -> dict[str, Value]:
        """Read several keys at one revision; a key that ends in / stands for all keys below it. Raises DcsError."""
        asked = [{"requestRange": span(key)} for key in keys]
        answer = self.call("kv/txn", {"success": asked})
        rows = [row for part in answer.get("responses", ()) for row in part["response_range"].get("kvs", ())]
        found = [
            Value(_text(row["key"]), _text(row.get("value", "")), int(row["mod_revision"]), int(row.get("lease", 0)))
            for row in rows
        ]
        return {each.key: each for each in found}

    def put(self, key: str, text: str, lease: int = 0) -> None:
        """Write a key; with a lease, etcd deletes it when the lease ends. Raises DcsError."""
        self.call("kv/put", {"key": _coded(key), "value": _coded(text), "lease": str(lease)})

    def replace(self, key: str, text: str, revision: int, lease: int = 0) -> bool:
        """Write a key if its last change is `revision` (0: it does not exist). False otherwise. Raises DcsError."""
        test = {"key": _coded(key), "target": "MOD", "modRevision": str(revision), "result": "EQUAL"}
        write = {"requestPut": {"key": _coded(key), "value": _coded(text), "lease": str(lease)}}
        return bool(self.call("kv/txn", {"compare": [test], "success": [write]}).get("succeeded", False))

    def delete(self, key: str) -> None:
        """Delete a key, if it exists. Raises DcsError."""
        self.call("kv/deleterange", {"key": _coded(key)})

    def lease(self, ttl_s: int) -> int:
        """Create a lease that ends after `ttl_s` seconds unless it is kept alive; return its id. Raises DcsError."""
        return int(self.call("lease/grant", {"TTL": str(ttl_s)})["ID"])

    def keep_alive(self, lease: int) -> bool:
        """Begin the lease's time again; False if it has ended. Raises DcsError."""
        answer = self.call("lease/keepalive", {"ID": str(lease)})
        return int(answer.get("result", {}).get("TTL", 0)) > 0

    def revoke(self, lease: int) -> None:
        """End a lease and delete its keys. Raises DcsError."""
        self.call("lease/revoke", {"ID": str(lease)})

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        if self._connection:
            with suppress(OSError):
                self._connection.close()
        self._connection = None

    def snapshot(self, write: Callable[[bytes], object]) -> None:
        """Pass a snapshot of all keys, which ends with its SHA-256, to `write` in parts. Raises DcsError."""
        digest, held = hashlib.sha256(), b""
        try:
            self._login()
            for line in self._send("maintenance/snapshot", {}):
                part = json.loads(line)
                if problem := _message(part):
                    raise self._rejected("maintenance/snapshot", problem)
                blob = base64.b64decode(part["result"].get("blob", ""))
                write(blob)
                held += blob
                digest.update(held[:-DIGEST])
                held = held[-DIGEST:]
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            raise DcsError("etcd sent no snapshot", where=self._endpoints[0], seen=str(error)) from None
        finally:
            self.close()
        if held != digest.digest():
            raise DcsError("the snapshot is incomplete", where=self._endpoints[0], allowed="one with a valid checksum")

    def call(self, what: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request to the first endpoint that answers it; `what` is its path below /v3/. Raises DcsError."""
        seen = []
        for _ in range(len(self._endpoints)):
            try:
                return self._authenticated(what, body)
            except (OSError, http.client.HTTPException, ValueError) as error:
                seen.append(f"{self._endpoints[0]}: {str(error) or type(error).__name__}")
                self._next()
        raise DcsError("etcd does not answer", where=what, seen="; ".join(seen), run="provision cluster status")

    def _next(self) -> None:
        self.close()
        self._endpoints.append(self._endpoints.pop(0))
        self._token = ""  # another member may not know it yet

    def _login(self) -> None:
        if self._token or not self._user:
            return
        answer = self._exchange("auth/authenticate", {"name": self._user, "password": self._password})
        if "token" not in answer:
            self._fail("auth/authenticate", _message(answer))
        self._token = str(answer["token"])

    def _authenticated(self, what: str, body: Mapping[str, Any]) -> dict[str, Any]:
        for attempt in (1, 2):
            self._login()
            answer = self._exchange(what, body)
            problem = _message(answer)
            if not problem:
                return answer
            if self._user and attempt == 1 and any(words in problem for words in TOKEN_ERRORS):
                self._token = ""
                continue
            self._fail(what, problem)
        raise AssertionError

    def _fail(self, what: str, problem: str) -> NoReturn:
        if any(words in problem for words in REJECTIONS):
            raise self._rejected(what, problem)
        raise ValueError(problem)  # no leader, time-out, too many requests: another member may answer

    def _rejected(self, what: str, problem: str) -> RejectedError:
        return RejectedError("etcd rejected the request", where=f"{self._endpoints[0]}/{what}", seen=problem)

    def _exchange(self, what: str, body: Mapping[str, Any]) -> dict[str, Any]:
        fresh = self._connection is None
        try:
            return self._post(what, body)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ssl.SSLError):
            self.close()
            if fresh:
                raise
            return self._post(what, body)  # an idle connection that the server had closed

    def _post(self, what: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = json.loads(self._send(what, body).read() or b"{}")
        if not isinstance(answer, dict):
            raise ValueError("not a JSON object")
        return answer

    def _send(self, what: str, body: Mapping[str, Any]) -> http.client.HTTPResponse:
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(
                self._endpoints[0], timeout=self._timeout_s, context=self._context()
            )
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = self._token
        self._connection.request("POST", f"/v3/{what}", json.dumps(body).encode(), headers)
        return self._connection.getresponse()


def _message(answer: Mapping[str, Any]) -> str:
    """Return the error of an answer: a text, in a stream an object, and in Debian 13's etcd a message with a code."""
    error = answer.get("error") or (answer.get("message", "") if "code" in answer else "")
    return str(error.get("message", error) if isinstance(error, dict) else error)


def span(key: str) -> dict[str, str]:
    """Return the fields of a key, or of all keys below one that ends in /."""
    found = {"key": _coded(key)}
    return {**found, "range_end": _coded(key[:-1] + "0")} if key.endswith("/") else found  # "0" follows "/" in ASCII


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _text(coded: str) -> str:
    return base64.b64decode(coded).decode(errors="replace")
