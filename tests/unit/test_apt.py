"""Real output of apt on Debian 12 and 13, and the message made of it."""

from __future__ import annotations

import pytest

from provision.controller.apt import failure, source

CHANGE = {
    "uri": "postgresql_mirror_uri",
    "suite": "postgresql_mirror_suite",
    "component": "postgresql_mirror_component",
    "key": "postgresql_mirror_key",
}
PLACE = "http://192.0.2.1:81"


@pytest.mark.parametrize(
    ("said", "meaning", "variable"),
    [
        (f"W: OpenPGP signature verification failed: {PLACE} good InRelease: Sub-process /usr/bin/sqv returned "
         "an error "
         "code (1), error message is: Missing key E9043A616A91658282D3E0BB72586CCF2EAD65EA, which is needed to verify "
         f"signature.\nE: The repository '{PLACE} good InRelease' is not signed.",
         "it is signed by another key than the configured one", "postgresql_mirror_key"),
        (f"W: GPG error: {PLACE} good InRelease: The following signatures couldn't be verified because the "
         "public key is "
         f"not available: NO_PUBKEY 72586CCF2EAD65EA\nE: The repository '{PLACE} good InRelease' is not signed.",
         "it is signed by another key than the configured one", "postgresql_mirror_key"),
        ("error message is: Signing key on 310551CB9F44A80B5602CBA2BAF177F3A99E2EEF is bad:            The "
         "primary key is "
         "not live   because: Expired on 2026-01-11T00:00:00Z", "its signing key has expired",
         "postgresql_mirror_key"),
        ("W: GPG error: The following signatures were invalid: EXPKEYSIG BAF177F3A99E2EEF old\n"
         f"E: The repository '{PLACE} oldkey InRelease' is not signed.", "its signing key has expired",
         "postgresql_mirror_key"),
        ("error message is: Verifying signature:            Message has been manipulated",
         "it was changed after signing", "postgresql_mirror_uri"),
        ("W: GPG error: The following signatures were invalid: BADSIG 7CC7B4A193A18C52 good",
         "it was changed after signing", "postgresql_mirror_uri"),
        (f"E: The repository '{PLACE} unsigned Release' is not signed.", "it is not signed", "postgresql_mirror_uri"),
        (f"E: Release file for {PLACE}/dists/until/InRelease is expired (invalid since 4s). Updates for this "
         "repository "
         "will not be applied.", "its index has expired (Valid-Until)", "postgresql_mirror_uri"),
        (f"E: The repository '{PLACE} nosuch Release' does not have a Release file.", "it has no such suite",
         "postgresql_mirror_suite"),
        ("Task failed: the public key '/k.asc' cannot be read: No such file or directory",
         "its public key is missing", "postgresql_mirror_key"),
        ("E: the suite doesn't have the component main", "it has no such component", "postgresql_mirror_component"),
        (f"E: Failed to fetch {PLACE}/dists/good/main/binary-amd64/Packages  Hash Sum mismatch\n   Hashes of expected",
         "its files do not match its index", "postgresql_mirror_uri"),
        ("E: Failed to fetch http://192.0.2.1:9/dists/good/InRelease  Unable to connect to 192.0.2.1:9:",
         "it cannot be reached", "postgresql_mirror_uri"),
        ("E: Failed to fetch http://192.0.2.1:9/dists/good/InRelease  Could not connect to 192.0.2.1:9 (192.0.2.1). - "
         "connect (111: Connection refused)", "it cannot be reached", "postgresql_mirror_uri"),
        ("E: Failed to fetch http://mirror.invalid/dists/good/InRelease  Could not resolve 'mirror.invalid'",
         "its host name cannot be resolved", "postgresql_mirror_uri"),
    ],
)  # fmt: skip
def test_source_tells_one_cause_and_what_to_set(said: str, meaning: str, variable: str) -> None:
    reported = source(said, CHANGE)
    assert reported.startswith(meaning)
    assert f"; set {variable}. seen: " in reported
    assert "\n" not in reported


def test_unknown_failure_of_a_source_is_quoted() -> None:
    reported = source("E: The moon is in the wrong phase", CHANGE)
    assert reported == "it cannot be read; check postgresql_mirror_uri. seen: E: The moon is in the wrong phase."


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("No package matching 'postgresql-16' is available", "no package source of this host provides postgresql-16."),
        ("E: Unable to locate package postgresql-14", "no package source of this host provides postgresql-14."),
        (f"'/usr/bin/apt-get -y' failed: E: Failed to fetch {PLACE}/pool/p_1_amd64.deb  404  File not found "
         "[IP: 192.0.2.1]"
         "\nE: Unable to fetch some archives",
         f"{PLACE}/pool/p_1_amd64.deb is in the index but cannot be downloaded (404 File not found [IP: 192.0.2.1])."),
        (f"Failed to update apt cache after 2 retries: W:Failed to fetch {PLACE}/dists/x/InRelease  Could not resolve "
         "'mirror.invalid'",
         f"reading the package lists, {PLACE}/dists/x/InRelease: its host name cannot be resolved."),
        ("The following packages have unmet dependencies:\n postgresql-17 : Depends: libpq5 (>= 17~rc1) but it is not "
         "installable\nE: Unable to correct problems, you have held broken packages.",
         "dependencies are not available: postgresql-17 : Depends: libpq5 (>= 17~rc1) but it is not "
         "installable."),
    ],
)  # fmt: skip
def test_failure_names_the_package_or_the_place(said: str, expected: str) -> None:
    assert failure(said).startswith(expected)
