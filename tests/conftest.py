"""Rules for every test: what shares hosts runs in one lane, and a skip without a listed reason is a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

ALLOWED = Path(__file__).with_name("allowed_skips.txt")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep each file in one lane of `pytest -n`, and all that use the shared prod hosts in another; slow ones begin."""
    items.sort(key=lambda item: ("tests/system/" not in item.nodeid, not _shares_production(item)))
    for item in items:
        lane = "production" if _shares_production(item) else item.path.name
        item.add_marker(pytest.mark.xdist_group(lane))


def _shares_production(item: pytest.Item) -> bool:
    return "production" in getattr(item, "fixturenames", ())


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
