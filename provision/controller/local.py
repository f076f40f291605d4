"""PostgreSQL and pgvector versions of this machine's distribution, for a run against localhost.

Reads /etc/os-release. If the distribution has no pgvector package, looks up the upstream tarball on the machine's
Debian mirror once and caches the answer in `.provision/local`. Refuses nothing: an unknown distribution gets the
default, and the validation of the plan reports it.
"""

import json
import platform
from pathlib import Path
from typing import Any

from provision.compatibility import DEFAULT_POSTGRESQL
from provision.distributions import by_codename


def release(project: Path) -> dict[str, Any]:
    """Return postgresql_version and the pgvector_* variables. Raises HostError if the mirror does not answer."""
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    distribution = by_codename(codename)
    major = distribution.postgresql if distribution else DEFAULT_POSTGRESQL
    packaged = distribution.pgvector if distribution else "0"
    source = {"pgvector_version": packaged, "pgvector_source_url": "", "pgvector_source_sha256": ""}
    if not packaged:
        source = _source(project / ".provision/local" / f"pgvector-{codename}.json", codename)
    method = "package" if packaged else "source"
    return {"postgresql_version": major, "pgvector_install_method": method, **source}


def _source(kept: Path, codename: str) -> dict[str, str]:
    if kept.exists():
        answer: dict[str, str] = json.loads(kept.read_text())
        return answer
    from provision.controller import mirror  # needs pyinfra, which is not installed on every machine

    answer = mirror.pgvector_source(mirror.find(codename)).variables()
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_suffix(".new")
    temporary.write_text(json.dumps(answer))
    temporary.replace(kept)
    return answer
