"""Client of Patroni's REST API: cluster view, switchover, restart, reinitialise, pause. Does IO; standard library only.

Each member serves the API at its own address over TLS. Requests that change something carry the credentials.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from provision import addresses
from provision.errors import HostError
from provision.host.cluster import access, view
from provision.host.cluster.access import Access
from provision.plan.cluster import Member

TIMEOUT_S = 3.0
PRIMARY_ROLES = ("primary", "master")
"""Patroni's words for the role, since 4.0 and before."""
T = TypeVar("T")


class PatroniError(HostError):
    """Patroni does not answer, or rejected a request."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: `status`, and the body as text and, where it is JSON, as an object."""

    status: int
    text: str
    facts: Mapping[str, Any]


class Patroni:
    """The REST APIs of a cluster's members."""

    def __init__(self, reach: Access, timeout_s: float = TIMEOUT_S) -> None:
        """Store the access; `timeout_s` is for reads."""
        self.access, self.timeout_s = reach, timeout_s

    def ask(
        self, member: Member, path: str, *, method: str = "GET", body: Mapping[str, Any] | None = None,
        timeout_s: float = 0,
    ) -> Answer:  # fmt: skip
        """Send one request to a member and return its answer, whatever the status. Raises PatroniError."""
        place = addresses.endpoint(member.address, self.access.cluster.rest_port)
        headers = {"Content-Type": "application/json"}
        if method != "GET":
            if self.access.rest is None:
                raise PatroniError(f"this host may not change the cluster: {method} {path}", allowed="a member")
            headers["Authorization"] = "Basic " + base64.b64encode(":".join(self.access.rest).encode()).decode()
        context = access.context(self.access.ca, self.access.for_rest)  # each time: certificates are renewed
        connection = http.client.HTTPSConnection(place, timeout=timeout_s or self.timeout_s, context=context)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException, ssl.SSLError) as error:
            raise PatroniError(
                f"Patroni on {member.name} does not answer",
                where=f"https://{place}{path}",
                seen=str(error) or type(error).__name__,
                run=f"on {member.name}: systemctl status patroni; journalctl -u patroni -n 50",
            ) from None
        finally:
            connection.close()
        return Answer(answer.status, text, _object(text))

    def status(self, member: Member) -> Mapping[str, Any]:
        """Return what a member says of itself (`GET /patroni`). Raises PatroniError."""
        return self.ask(member, "/patroni").facts

    def answers(self, member: Member) -> bool:
        """Return whether a member's Patroni answers."""
        try:
            self.status(member)
        except PatroniError:
            return False
        return True

    def view(self) -> view.View:
        """Return the cluster as the first member that answers sees it, the host's own first. Raises PatroniError.

        Of replicas that are said to run, the primary is asked which ones stream: Patroni before 3.1 does not say.
        """
        seen = self._first(lambda member: view.of(self.ask(member, "/cluster").facts))
        names = {each.name: each for each in self.access.cluster.members}
        if seen.leader and seen.leader.name in names and any(each.state == "running" for each in seen.replicas):
            with suppress(PatroniError):
                rows = self.status(names[seen.leader.name]).get("replication") or ()
                return view.with_streams(seen, rows)
        return seen

    def configuration(self) -> Mapping[str, Any]:
        """Return the dynamic configuration. Raises PatroniError."""
        return self._first(lambda member: self.ask(member, "/config").facts)

    def _first(self, read: Callable[[Member], T]) -> T:
        cluster = self.access.cluster
        seen = []
        for member in sorted(cluster.members, key=lambda each: each.name != cluster.member):
            try:
                return read(member)
            except PatroniError as error:
                seen.append(f"{member.name}: {error.seen}")
            except ValueError as error:
                seen.append(f"{member.name}: {error}")
        raise PatroniError(
            "no member of the cluster answers",
            where=cluster.scope,
            seen="; ".join(seen),
            run="systemctl status patroni on each member",
        )

    def order(
        self, member: Member, path: str, body: Mapping[str, Any], *, method: str = "POST", timeout_s: float = 60
    ) -> Answer:
        """Send a request that changes something. Raises PatroniError unless Patroni accepts it."""
        answer = self.ask(member, path, method=method, body=body, timeout_s=timeout_s)
        if answer.status not in (200, 202):
            raise PatroniError(
                f"Patroni on {member.name} rejected {method} {path}",
                where=self.access.cluster.scope,
                seen=f"{answer.status}: {answer.text.strip()[:300]}",
                run="provision cluster status",
            )
        return answer

    def switchover(self, leader: Member, to: str) -> Answer:
        """Promote a replica in place of the leader; returns once Patroni has seen the result. Raises PatroniError."""
        return self.order(leader, "/switchover", {"leader": leader.name, "candidate": to})

    def restart(self, member: Member, timeout_s: float = 300) -> Answer:
        """Restart a member's server; returns when it runs again. Raises PatroniError."""
        return self.order(member, "/restart", {}, timeout_s=timeout_s)

    def reinitialise(self, member: Member) -> Answer:
        """Delete a replica's data directory and clone it again, in the background. Raises PatroniError."""
        return self.order(member, "/reinitialize", {"force": True})

    def configure(self, member: Member, changes: Mapping[str, Any]) -> Answer:
        """Change keys of the dynamic configuration; None deletes a key. Raises PatroniError."""
        return self.order(member, "/config", changes, method="PATCH")


def _object(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
