"""Rules for every test: what shares hosts runs in one lane, and a skip without a listed reason is a failure."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[1]
ALLOWED = Path(__file__).with_name("allowed_skips.txt")
SHARED = "the shared prod hosts"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let those begin that take longest: what needs hosts, and of that what shares the prod hosts."""
    items.sort(key=lambda item: ("tests/system/" not in item.nodeid, _lane(item.nodeid) != SHARED))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Lanes:
    """Deal out whole files to the lanes of `pytest -n`."""
    return Lanes(config, log)


class Lanes(LoadScopeScheduling):
    """Keeps each file in one lane, and all files that use the shared prod hosts in the same one."""

    def _split_scope(self, nodeid: str) -> str:
        return _lane(nodeid)


@functools.cache
def _lane(nodeid: str) -> str:
    path = nodeid.partition("::")[0]
    return SHARED if "(production: Production" in (ROOT / path).read_text() else path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name skipped tests that `allowed_skips.txt` does not excuse."""
    for name in _unexcused(terminalreporter):
        terminalreporter.write_line(f"SKIPPED WITHOUT A LISTED REASON: {name} (see {ALLOWED.name})", red=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Make such a skip fail the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if isinstance(reporter, pytest.TerminalReporter) and _unexcused(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _unexcused(reporter: pytest.TerminalReporter) -> list[str]:
    lines = ALLOWED.read_text().splitlines() if ALLOWED.exists() else []
    excused = tuple(line.partition(" ")[0].rstrip(":") for line in lines if line and not line.startswith("#"))
    skipped = [report.nodeid for report in reporter.stats.get("skipped", [])]
    return [name for name in skipped if not (excused and name.startswith(excused))]
