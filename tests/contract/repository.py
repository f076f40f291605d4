"""Roles with their specifications, defaults and texts, for the contract tests. Pure but for reading files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- variables: made by `make docs` -->", "<!-- end of variables -->"


@dataclass(frozen=True)
class Role:
    """One role's folder."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's name, which begins the name of every variable."""
        return self.path.name

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        """Options by name, as the argument specification orders them."""
        text = (self.path / "meta/argument_specs.yml").read_text()
        options: dict[str, dict[str, Any]] = yaml.safe_load(text)["argument_specs"]["variables"].get("options") or {}
        return options

    @property
    def defaults(self) -> dict[str, Any]:
        """Default values by name, in the file's order."""
        found: dict[str, Any] = yaml.safe_load((self.path / "defaults/main.yml").read_text()) or {}
        return found

    def texts(self) -> dict[str, str]:
        """Every YAML file of the role, and every template of its own folder, by path."""
        files = [*self.path.rglob("*.yml"), *(ROOT / "templates" / self.name).glob("*.j2")]
        return {str(path.relative_to(ROOT)): path.read_text() for path in sorted(files)}

    def variables_table(self) -> str:
        """The README's table of variables."""
        rows = ["| variable | type | default | meaning |", "|---|---|---|---|"]
        for name, option in self.options.items():
            choices = " or ".join(str(choice) or "empty" for choice in option.get("choices", []))
            default = self.defaults[name]
            shown = "" if default in ("", [], {}) else f"`{default}`".replace("|", "\\|").replace("\n", " ")
            meaning = option["description"] + (f" One of {choices}." if choices else "")
            rows.append(f"| `{name}` | {option['type']} | {shown} | {meaning} |")
        return "\n".join(rows)


def roles() -> list[Role]:
    """Every role of the repository."""
    return [Role(path) for path in sorted((ROOT / "roles").iterdir())]


def with_table(role: Role) -> str:
    """Give the role's README with the table of its specification."""
    return between((role.path / "README.md").read_text(), BEGIN, END, role.variables_table())


def between(text: str, begin: str, end: str, table: str) -> str:
    """Replace the text between two markers."""
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{table}\n{end}", text)


if __name__ == "__main__":
    for each in roles():
        (each.path / "README.md").write_text(with_table(each))
