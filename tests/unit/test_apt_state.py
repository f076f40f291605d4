"""What the probe reads of dpkg and apt: states of packages, candidates, both formats of sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugins.module_utils import apt_state

KEY = "/usr/share/keyrings/pgdg.gpg"

# apt-cache policy of apt 3.0: installed, available, barred by a pin, and without any version.
POLICY = """\
pgbouncer:
  Installed: 1.24.1-1
  Candidate: 1.25.0-1
  Version table:
     1.25.0-1 500
        500 http://deb.example.com/debian trixie/main amd64 Packages
 *** 1.24.1-1 100
        100 /var/lib/dpkg/status
pgbackrest:
  Installed: (none)
  Candidate: 2.55.1-1
  Version table:
     2.55.1-1 500
        500 http://deb.example.com/debian trixie/main amd64 Packages
postgresql-17:
  Installed: (none)
  Candidate: (none)
  Version table:
     17.6-0+deb13u1 -1
        500 http://deb.example.com/debian trixie/main amd64 Packages
gone:
  Installed: (none)
  Candidate: (none)
  Version table:
"""


def test_versions_and_packages_that_a_pin_bars_are_read_from_the_policy() -> None:
    assert apt_state.parse_policy(POLICY, ["pgbouncer", "pgbackrest", "postgresql-17", "gone", "unknown"]) == {
        "pgbouncer": {"version": "1.24.1-1", "barred": False},
        "pgbackrest": {"version": "2.55.1-1", "barred": False},
        "postgresql-17": {"version": "", "barred": True},
        "gone": {"version": "", "barred": False},
        "unknown": {"version": "", "barred": False},
    }


def test_a_held_package_is_installed_all_the_same() -> None:
    lines = ["ii bash", "hi postgresql-17", "hn pgbackrest", "rc nginx", "iU half", "iHRbroken", "hU held-half"]
    assert apt_state.parse_packages(lines) == (
        ["bash", "postgresql-17"],
        ["postgresql-17", "pgbackrest", "held-half"],
    )


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.list", "deb http://h/apt trixie-pgdg main\n", [("http://h/apt", "trixie-pgdg", "")]),
        ("a.list", f"deb [arch=amd64 signed-by={KEY}] https://h/apt/ trixie-pgdg main 17 # ours\n",
         [("https://h/apt/", "trixie-pgdg", KEY)]),
        ("a.list", f"  deb-src [ signed-by={KEY} ]   http://h/apt  trixie-pgdg main\n",
         [("http://h/apt", "trixie-pgdg", KEY)]),
        ("a.list", "# deb http://h/apt trixie-pgdg main\n\n", []),
        ("a.sources", f"Types: deb\nURIs: http://h/apt http://i/apt\nSuites: one two\nSigned-By: {KEY}\n",
         [("http://h/apt", "one", KEY), ("http://h/apt", "two", KEY), ("http://i/apt", "one", KEY),
          ("http://i/apt", "two", KEY)]),
        ("a.sources", "# x\nEnabled: no\nTypes: deb\nURIs: http://h/apt\nSuites: s\n\nTypes: deb\n# y\nuris: http://i\n"
         "SUITES:\n one\n two\n", [("http://i", "one", ""), ("http://i", "two", "")]),
        ("a.sources", "Types: deb\nURIs: http://h\nSuites: s\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n"
         " mQ: a\n -----END PGP PUBLIC KEY BLOCK-----\n", [("http://h", "s", "embedded")]),
        ("a.sources", "not a stanza\n", []),
        ("a.list.disabled", "deb http://h/apt trixie-pgdg main\n", []),
        ("a b.list", "deb http://h/apt trixie-pgdg main\n", []),
    ],
)  # fmt: skip
def test_reads_the_sources_that_apt_reads(
    name: str, text: str, expected: list[tuple[str, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apt_state, "SOURCES", tmp_path)
    path = tmp_path / "sources.list.d" / name
    path.parent.mkdir()
    path.write_text(text)
    (tmp_path / "sources.list").write_text("deb http://h/debian trixie main\n")
    first = {"file": f"{tmp_path}/sources.list", "uri": "http://h/debian", "suite": "trixie", "signed_by": ""}
    rows = [{"file": str(path), "uri": uri, "suite": suite, "signed_by": key} for uri, suite, key in expected]
    assert apt_state.sources() == [first, *rows]
