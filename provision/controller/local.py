"""What this very machine's release has of PostgreSQL and pgvector, for a run that makes a database of it.

Reads /etc/os-release. Only where the release has no package of pgvector does it ask the machine's own Debian mirror for
upstream's tarball, once, and keeps the answer in `.provision/local`. Refuses nothing: a release that is not known gets
the default, and preflight says what is wrong with it.
"""

import json
import platform
from pathlib import Path
from typing import Any

from provision.compatibility import DEFAULT_POSTGRESQL
from provision.distributions import by_codename


def release(project: Path) -> dict[str, Any]:
    """Return postgresql_version and what begins with pgvector_. Raises HostError when a mirror does not answer."""
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
    from provision.controller import mirror  # needs pyinfra, which a release with a package can do without

    answer = mirror.pgvector_source(mirror.find(codename)).variables()
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_suffix(".new")
    temporary.write_text(json.dumps(answer))
    temporary.replace(kept)
    return answer
