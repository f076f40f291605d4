"""Everything that a plan is built from, read on the controller: specifications, defaults, profiles, files. Does IO.

The caller brings variables and a way to template them (an Ansible action or `provision plan`); a probe comes from the
host. Refuses nothing itself: `plan.variables` and `plan.validate` judge what is read here.
"""

from __future__ import annotations

import datetime
import difflib
import functools
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from provision.controller import authority, varfiles, vault
from provision.controller.bundle import verify
from provision.errors import ProvisionError, UsageError
from provision.plan import build, network, schema, topology, variables
from provision.plan.context import Listed, Peer, repositories, repository_kind

ROOT = Path(__file__).resolve().parents[2]
"""The project, or the installed collection: the folder with roles/ and profiles/."""
PUBLISHED = ("plan", "plan_profile", "plan_given")
USES_ONLY = {"plan", "update"}
"""Roles of a play that uses a converged host and changes nothing of what it should be."""
ENDS = ("upgrade_rollback", "upgrade_release")
"""Options of role upgrade with which the other roles of its play are left out."""
SHARED_OPTIONS = (
    "backup_physical", "backup_stanza", "backup_s3", "backup_repository_host", "backup_repository_path",
    "backup_second_s3",
)  # fmt: skip
"""Options that decide whether hosts share a backup repository."""
SSH = ("ssh", "paramiko", "paramiko_ssh", "smart")
"""Connection plugins of Ansible."""
WITHOUT_VALUE = "_raw_params"
"""Ansible's name for words of -e without a value, which it ignores."""
BESIDE = {"plan", "packages", "tls", "toolkit", "etcd"}
"""Roles of a play for hosts beside the databases, such as the backup host, unless the host has a database too."""


@dataclass(frozen=True)
class Inputs:
    """Typed variables with all defaults, the profile, and what is wrong with either."""

    values: dict[str, Any]
    profile: dict[str, Any]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


@functools.cache
def specifications(root: Path = ROOT) -> dict[str, dict[str, Any]]:
    """Return the options of every role and of every entry point (restore, take ...) by name."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(root.glob("roles/*/meta/argument_specs.yml")):
        for entry in yaml.safe_load(path.read_text())["argument_specs"].values():
            found |= entry.get("options") or {}
    return found


def defaults(load: Callable[[str], Any], root: Path = ROOT) -> dict[str, Any]:
    """Return every role's defaults by name, through a loader that lets templates in them be evaluated."""
    found: dict[str, Any] = {}
    for path in sorted(root.glob("roles/*/defaults/main.yml")):
        found |= load(str(path)) or {}
    return found


def profile(name: str, folders: Iterable[Path]) -> dict[str, Any]:
    """Read profiles/NAME.yml from the first folder that has it. Raises UsageError with the profiles that exist."""
    places = [folder / "profiles" for folder in dict.fromkeys(folders)]
    for place in places:
        path = place / f"{name}.yml"
        if path.parent == place and path.is_file():
            found: dict[str, Any] = yaml.safe_load(path.read_text())
            return found
    names = sorted({path.stem for place in places for path in place.glob("*.yml")})
    near = difflib.get_close_matches(name, names, 1)
    raise UsageError(
        f"plan_profile_name is {name!r}", allowed=", ".join(names) + (f"; did you mean {near[0]}?" if near else "")
    )


def read(
    given: Mapping[str, Any],
    role_defaults: Mapping[str, Any],
    template: Callable[[Mapping[str, Any], Any], Any],
    folders: Sequence[Path],
) -> Inputs:
    """Read and type every option of every role.

    `given` are all variables of the host, `template(variables, value)` evaluates a value. Raises UsageError for a
    profile that does not exist.
    """
    specs = specifications()
    old = {name: new for name, new in variables.RENAMED.items() if name in given}
    # Ansible has set a new name that nothing sets to its role's default.
    unset = {new for new in old.values() if given.get(new, role_defaults.get(new)) == role_defaults.get(new)}
    given = {**given, **{new: given[name] for name, new in old.items() if new in unset}}
    every = {**role_defaults, **given}
    name = variables.plain(template(every, every["plan_profile_name"]))
    values = profile(str(name), folders)
    every["plan_profile"] = values
    problems = []
    known = {}
    for option in specs:
        if option in every:
            try:
                known[option] = template(every, every[option])
            except Exception as error:
                problems.append(_unevaluated(option, str(error).splitlines()[0]))
    typed, wrong = variables.judge(specs, known)
    names = {*specs, *PUBLISHED, *variables.RENAMED}
    prefixes = {f"{option.partition('_')[0]}_" for option in names}
    problems += [*wrong, *variables.unknown(given, names, prefixes)]
    if lost := given.get(WITHOUT_VALUE):
        problems.append(f"-e {lost!r} sets no variable: expected NAME=VALUE, JSON, or @ and the name of a file")
    warnings = tuple(f"variable {name} is now called {new}; the old name is still read" for name, new in old.items())
    return Inputs(typed, values, tuple(problems), warnings)


def _unevaluated(option: str, said: str) -> str:
    if "undecryptable" in said or "Decryption failed" in said:
        return f"{option} is encrypted, and the vault password is missing or wrong: add --vault-password-file FILE"
    return f"{option} cannot be evaluated: {said}"


def relative(path: str, root: Path) -> str:
    """Write an inventory's path as a person in the project's folder types it."""
    full = Path(path).resolve() if os.path.lexists(path) else Path(path)
    return str(full.relative_to(root)) if full.is_relative_to(root) else str(full)


def tls_directory(sources: Sequence[str], playbooks: Path, profile_name: str) -> str:
    """Return the folder of an environment's authority: tls/ beside the first inventory that is a file or a folder."""
    places = [path if path.is_dir() else path.parent for path in map(Path, sources) if path.exists()]
    return str((places or [playbooks / "inventories" / profile_name])[0] / "tls")


def context(
    values: Mapping[str, Any],
    *,
    name: str,
    address: str,
    sources: Sequence[str],
    roles: Iterable[str],
    groups: Mapping[str, Sequence[str]],
    root: Path,
    toolkit: str,
    peers: Iterable[Peer] = (),
    listed: Iterable[Listed] = (),
    selected: frozenset[str] | None = None,
) -> build.Context:
    """Read what is judged besides variables: vault files, the bundle, the user's own certificate."""
    names = {role.rpartition(".")[2] for role in roles}
    provided = {part: str(values.get(f"tls_provided_{part}", "")) for part in ("certificate", "key", "ca")}
    return build.Context(
        name=name,
        address=address,
        inventory=tuple(relative(path, root) for path in sources),
        roles=tuple(sorted(names)),
        today=datetime.datetime.now(datetime.UTC).date(),
        bundle=_bundle(values) if values.get("postgresql_repository") == "bundle" else {},
        provided=tuple(authority.read_provided(provided)[1]) if all(provided.values()) else (),
        plain_vaults=tuple(vault.plain_vaults(list(sources))),
        credentials=next((relative(str(each), root) for each in varfiles.credentials(sources)), ""),
        groups=groups,
        database=name in groups.get("database", ())
        or (bool(names - BESIDE) and name not in (*groups.get("dcs", ()), *groups.get("pooler", ()))),
        toolkit_sha256=toolkit,
        peers=tuple(peers),
        listed=tuple(listed),
        absent=tuple(option for option in ("migrations_source",) if _absent(str(values.get(option, ".")))),
        selected=selected,
    )


def _absent(path: str) -> bool:
    """Return whether a directory is missing; of a relative path only Ansible knows where it begins."""
    return Path(path).is_absolute() and not Path(path).is_dir()


def uses_only(roles: Collection[str], values: Mapping[str, Any]) -> bool:
    """Return whether a play uses a converged host and changes nothing of what it should be."""
    return set(roles) <= USES_ONLY or ("upgrade" in roles and any(values[name] for name in ENDS))


def shares(values: Mapping[str, Any]) -> bool:
    """Return whether a host has a repository that its peers could share: only then are their stanzas judged."""
    return bool(values["backup_physical"] and repositories(values))


def peers(
    name: str,
    groups: Mapping[str, Sequence[str]],
    variables_of: Callable[[str], Mapping[str, Any]],
    role_defaults: Mapping[str, Any],
    template: Callable[[Mapping[str, Any], Any], Any],
    folders: Sequence[Path],
) -> list[Peer]:
    """Return the other hosts of the group database that take physical backups, with their stanzas and repositories.

    A host whose variables cannot be read is left out: its own plan names the problem.
    """
    found = []
    for other in groups.get("database", ()):
        if other == name:
            continue
        try:
            every = {**role_defaults, **variables_of(other)}
            every["plan_profile"] = profile(str(variables.plain(template(every, every["plan_profile_name"]))), folders)
            values = {option: variables.plain(template(every, every[option])) for option in SHARED_OPTIONS}
        except Exception:  # noqa: S112 - any error of a template
            continue
        if variables.judge({"backup_physical": {"type": "bool"}}, values)[0].get("backup_physical"):
            found.append(Peer(other, str(values["backup_stanza"]), frozenset(repositories(values))))
    return found


def listed(
    groups: Mapping[str, Sequence[str]],
    variables_of: Callable[[str], Mapping[str, Any]],
    role_defaults: Mapping[str, Any],
    template: Callable[[Mapping[str, Any], Any], Any],
    folders: Sequence[Path],
) -> list[Listed]:
    """Return the hosts of the groups database, dcs and pooler with the options that hosts of a cluster share.

    A host whose variables cannot be read has no options: its own plan names the problem.
    """
    database, dcs, pooler = (groups.get(name, ()) for name in ("database", "dcs", "pooler"))
    specs = {name: spec for name, spec in specifications().items() if name in topology.OPTIONS}
    found = []
    for name in dict.fromkeys([*database, *dcs, *pooler]):
        try:
            every = {**role_defaults, **variables_of(name)}
            every["plan_profile"] = profile(str(variables.plain(template(every, every["plan_profile_name"]))), folders)
            given = {option: template(every, every[option]) for option in topology.OPTIONS}
            reached = str(variables.plain(template(every, every.get("ansible_host") or name)))
            values = variables.judge(specs, given)[0]
        except Exception:  # noqa: S112 - any error of a template
            continue
        address = topology.address(values, reached)
        found.append(Listed(name, address, name in database, name in dcs, values, pooler=name in pooler))
    return found


def clustered(values: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> bool:
    """Return whether a host needs to know the others: in a cluster, or where poolers could follow one."""
    return bool(values["cluster_enabled"] or groups.get("pooler"))


def probed_pooler(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options `ports` and `listen` of the module host_plan for a host with a pooler and no server."""
    names = dict.fromkeys(values["pgbouncer_listen_addresses"])
    return {"ports": [values["pgbouncer_port"]], "listen": [each for each in names if network.may_be_host(each)]}


def probed(values: Mapping[str, Any], connection: str) -> dict[str, Any]:
    """Return the options `listen` and `repository` of the module host_plan.

    `connection` is Ansible's connection to the backup host. Only with SSH must an SSH server answer there.
    """
    lists = (values["postgresql_listen_addresses"], values["pgbouncer_listen_addresses"])
    listen = dict.fromkeys([each for names in lists for each in names] + [values["monitoring_listen_address"]])
    shared = values["backup_physical"] and repository_kind(values) == "host" and connection.rpartition(".")[2] in SSH
    return {
        "listen": [each for each in listen if network.may_be_host(each)],
        "repository": {"host": values["backup_repository_host"], "port": values["backup_repository_port"]}
        if shared
        else {},
    }


def selected(roles: Iterable[str], tags: Sequence[str], skipped: Sequence[str]) -> frozenset[str]:
    """Return the roles of a play whose tasks the run's tags select; each role has a tag of its name.

    `tags` and `skipped` are ansible_run_tags and ansible_skip_tags. Role tls runs with the tag postgresql too; packages
    and toolkit run with every role that depends on them.
    """
    names = {role.rpartition(".")[2] for role in roles}
    aliases = {"tls": {"tls", "postgresql"}}
    chosen = {
        role
        for role in names
        if {"all", "tagged", *aliases.get(role, {role})} & set(tags) and not aliases.get(role, {role}) & set(skipped)
    }
    brought = {"packages", "toolkit"} - set(skipped) if chosen - {"plan", "adopt"} else set()
    return frozenset(chosen | (brought & names))


def _bundle(values: Mapping[str, Any]) -> dict[str, Any]:
    """Verify the bundle; `problem` is empty, or why it must not be used."""
    path = str(values["postgresql_bundle"])
    try:
        file = Path(path).expanduser()
        about = file.stat() if path else None
        version = (about.st_size, about.st_mtime_ns) if about else ()
        return _verified(str(file), str(values["postgresql_bundle_fingerprint"]), version)
    except OSError as error:
        return {"problem": f"{path}: {error.strerror}"}


@functools.lru_cache(maxsize=4)
def _verified(path: str, fingerprint: str, version: tuple[int, ...]) -> dict[str, Any]:
    """Verify a file once in a process, for as long as it is the same one."""
    del version
    try:
        found = asdict(verify.verified(Path(path), fingerprint))
        return {"problem": "", **{name: value for name, value in found.items() if name not in ("files", "versions")}}
    except ProvisionError as error:
        return {"problem": "; ".join(part for part in (error.what, error.where, error.seen, error.allowed) if part)}


def published(plan: schema.Plan, state: schema.State | None) -> dict[str, Any]:
    """Return the plan as roles and templates read it: every field and every property, and the state."""
    found: dict[str, Any] = _published(plan)
    return {**found, "state": asdict(state) if state else {}}


def _published(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        fields = {name: _published(getattr(value, name)) for name in value.__dataclass_fields__}
        kinds = {name for name, each in vars(type(value)).items() if isinstance(each, property)}
        for name in kinds:
            with suppress(KeyError):  # `here` of a cluster, on a host that is no member
                fields[name] = _published(getattr(value, name))
        return fields
    if isinstance(value, tuple):
        return [_published(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    return dict(value) if isinstance(value, Mapping) else value
