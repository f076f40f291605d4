"""The documentation site: built offline, opened in a browser, searched; each problem is two clicks from its front."""

from __future__ import annotations

import functools
import http.server
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tests.contract import site
from tests.contract.repository import ROOT


@pytest.fixture(scope="module")
def built() -> Path:
    site.build()
    return site.SITE


def links(page: Path) -> set[str]:
    """The pages that a page links to, by file name."""
    return set(re.findall(r'href="(?:\./)?([\w-]+\.html)', page.read_text()))


class Recorder(http.server.SimpleHTTPRequestHandler):
    """Serves the site and records what a browser asks for: the search is a worker, which does not run from a file."""

    asked: ClassVar[list[str]] = []

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name of the base class
        self.asked.append(format % arguments)


@pytest.fixture(scope="module")
def served(built: Path) -> Iterator[str]:
    handler = functools.partial(Recorder, directory=str(built))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def browse(url: str, folder: Path) -> str:
    """Open a page in a headless browser without a network and return its document once its scripts have run."""
    command = [
        "chromium-headless-shell", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--timeout=4000", "--dump-dom", url,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def test_every_page_is_in_the_site_and_loads_nothing_from_elsewhere(built: Path) -> None:
    expected = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"README"}
    expected |= {f"role-{path.parent.name}" for path in (ROOT / "roles").glob("*/README.md")}
    made = {path.stem for path in built.glob("*.html")}
    assert expected <= made
    assert {"index", "on-call", "pages", "contributing", "changelog"} <= made
    for page in built.glob("*.html"):
        loaded = re.findall(r'<(?:script|img|link|iframe)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text())
        assert [each for each in loaded if "canonical" not in each] == [], page


def test_every_problem_and_alert_is_two_clicks_from_the_front_page(built: Path) -> None:
    assert "on-call.html" in links(built / "index.html")
    runbooks = {f"{page.removesuffix('.md')}.html" for _, page in site.sections()["Runbooks"]}
    assert len(runbooks) > 20
    assert runbooks <= links(built / "on-call.html")
    text = (built / "on-call.html").read_text()
    for alert in re.findall(r"^\| (\w+) \| (?:page|ticket) \|", (ROOT / "docs/monitoring.md").read_text(), re.M):
        assert f"<td>{alert}</td>" in text


def test_a_broken_link_fails_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    real = site.pages
    monkeypatch.setattr(site, "pages", lambda: {**real(), "sandbox.md": "# Sandbox\n\n[gone](gone.md)\n"})
    with pytest.raises(RuntimeError, match=r"gone\.md"):
        site.build()
    monkeypatch.undo()
    site.build()


def test_a_browser_shows_the_pages_and_loads_the_search_index_without_a_network(
    built: Path, served: str, tmp_path: Path
) -> None:
    shown = browse(f"file://{built}/schema.html", tmp_path / "one")
    assert "<h1" in shown
    assert "schema.svg" in shown
    assert (built / "schema.svg").stat().st_size > 5000
    found = browse(f"{served}/index.html?q=query_wait_timeout", tmp_path / "two")
    assert 'data-md-component="search-result"' in found
    assert any("/search/search_index.json" in line and " 200" in line for line in Recorder.asked), Recorder.asked
    assert not [line for line in Recorder.asked if " 404 " in line]
    index = json.loads((built / "search/search_index.json").read_text())["docs"]
    pages = {each["location"].partition("#")[0] for each in index if "query_wait_timeout" in each["text"]}
    assert "the-pool-is-exhausted.html" in pages
