"""Plans for tests, built as a run builds them: the roles' defaults, a profile, variables, and one fixed probe.

`built` gives everything that `build.build` gives; `sample` a prod host on Debian 13 with PostgreSQL 17 from the
distribution, changed where the test says. No host is needed and nothing is changed.
"""

from __future__ import annotations

import copy
import datetime
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from provision import distributions
from provision.controller import inputs
from provision.controller.plans import Assumed
from provision.host import timers
from provision.plan import build, load, schedules, schema, validate, variables

TODAY = datetime.date(2026, 10, 1)
"""PostgreSQL 14 is still maintained."""
SALT = "c2FsdCBvZiBhIHRlc3QuLg=="
SECRETS: dict[str, Any] = {
    "database_credentials": {
        role: {"password": f"a secret of the test for {role}", "salt": SALT}
        for role in ("minion", "minion_app", "minion_readonly")
    },
    "backup_repository_passphrase": "the repository's secret of the test",
    "tls_ca_passphrase": "the authority's secret of the test",
}
"""Secrets that every plan here is built from: no plan, no file for everybody and no message may hold one."""
PROBE: dict[str, Any] = {
    **Assumed(distributions.by_key("debian13"), cpus=4, memory_mb=8192, disk_mb=5000).probe(),
    "os": "Debian GNU/Linux 13 (trixie)",
    "disk_free_mb": 50000,
    "networks": ["192.0.2.0/24"],
    "package_lists_age_s": 10,
    "package_versions": {"pgbouncer": "1.24.1-1+deb13u2", "pgbackrest": "2.55.1-1"},
}
"""A fresh host as the module host_plan prints it."""
CONTEXT = build.Context(
    name="db1",
    address="db1",
    inventory=("inventories/prod",),
    roles=("postgresql", "pgvector", "toolkit", "database", "pgbouncer", "backup", "monitoring", "migrations"),
    today=TODAY,
    groups={"all": ["db1", "backup1"], "database": ["db1"]},
)
OF_ANSIBLE: dict[str, Any] = {
    "inventory_hostname": "db1",
    "inventory_hostname_short": "db1",
    "groups": CONTEXT.groups,
    "hostvars": {"backup1": {"ansible_host": "192.0.2.7"}},
    "playbook_dir": str(inputs.ROOT),
    "role_path": str(inputs.ROOT / "roles/plan"),
}
"""Variables that Ansible itself sets for db1."""
SAMPLE: dict[str, Any] = {
    "postgresql_version": 17,
    "postgresql_repository": "distribution",
    "pgvector_install_method": "package",
    "tls_enabled": False,
    "backup_allow_local_only": True,
}


@functools.cache
def _elapses(text: str) -> dict[str, Any]:
    return timers.elapses([text]) or {}


def elapses(v: Mapping[str, Any]) -> dict[str, Any]:
    """Ask this machine's systemd about every schedule, as the module host_plan asks the host's."""
    return {text: _elapses(text)[text] for text in schedules.requested(v).values()}


@functools.cache
def defaults() -> dict[str, Any]:
    """Give every role's defaults, whose templates Ansible will evaluate."""
    loader = DataLoader()
    return inputs.defaults(lambda path: loader.load_from_file(path, trusted_as_template=True))


def trusted(text: str) -> str:
    """Mark a text as a template, as one in an inventory is."""
    marked: str = trust_as_template(text)
    return marked


class Template:
    """Evaluates values with Ansible's own engine, which is made once for a set of variables."""

    def __init__(self) -> None:
        self.variables: Mapping[str, Any] = {}
        self.engine = Templar(loader=DataLoader())

    def __call__(self, variables: Mapping[str, Any], value: Any) -> Any:
        if variables is not self.variables:
            self.variables = variables
            self.engine = Templar(loader=DataLoader(), variables=variables)
        return self.engine.template(value)


def read(profile: str = "prod", given: Mapping[str, Any] | None = None, folder: Path = inputs.ROOT) -> inputs.Inputs:
    """Read and type every option, as the action plugin does, with Ansible's own templating."""
    return copy.deepcopy(_read(json.dumps([profile, given or {}, str(folder)])))


@functools.lru_cache(maxsize=256)
def _read(shown: str) -> inputs.Inputs:
    profile, own, folder = json.loads(shown)
    given = {**OF_ANSIBLE, "plan_profile_name": profile, **SECRETS, **own}
    found = inputs.read(given, defaults(), Template(), (Path(folder), inputs.ROOT))
    if "tls_directory" in found.values:
        found.values["tls_directory"] = found.values["tls_directory"] or f"inventories/{profile}/tls"
    return found


def typed(profile: str = "prod", given: Mapping[str, Any] | None = None) -> inputs.Inputs:
    """Type variables. Only those that a default refers to need all templates evaluated again."""
    given = given or {}
    if set(re.findall(r"\w+", str(defaults()))) & set(given):
        return read(profile, given)
    found = read(profile)
    own, problems = variables.judge(inputs.specifications(), given)
    return replace(found, values={**found.values, **own}, problems=(*found.problems, *problems))


def values(profile: str = "prod", given: Mapping[str, Any] | None = None) -> inputs.Inputs:
    """Give typed variables that have no problem."""
    found = typed(profile, given)
    assert found.problems == ()
    return found


def built(
    profile: str = "prod",
    given: Mapping[str, Any] | None = None,
    probe: Mapping[str, Any] | None = None,
    *,
    judge: build.Judge = validate.judge,
    **context: Any,
) -> build.Built:
    """Build a plan from a profile, variables, changes of the probe and of the context; nothing else is set."""
    found = typed(profile, given)
    if found.problems:
        return build.Built(None, None, found.problems, ())
    whole = {**copy.deepcopy(PROBE), "schedules": elapses(found.values), **(probe or {})}
    return build.build(found.values, whole, found.profile, replace(CONTEXT, **context), judge=judge)


def plan(profile: str = "prod", given: Mapping[str, Any] | None = None, **changed: Any) -> schema.Plan:
    """Build a plan that must not be refused."""
    found = built(profile, given, **changed)
    assert found.plan, found.problems
    return found.plan


@functools.cache
def _sample() -> schema.Plan:
    return plan("prod", SAMPLE)


def sample(**sections: dict[str, Any]) -> schema.Plan:
    """Give a plan; `sample(server={"port": 5433}, backup={"physical": False})` replaces fields of sections."""
    base = _sample()
    changed: dict[str, Any] = {name: replace(getattr(base, name), **fields) for name, fields in sections.items()}
    return replace(base, **changed)


def write(path: Path, plan: schema.Plan) -> Path:
    """Write a plan where a command under test will load it from."""
    path.write_text(load.text(plan))
    return path
