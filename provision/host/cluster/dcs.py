"""Client of etcd's version 3 API: read, write and delete keys, and leases. Does IO; standard library only.

Speaks the JSON gateway over HTTPS (https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/), which etcd 3.4 and 3.5 serve
below /v3. All reads are linearizable: without a quorum they fail instead of returning old values. Endpoints are tried
in order; one that does not answer goes to the end. Not thread-safe: one client for each thread.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from provision.errors import HostError
from provision.host.cluster.access import POOLER_USER, Access

TIMEOUT_S = 2.0
"""For each endpoint. An etcd member answers within milliseconds, also when its disk takes 100 ms for an fsync."""
TOKEN_ERRORS = ("invalid auth token", "revision in header is old", "user name is empty")
"""Errors of a token that expired, or that an etcd member forgot in a restart: authenticate again."""


class DcsError(HostError):
    """etcd is unreachable, has no quorum, or rejected the request."""


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
        """Store the parameters; the first request connects and authenticates.

        `context` is called for each connection, so that a process that runs for months uses renewed certificates.
        """
        self._endpoints, self._context, self._timeout_s = list(endpoints), context, timeout_s
        self._user, self._password = user, password
        self._token = ""
        self._connection: http.client.HTTPSConnection | None = None

    @classmethod
    def of(cls, access: Access, user: str = POOLER_USER, timeout_s: float = TIMEOUT_S) -> Dcs:
        """Make a client for a user of etcd."""
        return cls(
            access.cluster.endpoints, lambda: access.context(access.for_etcd), user, access.etcd[user], timeout_s
        )

    def read(self, *keys: str) -> dict[str, Value]:
        """Read several keys at one revision; a key that ends in / stands for all keys below it. Raises DcsError."""
        asked = [{"requestRange": _range(key)} for key in keys]
        answer = self._call("kv/txn", {"success": asked})
        rows = [row for part in answer.get("responses", ()) for row in part["response_range"].get("kvs", ())]
        found = [
            Value(_text(row["key"]), _text(row.get("value", "")), int(row["mod_revision"]), int(row.get("lease", 0)))
            for row in rows
        ]
        return {each.key: each for each in found}

    def put(self, key: str, text: str, lease: int = 0) -> None:
        """Write a key; with a lease, etcd deletes it when the lease ends. Raises DcsError."""
        self._call("kv/put", {"key": _coded(key), "value": _coded(text), "lease": str(lease)})

    def replace(self, key: str, text: str, revision: int, lease: int = 0) -> bool:
        """Write a key if its last change is `revision` (0: it does not exist). False otherwise. Raises DcsError."""
        test = {"key": _coded(key), "target": "MOD", "modRevision": str(revision), "result": "EQUAL"}
        write = {"requestPut": {"key": _coded(key), "value": _coded(text), "lease": str(lease)}}
        return bool(self._call("kv/txn", {"compare": [test], "success": [write]}).get("succeeded", False))

    def delete(self, key: str) -> None:
        """Delete a key, if it exists. Raises DcsError."""
        self._call("kv/deleterange", {"key": _coded(key)})

    def lease(self, ttl_s: int) -> int:
        """Create a lease that ends after `ttl_s` seconds unless it is kept alive; return its id. Raises DcsError."""
        return int(self._call("lease/grant", {"TTL": str(ttl_s)})["ID"])

    def keep_alive(self, lease: int) -> bool:
        """Begin the lease's time again; False if it has ended. Raises DcsError."""
        answer = self._call("lease/keepalive", {"ID": str(lease)})
        return int(answer.get("result", {}).get("TTL", 0)) > 0

    def revoke(self, lease: int) -> None:
        """End a lease and delete its keys. Raises DcsError."""
        self._call("lease/revoke", {"ID": str(lease)})

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        if self._connection:
            with suppress(OSError):
                self._connection.close()
        self._connection = None

    def _call(self, what: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request to the first endpoint that answers it."""
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

    def _authenticated(self, what: str, body: Mapping[str, Any]) -> dict[str, Any]:
        for attempt in (1, 2):
            if not self._token:
                known = {"name": self._user, "password": self._password}
                answer = self._exchange("auth/authenticate", known, {})
                if "token" not in answer:
                    raise self._refused("auth/authenticate", _message(answer))
                self._token = str(answer["token"])
            answer = self._exchange(what, body, {"Authorization": self._token})
            problem = _message(answer)
            if not problem:
                return answer
            if attempt == 1 and any(words in problem for words in TOKEN_ERRORS):
                self._token = ""
                continue
            if "permission denied" in problem or "invalid auth token" in problem:
                raise self._refused(what, problem)
            raise ValueError(problem)  # no leader, time-out, too many requests: another member may answer
        raise AssertionError

    def _refused(self, what: str, problem: str) -> DcsError:
        return DcsError("etcd rejected the request", where=f"{self._endpoints[0]}/{what}", seen=problem)

    def _exchange(self, what: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
        fresh = self._connection is None
        try:
            return self._post(what, body, headers)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ssl.SSLError):
            self.close()
            if fresh:
                raise
            return self._post(what, body, headers)  # an idle connection that the server had closed

    def _post(self, what: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(
                self._endpoints[0], timeout=self._timeout_s, context=self._context()
            )
        text = json.dumps(body).encode()
        self._connection.request("POST", f"/v3/{what}", text, {"Content-Type": "application/json", **headers})
        answer = json.loads(self._connection.getresponse().read() or b"{}")
        if not isinstance(answer, dict):
            raise ValueError("not a JSON object")
        return answer


def _message(answer: Mapping[str, Any]) -> str:
    """Return the error of an answer: a text, or in a stream an object."""
    error = answer.get("error", "")
    return str(error.get("message", error) if isinstance(error, dict) else error)


def _range(key: str) -> dict[str, str]:
    found = {"key": _coded(key)}
    return {**found, "range_end": _coded(key[:-1] + "0")} if key.endswith("/") else found  # "0" follows "/" in ASCII


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _text(coded: str) -> str:
    return base64.b64decode(coded).decode(errors="replace")
