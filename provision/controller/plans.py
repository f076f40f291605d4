"""Build the plans of an inventory on the controller, without asking a host: what site.yml would make of fresh hosts.

Reads inventories, vaults and profiles through Ansible. What only a host knows (memory, CPUs, release) is assumed and
said by the caller; everything else is exactly what role plan builds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible.cli import CLI
from ansible.errors import AnsibleError
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import VaultSecret
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager

from provision.controller import inputs
from provision.controller.varfiles import vault_problem
from provision.distributions import Distribution
from provision.errors import UsageError
from provision.host import timers
from provision.plan import build, schedules, schema

GROUP = "database"
DEFAULT_VAULT = "default"
ROLES = ("packages", "toolkit", "tls", "postgresql", "pgvector", "database", "pgbouncer", "backup", "monitoring")
KERNEL_NAMES = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Assumed:
    """The host that a plan is built for; sizes in MiB."""

    distribution: Distribution
    cpus: int
    memory_mb: int
    disk_mb: int = 100_000
    architecture: str = "amd64"

    def probe(self) -> dict[str, Any]:
        """Return what the module host_plan would print of such a host, fresh."""
        name = f"{self.distribution.name} ({self.distribution.codename})"
        return {
            "os": name,
            "distribution": self.distribution.id,
            "distribution_version": self.distribution.version,
            "distribution_codename": self.distribution.codename,
            "architecture": KERNEL_NAMES[self.architecture],
            "cpus": self.cpus,
            "memory_mb": self.memory_mb,
            "shm_mb": self.memory_mb // 2,
            "disk_mb": self.disk_mb,
            "disk_free_mb": self.disk_mb,
            "storage": "ssd",
            "container": False,
            "huge_pages": 0,
            "systemd": True,
            "root": True,
            "network_administration": True,
            "clock_offset_s": 0,
            "hidden_programs": "",
            "unwritable": [],
            "free_for_packages_mb": {"/usr": self.disk_mb, "/var": self.disk_mb},
            "data": {
                "path": "/var/lib/postgresql",
                "link": "",
                "target": "",
                "file": False,
                "mount": False,
                "entries": [],
                "closed": [],
                "file_system": "ext4",
                "read_only": False,
            },
            "locales": [],
            "charmap": None,
            "listeners": [],
            "exporter_ports": [],
            "cluster_ports": [],
            "manifests": [],
            "schedules": None,
            "package_lock": None,
            "packages": [],
            "packages_held": [],
            "packages_barred": [],
            "sources": [],
            "sources_fault": "",
            "package_versions": {"pgbouncer": "", "pgbackrest": ""},
            "networks": [],
            "packages_interrupted": False,
            "services_blocked": False,
            "package_lists_age_s": 0,
            "clusters": [],
            "unknown_clusters": [],
            "cluster_half_made": False,
            "ours": False,
            "proved": False,
            "old_layout": False,
            "pooler_port": 0,
            "pgvector_build": "",
            "build_packages": [],
            "toolkit_sha256": "",
            "plan_major": 0,
            "plan_scope": "",
            "upgrade": {},
            "bundle_sha256": "",
        }


@dataclass(frozen=True)
class Outcome:
    """One host: its plan, or the problems for which site.yml would refuse it. Its representation has no password."""

    plan: schema.Plan | None
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    credentials: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The variable database_credentials."""

    def password(self, role: str) -> str:
        """Return the password of one login role. Raises UsageError if the inventory has none."""
        found = self.credentials.get(role)
        if not isinstance(found, Mapping) or not found.get("password"):
            raise UsageError(
                "no such login role in database_credentials", seen=role, allowed=", ".join(sorted(self.credentials))
            )
        return str(found["password"])


def plans(
    sources: Iterable[str],
    assumed: Assumed,
    *,
    limit: str = "",
    vault_password_file: str = "",
    vault_password: str = "",
    root: Path = inputs.ROOT,
) -> dict[str, Outcome]:
    """Build the plan of every host of the group database, by its name; the vault's password in a file or as text.

    Raises UsageError for an inventory that cannot be read, a limit that matches nothing, or an empty group.
    """
    names = [str(source) for source in sources]
    init_plugin_loader([str(root / "collections")])
    loader = DataLoader()
    try:
        secrets = [(DEFAULT_VAULT, VaultSecret(vault_password.encode()))] if vault_password else []
        if vault_password_file:
            secrets += CLI.setup_vault_secrets(loader, vault_ids=[], vault_password_files=[vault_password_file])
        loader.set_vault_secrets(secrets)
        for name in names:
            if not Path(name).exists():
                raise UsageError(
                    "no such inventory", seen=name, allowed="a file or directory, such as inventories/prod"
                )
        inventory = InventoryManager(loader=loader, sources=names)
        if limit:
            inventory.subset(limit)
        hosts = inventory.get_hosts(GROUP)
        if not hosts:
            raise UsageError(
                f"no host in group {GROUP}", where=", ".join(names), seen=f"--limit {limit}" if limit else "empty"
            )
        variables = VariableManager(loader=loader, inventory=inventory)
        HostVars(inventory, variables, loader)  # from now on variables have hostvars
        others = {host.name: host for host in inventory.get_hosts("all", ignore_limits=True)}
        return {host.name: _outcome(host, others, variables, loader, names, assumed, root) for host in hosts}
    except AnsibleError as error:
        said = str(error).splitlines()[0]
        if limit and "Could not match supplied host pattern" in said:  # an error by our ansible.cfg alone
            raise UsageError(f"no host in group {GROUP}", where=", ".join(names), seen=f"--limit {limit}") from None
        vault = vault_problem(str(error))
        hint = "--vault-password-file FILE with the password of the vault" if vault else ""
        raise UsageError(
            "cannot read the inventory", where=", ".join(names), seen=vault or said, allowed=hint
        ) from None


def _outcome(
    host: Any,
    others: Mapping[str, Any],
    variables: VariableManager,
    loader: DataLoader,
    sources: list[str],
    assumed: Assumed,
    root: Path,
) -> Outcome:
    given = {
        **variables.get_vars(host=host),
        "ansible_inventory_sources": sources,
        "playbook_dir": str(root),
        "role_path": str(root / "roles/plan"),
    }

    def load(path: str) -> Any:
        return loader.load_from_file(path, trusted_as_template=True)

    def template(available: Any, value: Any) -> Any:
        return Templar(loader=loader, variables=available).template(value)

    read = inputs.read(given, inputs.defaults(load), template, (root,))
    if read.problems:
        return Outcome(None, read.problems, read.warnings)
    values = read.values
    profile = values["plan_profile_name"]
    values["tls_directory"] = values["tls_directory"] or inputs.tls_directory(sources, root, profile)
    context = inputs.context(
        values,
        name=host.name,
        address=str(template(given, given.get("ansible_host") or host.name)),
        sources=sources,
        roles=ROLES,
        groups=given["groups"],
        root=root,
        toolkit="",
        peers=inputs.peers(
            host.name,
            given["groups"],
            lambda name: variables.get_vars(host=others[name]),
            inputs.defaults(load),
            template,
            (root,),
        )
        if inputs.shares(values)
        else (),
        listed=inputs.listed(
            given["groups"],
            lambda name: variables.get_vars(host=others[name]),
            inputs.defaults(load),
            template,
            (root,),
        )
        if inputs.clustered(values, given["groups"])
        else (),
    )
    probe = {**assumed.probe(), "schedules": timers.elapses(schedules.requested(values).values())}
    built = build.build(values, probe, read.profile, context)
    notices = (*read.warnings, *built.notices)
    return Outcome(built.plan, built.problems, notices, values["database_credentials"])
