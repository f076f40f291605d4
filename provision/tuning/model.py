"""Types of tuning. Input: Host, Choices, Request. Output: Setting, BudgetLine, Tuning.

Pure and frozen. Refuses an impossible host or profile (no CPU, an unknown storage kind, a misspelt key).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from provision import quoting
from provision.errors import UsageError

Value = str | int | float | bool
MINIMUM_MEMORY_MB = 440  # reported by a 512 MB machine; less cannot hold ten sessions and an index build
AUDITED = ("all", "none", "ddl", "function", "misc", "misc_set", "read", "role", "write")
"""Classes of pgaudit.log (pgaudit's README); a server with another one does not start."""
# Usable share of a small machine's nominal memory: a "2 GiB" host reports 1.9 GiB or slightly less.
NOMINAL_FACTOR = 0.9


@dataclass(frozen=True)
class Host:
    """A machine or container. `memory_mb` is the memory within its cgroup limit; all `_mb` are MiB.

    `shm_mb` is the size of /dev/shm (None: the Linux default, half of memory), `disk_mb` the size of the data
    directory's file system (None: unknown), `huge_pages` the number of 2 MiB pages currently reserved.
    """

    memory_mb: int
    cpus: int
    storage: Literal["ssd", "hdd", "nvme"] = "ssd"
    container: bool = False
    shm_mb: int | None = None
    disk_mb: int | None = None
    huge_pages: int = 0

    def __post_init__(self) -> None:
        """Refuse impossible values. Raises UsageError."""
        if self.memory_mb < MINIMUM_MEMORY_MB:
            raise UsageError(
                "too little memory", seen=f"{self.memory_mb} MB", allowed=f"{MINIMUM_MEMORY_MB} MB or more"
            )
        if self.cpus < 1:
            raise UsageError("a host has at least one CPU", seen=str(self.cpus), allowed="1 or more")
        if self.storage not in ("ssd", "hdd", "nvme"):
            raise UsageError("unknown storage kind", seen=str(self.storage), allowed="ssd, hdd, nvme")

    @property
    def steady_mb(self) -> int:
        """Return memory rounded down by up to 1/64, so that sizes ignore small differences between kernels."""
        step = 1 << max(0, self.memory_mb.bit_length() - 7)
        return self.memory_mb // step * step

    @property
    def shared_memory_mb(self) -> int:
        """Return the size of /dev/shm, known or assumed."""
        return self.memory_mb // 2 if self.shm_mb is None else self.shm_mb


@dataclass(frozen=True)
class Choices:
    """Section `postgresql` of a profile, with the same keys: settings that are chosen, not computed."""

    restart_allowed: bool
    sizes: str
    huge_pages: str
    preload: tuple[str, ...]
    client_connection_check_s: int
    track_io_timing: bool
    log_statement: str
    log_min_duration_ms: int
    log_error_verbosity: str
    log_parameter_bytes: int
    log_temp_files_kb: int
    log_autovacuum_ms: int
    auto_explain_ms: int
    auto_explain_analyze: bool
    audit: tuple[str, ...]

    @classmethod
    def of(cls, section: Mapping[str, object]) -> Choices:
        """Read the section of a profile file. Raises UsageError that names a missing or misspelt key."""
        names = [field.name for field in fields(cls)]
        for name in [*section, *names]:
            if name not in names or name not in section:
                near = difflib.get_close_matches(name, names if name in section else section, 1)
                raise UsageError(
                    "unknown key in a profile" if name in section else "key missing from a profile",
                    where=f"postgresql.{name}",
                    seen=", ".join(section),
                    allowed=near[0] if near else ", ".join(names),
                    run="" if name in section else f"grep '^  {name}:' profiles/prod.yml  # copy its line",
                )
        values = dict(section)
        for name in ("preload", "audit"):
            values[name] = tuple(map(str, values[name]))  # type: ignore[call-overload]
        if wrong := [each for each in values["audit"] if each.lstrip("-") not in AUDITED]:  # type: ignore[attr-defined]
            raise UsageError(
                "unknown class of statements in a profile",
                where="postgresql.audit",
                seen=", ".join(wrong),
                allowed=f"{', '.join(AUDITED)}, and -NAME to leave one out",
            )
        return cls(**values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Request:
    """Every input of a setting. `vectors` None means unknown; `lz4` states whether the server supports it."""

    host: Host
    profile: str
    choices: Choices
    postgresql: int
    pgvector: str
    max_connections: int | None = None
    vectors: int | None = None
    dimensions: int = 1536
    lz4: bool = True
    parallel_builds: bool = False

    @property
    def computed(self) -> bool:
        """Return whether sizes follow the host (prod) rather than the contract (dev)."""
        return self.choices.sizes == "computed"

    @property
    def flash(self) -> bool:
        """Return whether a random read costs about as much as a sequential one."""
        return self.host.storage != "hdd"


_STEPS = {"B": (1024, "kB"), "kB": (1024, "MB"), "MB": (1024, "GB"), "ms": (1000, "s"), "s": (60, "min")}


@dataclass(frozen=True)
class Setting:
    """One value with its unit (B, kB, MB, ms, s, min or none), a one-line reason, and its group."""

    name: str
    value: Value
    unit: str
    reason: str
    group: str
    restart: bool = False

    @property
    def text(self) -> str:
        """Return the value in its shortest form: 1GB for 1024MB, on and off."""
        if isinstance(self.value, bool):
            return "on" if self.value else "off"
        value, unit = self.value, self.unit if self.value else ""
        while isinstance(value, int) and value > 0 and unit in _STEPS and value % _STEPS[unit][0] == 0:
            factor, larger = _STEPS[unit]
            value, unit = value // factor, larger
        return f"{value}{unit}"

    @property
    def line(self) -> str:
        """Return the assignment for postgresql.conf, quoted if the parser needs it."""
        plain = self.text.replace(".", "").replace("_", "").isalnum() and self.text != ""
        text = self.text if plain else quoting.postgresql_conf(self.text)
        return f"{self.name} = {text}"


Row = tuple[str, Value, str, str]


def group(title: str, *rows: Row) -> list[Setting]:
    """Create settings from (name, value, unit, reason) rows."""
    return [Setting(*row, group=title) for row in rows]


@dataclass(frozen=True)
class BudgetLine:
    """One part of the worst case: label, size in MiB, and calculation."""

    label: str
    mb: int
    reckoning: str


@dataclass(frozen=True)
class Tuning:
    """The result. `role_settings` apply to the application and read-only roles, `kernel` to sysctl.

    `pool_limit` is the limit on connections of all pools together: `max_connections` less the connections of
    administrators, backup, monitoring and maintenance.
    """

    settings: tuple[Setting, ...]
    role_settings: tuple[Setting, ...]
    kernel: tuple[Setting, ...]
    budget: tuple[BudgetLine, ...]
    memory_mb: int
    pool_limit: int
    warnings: tuple[str, ...]

    @property
    def budget_mb(self) -> int:
        """Return the worst case in MiB."""
        return sum(line.mb for line in self.budget)

    def __getitem__(self, name: str) -> Setting:
        """Return a setting by name. Raises KeyError."""
        for setting in self.settings:
            if setting.name == name:
                return setting
        raise KeyError(name)

    def as_conf(self) -> str:
        """Render a drop-in for conf.d: grouped, each value below its reason, with restarts marked."""
        lines = [f"# Worst-case memory: {self.budget_mb} of {self.memory_mb} MB", ""]
        lines += [f"#   {line.mb:>7} MB  {line.label}: {line.reckoning}" for line in self.budget]
        lines += [f"# Warning: {warning}" for warning in self.warnings]
        group = ""
        for setting in self.settings:
            if setting.group != group:
                group = setting.group
                lines += ["", f"# --- {group} ---"]
            lines += [f"# {'(restart) ' if setting.restart else ''}{setting.reason}", setting.line]
        return "\n".join(lines) + "\n"
