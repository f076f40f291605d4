"""Assemble and build the documentation site: `make site`. Reads README.md, docs/ and the READMEs of the roles.

The pages are copies with rewritten links: NAMES says what a file becomes, and docs/NAME.md keeps its name. The
navigation comes from the tables of docs/README.md.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.contract.repository import ROOT, roles

PAGES, SITE = ROOT / ".provision/site-pages", ROOT / ".provision/site"
ON_CALL = "on-call.md"
NAMES = {
    "README.md": "index.md",
    "docs/README.md": "pages.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security-policy.md",
    "CHANGELOG.md": "changelog.md",
    **{f"roles/{role.name}/README.md": f"role-{role.name}.md" for role in roles()},
}
FILES = {*NAMES, *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))}


def pages() -> dict[str, str]:
    """Return every page of the site by its file name."""
    found = {name(path): linked(ROOT / path) for path in sorted(FILES)}
    found["changelog.md"] = re.sub(r"(?<=[\s(])docs/([\w-]+)\.md(?=[\s),:;.])", r"[\1](\1.md)", found["changelog.md"])
    found[ON_CALL] = on_call()
    return {page: re.sub(r"\[docs/([\w-]+)\.md\](?=\(\1\.md)", r"[\1]", text) for page, text in found.items()}


def name(path: str) -> str:
    """Return the page that a file of the repository becomes; pictures keep their name, other files their path."""
    if path in NAMES:
        return NAMES[path]
    place = Path(path)
    return place.name if place.parent == Path("docs") else path


def linked(path: Path) -> str:
    """Return the text of a file with its links, whatever their anchors, rewritten to pages of the site."""
    folder = path.parent.relative_to(ROOT)

    def page(match: re.Match[str]) -> str:
        return match[1] + name(posixpath.normpath(folder / match[2]))

    text = path.read_text().replace("[docs/README.md](docs/README.md#runbooks)", f"[On call]({ON_CALL})")
    text = re.sub(r"\[(`[^`]+`)\]\((?:\.\./)*provision/[^)]+\)", r"\1", text)  # source files become their names
    return re.sub(r'(\]\(|src="|srcset=")(?!https?:|#)([^)#"\s]+)', page, text)


def sections() -> dict[str, list[tuple[str, str]]]:
    """Return the tables of docs/README.md: title of the section -> question or problem, and its page."""
    text = (ROOT / "docs/README.md").read_text()
    parts = re.split(r"^## (.+)$", text, flags=re.M)[1:]
    return {
        title: re.findall(r"^\| (?!question|problem|-)(.+?) \| \[[^]]+\]\(([\w-]+\.md)\) \|$", body, re.M)
        for title, body in zip(parts[::2], parts[1::2], strict=True)
    }


def on_call() -> str:
    """Return the entry page of the person on call: every alert and every problem, with its page."""
    alerts = re.findall(r"^\| (\w+) \| (page|ticket) \| (\[[^|]+) \|$", (ROOT / "docs/monitoring.md").read_text(), re.M)
    rows = [f"| {name} | {severity} | {page} |" for name, severity, page in alerts]
    problems = [f"- [{problem}]({page})" for problem, page in sections()["Runbooks"]]
    return "\n".join(
        [
            "# On call", "", "On the host: `sudo provision doctor` names what is wrong, why it matters and the fix.",
            "From anywhere: `provision doctor --database URL`, `provision audit -i inventories/prod`.", "",
            "## Problems", "", *problems, "",
            "## Alerts", "", "| alert | severity | page |", "|---|---|---|", *rows, "",
        ]
    )  # fmt: skip


def navigation() -> list[dict[str, object]]:
    """Return the navigation: front page, on call, the sections of docs/README.md, roles, project."""
    found: list[dict[str, object]] = [{"Start": "index.md"}, {"On call": ON_CALL}]
    found += [{title: [{_title(page): page} for _, page in rows]} for title, rows in sections().items()]
    found.append({"Roles": [{role.name: f"role-{role.name}.md"} for role in roles()]})
    found.append({"Project": ["pages.md", "contributing.md", "security-policy.md", "changelog.md"]})
    return found


def _title(page: str) -> str:
    return (ROOT / "docs" / page).read_text().partition("\n")[0].removeprefix("# ")


def assemble() -> Path:
    """Write pages, pictures and the configuration; return the path of the configuration."""
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir(parents=True)
    for name, text in pages().items():
        (PAGES / name).write_text(text)
    for picture in [*(ROOT / "docs").glob("*.svg"), *(ROOT / "docs").glob("*.png")]:
        shutil.copy(picture, PAGES)
    configuration = yaml.safe_load((ROOT / "docs/mkdocs.yml").read_text())
    configuration |= {"nav": navigation(), "docs_dir": str(PAGES), "site_dir": str(SITE)}
    made = PAGES.parent / "mkdocs.yml"
    made.write_text(yaml.safe_dump(configuration, sort_keys=False))
    return made


def build() -> None:
    """Build the site. Raises RuntimeError with the output of MkDocs, for a broken link too."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(assemble())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:  # not --quiet, which hides the warnings from --strict
        raise RuntimeError(done.stderr)


if __name__ == "__main__":
    build()
    sys.stdout.write(f"{SITE}/index.html; with search: python3 -m http.server -d {SITE}\n")
