"""Compatible versions of PostgreSQL, pgvector, pgBackRest and PgBouncer, and the known defects of each.

Pure: no clock (`today` is an argument), no network. An unrecorded version is compared with the ranges below, but
never gets a source checksum.

Sources: postgresql.org/support/versioning (dates); pgvector's CHANGELOG, CI matrix and code at each tag;
pgBackRest's release notes and src/build/postgres/postgres.yaml; PgBouncer's NEWS; changelog.Debian of the packages
below.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from enum import Enum
from itertools import zip_longest

from provision import distributions
from provision.errors import UsageError

DEFAULT_POSTGRESQL = 14
DEFAULT_PGVECTOR = "0.5.1"
END_OF_LIFE_NOTICE = timedelta(days=180)  # a major upgrade needs planning


@dataclass(frozen=True)
class Postgresql:
    """One major. `minimum_pgbackrest` is the first release that supports the major's final on-disk format."""

    major: int
    released: date
    end_of_life: date
    minimum_pgbackrest: str


@dataclass(frozen=True)
class Pgvector:
    """One release: majors tested by its CI, majors that it compiles on, SHA-256 of the tag's tarball."""

    version: str
    tested: tuple[int, ...]
    compiles: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class Advisory:
    """A defect of versions `since` <= v < `fixed`. `backports` lists distribution packages with the fix."""

    id: str
    product: str
    since: str
    fixed: str
    summary: str
    remedy: str
    backports: tuple[str, ...] = ()
    covered: bool = False
    """The configuration of this project already prevents it, as `remedy` says."""


class Level(Enum):
    """Effect of a finding on a run."""

    REFUSAL = "refusal"
    WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    """One problem of a combination, with its remedy. A user may accept it by `id`."""

    id: str
    level: Level
    message: str
    remedy: str


POSTGRESQL = {
    row.major: row
    for row in (
        Postgresql(14, date(2021, 9, 30), date(2026, 11, 12), "2.36"),
        Postgresql(15, date(2022, 10, 13), date(2027, 11, 11), "2.41"),
        Postgresql(16, date(2023, 9, 14), date(2028, 11, 9), "2.48"),
        Postgresql(17, date(2024, 9, 26), date(2029, 11, 8), "2.53.1"),
        Postgresql(18, date(2025, 9, 25), date(2030, 11, 14), "2.55.0"),
    )
}

# PostgreSQL 18 added a parameter to vacuum_delay_point(); 0.8.1 is the first release that passes it. pgvector's CI
# never tested 0.5.1 on 17; we compiled it there and built, searched and vacuumed an HNSW index.
_TO_16, _TO_17, _ALL = (14, 15, 16), (14, 15, 16, 17), (14, 15, 16, 17, 18)
PGVECTOR = {
    row.version: row
    for row in (
        Pgvector("0.5.0", _TO_16, _TO_17, "d8aa3504b215467ca528525a6de12c3f85f9891b091ce0e5864dd8a9b757f77b"),
        Pgvector("0.5.1", _TO_16, _TO_17, "cc7a8e034a96e30a819911ac79d32f6bc47bdd1aa2de4d7d4904e26b83209dc8"),
        Pgvector("0.6.0", _TO_17, _TO_17, "b0cf4ba1ab016335ac8fb1cada0d2106235889a194fffeece217c5bda90b2f19"),
        Pgvector("0.6.1", _TO_17, _TO_17, "38b4c0d3137a0f54d85348ff0c5c4975d3a0d458f8a1333298a10e3abed5973d"),
        Pgvector("0.6.2", _TO_17, _TO_17, "a11cc249a9f3f3d7b13069a1696f2915ac28991a72d7ba4e2bcfdceddbaeae49"),
        Pgvector("0.7.0", _TO_17, _TO_17, "1b5503a35c265408b6eb282621c5e1e75f7801afc04eecb950796cfee2e3d1d8"),
        Pgvector("0.7.1", _TO_17, _TO_17, "fe6c8cb4e0cd1a8cb60f5badf9e1701e0fcabcfc260931c26d01e155c4dd21d1"),
        Pgvector("0.7.2", _TO_17, _TO_17, "617fba855c9bcb41a2a9bc78a78567fd2e147c72afd5bf9d37b31b9591632b30"),
        Pgvector("0.7.3", _TO_17, _TO_17, "48d8faa326188bb59e9054f5f77a2a40937e26b8f9a20da4bee54a12bff1e72e"),
        Pgvector("0.7.4", _TO_17, _TO_17, "0341edf89b1924ae0d552f617e14fb7f8867c0194ed775bcc44fa40288642583"),
        Pgvector("0.8.0", _TO_17, _TO_17, "867a2c328d4928a5a9d6f052cd3bc78c7d60228a9b914ad32aa3db88e9de27b0"),
        Pgvector("0.8.1", _ALL, _ALL, "a9094dfb85ccdde3cbb295f1086d4c71a20db1d26bf1d6c39f07a7d164033eb4"),
        Pgvector("0.8.2", _ALL, _ALL, "69f4019389af05dc1c9548deb8628e62878e6e207c03907f2b8af2016472cdaa"),
        Pgvector("0.8.3", _ALL, _ALL, "dc080c511a6354a1628eb19f9bc8e77ce880dde16c889744a6814c8c0006e36c"),
        Pgvector("0.8.4", _ALL, _ALL, "08575cd4a9d612d36dca821aa53e82c014aba8ef34c4c12d6ef6bff9f1093ef2"),
        Pgvector("0.8.5", _ALL, _ALL, "6f88a5cbdde31666f4b6c1a6b75c51dcbeffe58f9a7d2b26e502d5a6e5e14d44"),
        Pgvector("0.8.6", _ALL, _ALL, "10bf9938906e5d643bbc4a7eea104b6f57ba4898e5b76b20e60484ea1d5a7f8f"),
    )
}

CITUS, CITUS_MAJORS = "14.0", (16, 17, 18)
"""The supported series of Citus, which is part of its packages' names, and the majors that it supports."""

OLDEST_PGBOUNCER = "1.18.0"  # assumed on an unknown distribution

FEATURES = {"hnsw": "0.5.0", "parallel_hnsw_build": "0.6.0", "halfvec": "0.7.0", "iterative_scan": "0.8.0"}

PARALLEL_BUILD = "CVE-2026-3172"
NEWEST_PGVECTOR = list(PGVECTOR)[-1]
FROM_SOURCE = f"set pgvector_install_method: source and pgvector_version: {NEWEST_PGVECTOR}"
ADVISORIES = (
    Advisory(
        PARALLEL_BUILD, "pgvector", "0.6.0", "0.8.2",
        "a parallel HNSW build can overflow a buffer, leak data of other tables or crash the server",
        f"use pgvector 0.8.2 or newer ({FROM_SOURCE}); until then builds are serial, "
        "which took 1.7 times as long on two CPUs",
    ),
    Advisory(
        "pgvector-hnsw-vacuum", "pgvector", "0.5.0", "0.8.4",
        "VACUUM of an HNSW index during inserts can corrupt it or fail with 'hnsw graph not repaired'",
        f"use pgvector 0.8.4 or newer ({FROM_SOURCE}), then run REINDEX INDEX CONCURRENTLY",
    ),
    Advisory(
        "CVE-2025-2291", "pgbouncer", "0", "1.24.1",
        "the default auth_query accepts a password after its VALID UNTIL",
        "use an auth_query that checks rolvaliduntil (ours does), or PgBouncer 1.24.1", ("1.18.0-1+deb12u1",),
        covered=True,
    ),
    Advisory(
        "CVE-2025-12819", "pgbouncer", "0", "1.25.1",
        "search_path in the start-up message can inject SQL into auth_query if track_extra_parameters lists it",
        "keep search_path out of track_extra_parameters and qualify every name in auth_query, or use 1.25.1",
        ("1.18.0-1+deb12u1", "1.24.1-1+deb13u1"), covered=True,
    ),
    Advisory(
        "CVE-2026-6664", "pgbouncer", "0", "1.25.2",
        "an unauthenticated, malformed SCRAM packet crashes PgBouncer (also CVE-2026-6665, -6666 and -6667)",
        "use PgBouncer 1.25.2; until then allow only trusted networks", ("1.24.1-1+deb13u2",),
    ),
    Advisory(
        "CVE-2026-107350", "pgbouncer", "1.17.0", "1.26.1",
        "a client with one password of auth_file can log in as any SCRAM user with a second start-up message",
        "use PgBouncer 1.26.1; until then list only the pooler's own login in auth_file", covered=True,
    ),
    Advisory(
        "CVE-2026-107349", "pgbouncer", "1.20.0", "1.26.1",
        "an empty option name hangs PgBouncer if ignore_startup_parameters is set without 'options'",
        "add options to ignore_startup_parameters, or use PgBouncer 1.26.1", covered=True,
    ),
    # No release up to 4.1.1 has the change.
    Advisory(
        "patroni-3435", "patroni", "1.3", "4.1.2",
        "in strict mode without a replica, any WAL receiver confirms commits (synchronous_standby_names = '*'), even "
        "pg_receivewal or an unfinished clone, which cannot become primary",
        "clone without a slot, as provision does, so that a clone confirms nothing; "
        "do not run pg_receivewal --synchronous",
        covered=True,
    ),
)  # fmt: skip


# The first release whose database host can back up to a repository on another host (pgbackrest/pgbackrest#2512). With
# older ones the repository host must run the backup, and would need access to the database host.
REMOTE_REPOSITORY_PGBACKREST = "2.55"


def minimum_pgbackrest(postgresql: int, *, remote: bool) -> str:
    """Return the oldest usable pgBackRest for a major, with a local or a `remote` repository."""
    known = POSTGRESQL[postgresql].minimum_pgbackrest
    return max(known, REMOTE_REPOSITORY_PGBACKREST, key=version_key) if remote else known


def pgdg_packages(postgresql: int, codename: str) -> list[str]:
    """Return the packages that PGDG or its mirror may provide although the distribution has them; no others may.

    Includes pgBackRest only if the distribution's is too old for the major: it works only with its own version on both
    sides, and the repository host has the distribution's.
    """
    major = POSTGRESQL[postgresql]
    distribution = distributions.by_codename(codename)
    shipped = distribution.pgbackrest if distribution else ""
    too_old = not _at_least(version_key(shipped or "0"), version_key(major.minimum_pgbackrest))
    return [
        f"postgresql-{postgresql}",
        f"postgresql-client-{postgresql}",
        f"postgresql-server-dev-{postgresql}",
        f"postgresql-{postgresql}-pgvector",
        *([f"postgresql-{postgresql}-citus-{CITUS}"] if postgresql in CITUS_MAJORS else []),
        *("postgresql-common", "postgresql-common-dev", "postgresql-client-common", "libpq5", "libpq-dev"),
        *(["pgbackrest"] if too_old else []),
    ]


def version_key(version: str) -> tuple[int, ...]:
    """Parse '0.8.1', or the upstream part of '1:0.8.1-2+deb13u1', into (0, 8, 1). Raises UsageError."""
    upstream = re.match(r"(?:\d+:)?(\d+(?:\.\d+)*)", version.strip())
    if upstream is None:
        raise UsageError("not a version", seen=repr(version), allowed="numbers with dots, such as 0.8.1")
    return tuple(int(part) for part in upstream[1].split("."))


def compare_packages(left: str, right: str) -> int:
    """Compare two full Debian versions as `dpkg --compare-versions` does (deb-version(7)): -1, 0 or 1."""
    sides = []
    for version in (left, right):
        epoch, _, rest = version.strip().rpartition(":")
        upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "0")
        sides.append((int(epoch or 0), _debian_key(upstream), _debian_key(revision)))
    return (sides[0] > sides[1]) - (sides[0] < sides[1])


def _debian_key(part: str) -> list[tuple[list[int], int]]:
    """Return the sort key of one part of a Debian version: '~', then the end, then letters, then the rest."""
    chunks = re.findall(r"(\D*)(\d*)", part)
    return [([*map(_debian_order, text), 0], int(number or 0)) for text, number in chunks]


def _debian_order(character: str) -> int:
    return -1 if character == "~" else ord(character) + (0 if character.isalpha() else 256)


def applies(advisory: Advisory, version: str, package: str = "") -> bool:
    """Return whether a defect affects this upstream version, or this full package version if given.

    A backport fixes only later packages of its own series: dpkg sorts `1.24.1-2.pgdg12+1` after `1.24.1-1+deb13u2`,
    but it lacks the patches.
    """
    key = version_key(package or version)
    if not _at_least(key, version_key(advisory.since)) or _at_least(key, version_key(advisory.fixed)):
        return False
    for backport in advisory.backports:
        series = re.sub(r"\d+$", "", backport)
        if package.startswith(series) and compare_packages(package, backport) >= 0:
            return False
    return True


def _at_least(left: tuple[int, ...], right: tuple[int, ...]) -> bool:
    padded = list(zip_longest(left, right, fillvalue=0))
    return [pair[0] for pair in padded] >= [pair[1] for pair in padded]


def advisories(product: str, version: str, package: str = "", accepted: Collection[str] = ()) -> list[Finding]:
    """Return a warning for each known defect of a version whose id is not accepted."""
    found = (row for row in ADVISORIES if row.product == product and applies(row, version, package))
    shown = package or version
    return [
        Finding(row.id, Level.WARNING, f"{product} {shown}: {row.summary} (fixed in {row.fixed})", row.remedy)
        for row in found
        if row.id not in accepted
    ]


def pooler_defects(version: str, accepted: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Return the defects of a PgBouncer package version, and the ids of those that our configuration prevents."""
    rows = {row.id: row for row in ADVISORIES}
    found = advisories("pgbouncer", version, version, accepted)
    bare = [f"{each.message}; {each.remedy} ({each.id})" for each in found if not rows[each.id].covered]
    return bare, [each.id for each in found if rows[each.id].covered]


def pooler_warnings(version: str, accepted: Collection[str] = ()) -> list[str]:
    """Return warnings about a PgBouncer version, with the prevented defects in one line."""
    said, covered = pooler_defects(version, accepted)
    if covered:
        said.append(f"pgbouncer {version}: not fixed, but prevented by the configuration: {', '.join(covered)}")
    return said


def citus_problem(postgresql: int) -> str:
    """Return why no package of Citus is for this major; "" if one is."""
    if postgresql in CITUS_MAJORS:
        return ""
    return f"postgresql_version is {postgresql}: Citus {CITUS} supports {', '.join(map(str, CITUS_MAJORS))}"


PATRONI_OF_ETCD = ("3.5.28", "4.1.1")
"""From this etcd on, authentication needs this Patroni or a newer one."""


def etcd_problem(patroni: str, etcd: str) -> str:
    """Return why these packages of Patroni and etcd cannot work together; "" if they can, or are not known."""
    newer, needed = PATRONI_OF_ETCD
    if not patroni or not etcd or not _at_least(version_key(etcd), version_key(newer)):
        return ""
    if _at_least(version_key(patroni), version_key(needed)):
        return ""
    return (
        f"etcd {etcd} and Patroni {patroni}: Patroni cannot log in to etcd {newer} and newer before {needed}; install "
        f"Patroni {needed}, or hold etcd-server below {newer}"
    )


def pgbouncer_version(package: str, codename: str) -> str:
    """Return the upstream version of a package, or the distribution's version if the package is unknown."""
    distribution = distributions.by_codename(codename)
    shipped = distribution.pgbouncer if distribution else ""
    return ".".join(map(str, version_key(package or shipped or OLDEST_PGBOUNCER)))


def has_feature(feature: str, pgvector: str) -> bool:
    """Return whether a pgvector version has a feature of FEATURES."""
    return _at_least(version_key(pgvector), version_key(FEATURES[feature]))


def parallel_build_allowed(pgvector: str, package: str = "", accepted: Collection[str] = ()) -> bool:
    """Return whether HNSW builds may be parallel: supported, and the overflow fixed or accepted by id."""
    vulnerable = any(applies(row, pgvector, package) for row in ADVISORIES if row.id == PARALLEL_BUILD)
    return has_feature("parallel_hnsw_build", pgvector) and (not vulnerable or PARALLEL_BUILD in accepted)


def newer_pgvector(version: str) -> bool:
    """Return whether a version is newer than every recorded one."""
    return version[:1].isdigit() and version_key(version) > max(map(version_key, PGVECTOR))


def source_checksum(pgvector: str) -> str:
    """Return the SHA-256 of a release's tag tarball. Raises UsageError for an unrecorded release."""
    if pgvector not in PGVECTOR:
        raise UsageError(
            "no recorded checksum for this pgvector version",
            where="pgvector_version",
            seen=pgvector,
            allowed=", ".join(PGVECTOR),
        )
    return PGVECTOR[pgvector].sha256


def nearest(postgresql: int, pgvector: str) -> str:
    """Suggest working alternatives: with the same PostgreSQL, and with the same pgvector if possible."""
    sound = [v for v, row in PGVECTOR.items() if postgresql in row.tested and not advisories("pgvector", v)]
    ways = [f"pgvector {sound[0]} on PostgreSQL {postgresql}"] if sound else []
    known = PGVECTOR.get(pgvector)
    if known:
        closest = min(known.tested, key=lambda major: abs(major - postgresql))
        ways.append(f"PostgreSQL {closest} with pgvector {pgvector}")
    return " or ".join(ways) or f"pgvector {DEFAULT_PGVECTOR} on PostgreSQL {DEFAULT_POSTGRESQL}"


def check(
    postgresql: int,
    pgvector: str = "",
    method: str = "source",
    *,
    today: date,
    package: str = "",
    accepted: Collection[str] = (),
) -> list[Finding]:
    """Check a combination of versions; refusals come first.

    `method` is 'source' or 'package'. `pgvector` is empty while a package's version is unknown; `package` is its full
    version. `accepted` holds the ids of findings that the user accepts.
    """
    if postgresql not in POSTGRESQL:
        allowed = ", ".join(map(str, POSTGRESQL))
        remedy = f"set postgresql_version to one of {allowed}"
        return [Finding("postgresql-unknown", Level.REFUSAL, f"PostgreSQL {postgresql} is not supported", remedy)]
    found = [*_build(postgresql, pgvector, method), *_age(POSTGRESQL[postgresql], today)]
    if (pgvector or package) and not any(row.level is Level.REFUSAL for row in found):
        found += advisories("pgvector", pgvector, package, accepted)
        found += _features(package or pgvector)
    return [row for row in found if row.level is Level.REFUSAL or row.id not in accepted]


def _build(postgresql: int, pgvector: str, method: str) -> Iterable[Finding]:
    """Check a build from source. Packages are already checked by their maintainers."""
    if method != "source":
        return
    if newer_pgvector(pgvector):
        message = f"pgvector {pgvector} is newer than any recorded version: its defects are unknown"
        yield Finding(
            "pgvector-newer", Level.WARNING, message, "compare pgvector_source_sha256 with the publisher's checksum"
        )
    elif pgvector not in PGVECTOR:
        message = f"pgvector {pgvector or '(none)'} has no recorded checksum and cannot be built from source"
        remedy = f"set pgvector_version to one of {', '.join(PGVECTOR)}"
        yield Finding("pgvector-unknown", Level.REFUSAL, message, remedy)
    elif postgresql not in PGVECTOR[pgvector].compiles:
        message = f"pgvector {pgvector} does not compile on PostgreSQL {postgresql}"
        yield Finding("pgvector-does-not-compile", Level.REFUSAL, message, nearest(postgresql, pgvector))
    elif postgresql not in PGVECTOR[pgvector].tested:
        message = f"pgvector {pgvector} on PostgreSQL {postgresql} was never tested by pgvector's authors"
        yield Finding("pgvector-untested", Level.WARNING, message, nearest(postgresql, pgvector))


def _age(postgresql: Postgresql, today: date) -> Iterable[Finding]:
    major, end = postgresql.major, postgresql.end_of_life
    remedy = "new hosts: set postgresql_version to a newer major; existing hosts: docs/move-to-another-major.md"
    if today >= end:
        message = f"PostgreSQL {major} reached its end of life on {end}: it gets no more fixes"
        yield Finding("postgresql-end-of-life", Level.WARNING, message, remedy)
    elif end - today <= END_OF_LIFE_NOTICE:
        message = f"PostgreSQL {major} reaches its end of life on {end}"
        yield Finding("postgresql-end-of-life-near", Level.WARNING, message, remedy)


def _features(pgvector: str) -> Iterable[Finding]:
    if not has_feature("iterative_scan", pgvector):
        message = f"pgvector {pgvector} filters after the search: a filtered search can return too few rows"
        yield Finding("pgvector-no-iterative-scan", Level.WARNING, message, "use pgvector 0.8.0 or newer")
