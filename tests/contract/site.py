"""Assemble and build the documentation site: `make site`. Reads README.md, docs/ and the READMEs of the roles.

The pages are copies with rewritten links: README.md becomes the front page, docs/NAME.md keeps its name, and
roles/NAME/README.md becomes role-NAME.md. The navigation comes from the tables of docs/README.md.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.contract.repository import ROOT, roles

PAGES, SITE = ROOT / ".provision/site-pages", ROOT / ".provision/site"
ON_CALL = "on-call.md"


def pages() -> dict[str, str]:
    """Return every page of the site by its file name."""
    found = {path.name: _docs(path.read_text()) for path in sorted((ROOT / "docs").glob("*.md"))}
    found["pages.md"] = found.pop("README.md").replace("README.md", "index.md")
    found["index.md"] = _front((ROOT / "README.md").read_text())
    found["contributing.md"] = _front((ROOT / "CONTRIBUTING.md").read_text())
    found["security-policy.md"] = _front((ROOT / "SECURITY.md").read_text())
    changes = _front((ROOT / "CHANGELOG.md").read_text())
    found["changelog.md"] = re.sub(r"(?<=[\s(])docs/([\w-]+)\.md(?=[\s),:;.])", r"[\1](\1.md)", changes)
    found[ON_CALL] = on_call()
    found |= {f"role-{role.name}.md": _role((role.path / "README.md").read_text()) for role in roles()}
    return {name: re.sub(r"\[docs/([\w-]+)\.md\]\(\1\.md\)", r"[\1](\1.md)", text) for name, text in found.items()}


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


def _docs(text: str) -> str:
    """Rewrite links out of docs/: to pages of the root and to the roles; source files become their names."""
    text = re.sub(r"\]\(\.\./roles/(\w+)/README\.md", r"](role-\1.md", text)
    text = re.sub(r"\[(`[^`]+`)\]\(\.\./provision/[^)]+\)", r"\1", text)
    for page, name in {"README": "index", "CONTRIBUTING": "contributing", "SECURITY": "security-policy"}.items():
        text = text.replace(f"](../{page}.md", f"]({name}.md")
    return text


def _front(text: str) -> str:
    """Rewrite the links of a page of the root."""
    text = text.replace("[docs/README.md](docs/README.md#runbooks)", f"[On call]({ON_CALL})")
    text = re.sub(r"\]\(docs/README\.md\)", "](pages.md)", text)
    text = re.sub(r"\]\(docs/([\w.-]+)\)", r"](\1)", text)
    text = re.sub(r"\]\(roles/(\w+)/README\.md\)", r"](role-\1.md)", text)
    text = re.sub(r'(src|srcset)="docs/', r'\1="', text)
    return text.replace("](CONTRIBUTING.md)", "](contributing.md)").replace("](CHANGELOG.md)", "](changelog.md)")


def _role(text: str) -> str:
    text = re.sub(r"\]\(\.\./\.\./docs/([\w-]+\.md)", r"](\1", text)
    return re.sub(r"\]\(\.\./(\w+)/README\.md", r"](role-\1.md", text)


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
