"""Ask and configure Patroni through its REST API, with this member's certificate and the password. Does IO.

Source: Patroni's documentation ("Patroni REST API").
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from typing import Any

from provision import addresses
from provision.errors import HostError
from provision.host.dcs import client
from provision.plan.cluster import Member
from provision.plan.schema import Plan

CALL_S = 10.0


def call(
    plan: Plan, member: Member, path: str, *, method: str = "GET", body: Any = None, timeout: float = CALL_S
) -> tuple[int, Any]:
    """Call a member's Patroni; return the status and the JSON (or text) of its answer. Raises HostError, OSError."""
    cluster = client.cluster(plan)
    own = plan.tls.certificate("member")
    context = ssl.create_default_context(cafile=plan.tls.ca)
    context.load_cert_chain(own.certificate, own.key)
    headers = {"Content-Type": "application/json"}
    if method != "GET":
        rest = json.loads(client.PASSWORDS.read_text())["rest"]
        pair = f"{rest['username']}:{rest['password']}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    connection = http.client.HTTPSConnection(member.address, cluster.rest_port, timeout=timeout, context=context)
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except http.client.HTTPException as error:
        raise HostError("Patroni gave no valid answer", where=where(plan, member), seen=str(error)) from None
    finally:
        connection.close()
    try:
        return answer.status, json.loads(text)
    except ValueError:
        return answer.status, text


def status(plan: Plan) -> dict[str, Any]:
    """Return what this host's Patroni says of itself, {} while it does not answer."""
    try:
        found = call(plan, client.cluster(plan).here, "/patroni")[1]
    except (OSError, HostError):
        return {}
    return found if isinstance(found, dict) else {}


def where(plan: Plan, member: Member) -> str:
    """Return the URL of a member's REST API."""
    return f"https://{addresses.endpoint(member.address, client.cluster(plan).rest_port)}"
