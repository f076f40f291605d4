"""What goes into tuning and what comes out: Host, Choices and Request in, Setting, BudgetLine and Tuning out.

Pure and frozen. Refuses a host or a choice that cannot be meant (no CPU, an unknown storage kind, a misspelt key).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from provision.errors import UsageError

Value = str | int | float | bool
MINIMUM_MEMORY_MB = 440  # what a 512 MB machine reports; below, ten sessions and an index build do not fit
# What the kernel keeps of the nominal size of a small machine: a "2 GiB" host reports 1.9 GiB or a little less.
NOMINAL_FACTOR = 0.9


@dataclass(frozen=True)
class Host:
    """A machine or container as it really is: `memory_mb` is what its cgroup leaves it, in MiB like all `_mb`.

    `shm_mb` is the size of /dev/shm (None: as Linux mounts it, half of the memory), `disk_mb` that of the data
    directory's file system (None: unknown), `huge_pages` the 2 MiB pages reserved by its kernel at the moment.
    """

    memory_mb: int
    cpus: int
    storage: Literal["ssd", "hdd", "nvme"] = "ssd"
    container: bool = False
    shm_mb: int | None = None
    disk_mb: int | None = None
    huge_pages: int = 0

    def __post_init__(self) -> None:
        """Refuse what no host can be."""
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
        """Return the memory in steps of 1/128 to 1/64: sizes must not move with the few MB that kernels differ by."""
        step = 1 << max(0, self.memory_mb.bit_length() - 7)
        return self.memory_mb // step * step

    @property
    def shared_memory_mb(self) -> int:
        """Return the size of /dev/shm, known or assumed."""
        return self.memory_mb // 2 if self.shm_mb is None else self.shm_mb


@dataclass(frozen=True)
class Choices:
    """The section `postgresql` of a profile: what is decided rather than computed. Same keys as the file."""

    restart_allowed: bool
    sizes: str
    huge_pages: str
    preload: tuple[str, ...]
    log_statement: str
    log_min_duration_ms: int
    log_error_verbosity: str
    log_parameter_bytes: int
    log_temp_files_kb: int
    log_autovacuum_ms: int
    auto_explain_ms: int
    auto_explain_analyze: bool

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
                )
        values = dict(section)
        values["preload"] = tuple(map(str, values["preload"]))  # type: ignore[call-overload]
        return cls(**values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Request:
    """All that a value may depend on. `vectors` None means unknown; `lz4` whether the server offers it."""

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
        """Tell whether sizes follow the host (prod) rather than the contract (dev)."""
        return self.choices.sizes == "computed"

    @property
    def flash(self) -> bool:
        """Tell whether a random read costs about as much as a sequential one."""
        return self.host.storage != "hdd"


# Values that a running server cannot take over (pg_settings.context = postmaster, 14 to 18).
RESTART_ONLY = frozenset(
    (
        "autovacuum_max_workers",
        "autovacuum_worker_slots",
        "huge_pages",
        "io_method",
        "max_connections",
        "max_worker_processes",
        "pg_stat_statements.max",
        "shared_buffers",
        "shared_preload_libraries",
        "superuser_reserved_connections",
        "wal_buffers",
    )
)


def needs_restart(name: str, postgresql: int) -> bool:
    """Tell whether a value takes a restart; 18 takes over autovacuum_max_workers within its slots."""
    return name in RESTART_ONLY and not (name == "autovacuum_max_workers" and postgresql >= 18)


_STEPS = {"B": (1024, "kB"), "kB": (1024, "MB"), "MB": (1024, "GB"), "ms": (1000, "s"), "s": (60, "min")}


@dataclass(frozen=True)
class Setting:
    """One value with its unit (B, kB, MB, ms, s, min or none), the reason for it in one line, and its group."""

    name: str
    value: Value
    unit: str
    reason: str
    group: str
    restart: bool = False

    @property
    def text(self) -> str:
        """Return the value as people write it: 1GB rather than 1024MB, on and off."""
        if isinstance(self.value, bool):
            return "on" if self.value else "off"
        value, unit = self.value, self.unit if self.value else ""
        while isinstance(value, int) and value > 0 and unit in _STEPS and value % _STEPS[unit][0] == 0:
            factor, larger = _STEPS[unit]
            value, unit = value // factor, larger
        return f"{value}{unit}"

    @property
    def line(self) -> str:
        """Return the assignment for postgresql.conf; text is quoted where the parser needs it."""
        plain = self.text.replace(".", "").replace("_", "").isalnum() and self.text != ""
        text = self.text if plain else "'" + self.text.replace("\\", "\\\\").replace("'", "''") + "'"
        return f"{self.name} = {text}"


Row = tuple[str, Value, str, str]


def group(title: str, *rows: Row) -> list[Setting]:
    """Make settings of (name, value, unit, reason) rows."""
    return [Setting(*row, group=title) for row in rows]


@dataclass(frozen=True)
class BudgetLine:
    """One part of the worst case: what, how much, and how it is reckoned."""

    label: str
    mb: int
    reckoning: str


@dataclass(frozen=True)
class Tuning:
    """The whole answer. `role_settings` are for the application and read-only roles, `kernel` for sysctl.

    `pool_limit` is how many connections poolers may open together: what administrators, backup, monitoring and
    maintenance need of `max_connections` is left out.
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
        """Return a setting by its name. Raises KeyError."""
        for setting in self.settings:
            if setting.name == name:
                return setting
        raise KeyError(name)

    def as_conf(self) -> str:
        """Render a drop-in for conf.d: grouped, each value under its reason, restart-only ones marked."""
        lines = [f"# Worst case of memory: {self.budget_mb} of {self.memory_mb} MB", ""]
        lines += [f"#   {line.mb:>7} MB  {line.label}: {line.reckoning}" for line in self.budget]
        lines += [f"# Warning: {warning}" for warning in self.warnings]
        group = ""
        for setting in self.settings:
            if setting.group != group:
                group = setting.group
                lines += ["", f"# --- {group} ---"]
            lines += [f"# {'(restart) ' if setting.restart else ''}{setting.reason}", setting.line]
        return "\n".join(lines) + "\n"
