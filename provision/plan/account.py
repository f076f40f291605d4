"""Name of a stanza's account on the backup host. Pure; standard library only: the module host_repository carries it."""

from __future__ import annotations

import hashlib
import re

PREFIX = "pgbackrest-"
LONGEST = 32
"""useradd(8)."""
PLAIN = re.compile(r"[a-z0-9][a-z0-9_-]*")


def repository_user(stanza: str) -> str:
    """Return the account of a stanza: its name where that is one of an account, else what is left of it and a hash."""
    name = f"{PREFIX}{stanza}"
    if PLAIN.fullmatch(stanza) and len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(stanza.encode()).hexdigest()[:6]
    left = re.sub(r"[^a-z0-9_-]", "-", stanza.lower())[: LONGEST - len(PREFIX) - len(digest) - 1]
    return f"{PREFIX}{left}-{digest}"
