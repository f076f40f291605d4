"""Controller's half of host_plan: probe the host and lock it, build the plan, refuse or publish. One round trip."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import load_extra_vars

from ..plugin_utils.lifetime import bind
from ..plugin_utils.lock import Holder
from ..plugin_utils.printable import printable, sentences
from ..plugin_utils.project import ROOT

from provision.controller import archive, inputs  # isort: skip - found by the line above
from provision.errors import UsageError  # isort: skip
from provision.plan import build, load, packages, ports, schedules, validate  # isort: skip
from provision.plan.context import Listed, Peer  # isort: skip

PACKAGE = ROOT / "provision"
NOTHING = "nothing was changed on this host"

# Ansible imports this file before it forks a worker for each host: what is read here is read once for all of them,
# and no worker of a task that changes a host outlives the run.
bind()
archive.content(PACKAGE)
inputs.specifications()


class ActionModule(ActionBase):
    """Return the plan as the task's result, so that `register: plan` publishes it."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Build the plan; a refusal names every problem at once."""
        super().run(tmp, task_vars)
        given = task_vars or {}
        playbooks = Path(given.get("playbook_dir") or ROOT)
        try:
            read = inputs.read(given, inputs.defaults(self._load), self._evaluate, (playbooks, ROOT))
        except UsageError as error:
            raise AnsibleActionFail(f"{NOTHING}:\n- {error.what}: expected {error.allowed}") from None
        if read.problems:
            return self._refused(read.problems)
        values = read.values
        sources = [str(path) for path in given.get("ansible_inventory_sources") or ()]
        values["tls_directory"] = values["tls_directory"] or inputs.tls_directory(
            sources, playbooks, values["plan_profile_name"]
        )
        name = str(given["inventory_hostname"])
        toolkit, digest = archive.pack(PACKAGE, playbooks / ".provision" / "toolkit")
        context = inputs.context(
            values,
            name=name,
            address=str(given.get("ansible_host") or name),
            sources=sources,
            roles=given.get("ansible_role_names") or (),
            groups=given.get("groups") or {},
            root=playbooks.resolve(),
            toolkit=digest,
            peers=self._peers(name, given, (playbooks, ROOT)) if inputs.shares(values) else [],
            listed=self._listed(given, (playbooks, ROOT))
            if inputs.clustered(values, given.get("groups") or {})
            else [],
            selected=inputs.selected(
                given.get("ansible_role_names") or (),
                given.get("ansible_run_tags") or ("all",),
                given.get("ansible_skip_tags") or (),
            ),
        )
        roles, database = set(context.roles), context.database
        asked: dict[str, Any] = inputs.probed_pooler(values) if context.pooler else {}
        if database:
            asked = {"ports": [each.port for each in ports.bound(values)]}
            asked |= {"schedules": list(schedules.requested(values).values())}
            asked |= inputs.probed(values, self._backup_connection(values, given))
        probe, failed = self._probe(values, asked, given)
        if failed:
            return failed
        uses_only = inputs.uses_only(roles, values)
        if uses_only and not (probe["ours"] if database else "toolkit" in probe["manifests"]):
            return self._refused(["this host was not converged: run site.yml first"], given)
        built = build.build(values, probe, read.profile, context, judge=self._judge(uses_only, database))
        if not built.plan:
            return self._refused(built.problems, given)
        result = inputs.published(built.plan, built.state)
        result |= {"warnings": sentences([*read.warnings, *built.notices]), "text": load.text(built.plan)}
        result |= {"tls_directory": values["tls_directory"], "toolkit": str(toolkit), "changed": False}
        return result

    @staticmethod
    def _judge(uses_only: bool, database: bool) -> Any:
        if uses_only:
            return validate.judge_nothing
        return validate.judge if database else validate.judge_other

    def _load(self, path: str) -> Any:
        return self._loader.load_from_file(path, trusted_as_template=True)

    def _peers(self, name: str, given: dict[str, Any], folders: tuple[Path, ...]) -> list[Peer]:
        """Return the other database hosts; those outside this run only as the inventory has them, without -e."""
        groups = given.get("groups") or {}
        if set(load_extra_vars(self._loader)) & set(inputs.SHARED_OPTIONS):
            groups = {
                "database": [each for each in groups.get("database", ()) if each in given["ansible_play_hosts_all"]]
            }
        hosts, defaults = given["hostvars"], inputs.defaults(self._load)

        def variables_of(other: str) -> dict[str, Any]:
            return {**hosts.raw_get(other), "hostvars": hosts}

        return inputs.peers(name, groups, variables_of, defaults, self._evaluate, folders)

    def _listed(self, given: dict[str, Any], folders: tuple[Path, ...]) -> list[Listed]:
        """Return the hosts that may take part in a cluster with this one, whatever the run's limit."""
        hosts = given["hostvars"]

        def variables_of(other: str) -> dict[str, Any]:
            return {**hosts.raw_get(other), "hostvars": hosts}

        return inputs.listed(
            given.get("groups") or {}, variables_of, inputs.defaults(self._load), self._evaluate, folders
        )

    def _backup_connection(self, values: dict[str, Any], given: dict[str, Any]) -> str:
        """Return the connection plugin by which Ansible reaches the backup host."""
        name = values["backup_repository_inventory_name"]
        if name not in (given.get("groups") or {}).get("all", ()):
            return ""
        found = given["hostvars"].raw_get(name)
        return str(self._evaluate({**given, **found}, found.get("ansible_connection") or "ssh"))

    def _evaluate(self, variables: Any, value: Any) -> Any:
        return self._templar.copy_with_new_env(available_variables=variables).template(value)

    def _probe(
        self, values: dict[str, Any], asked: dict[str, Any], task_vars: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Probe the host and take its lock, or say why not."""
        holder = Holder(task_vars["inventory_hostname"], values["plan_lock_wait"])
        arguments = {
            **asked,
            "package_names": packages.bundled(values["postgresql_version"], values["pgvector_install_method"]),
            "locale": values["postgresql_locale"],
            "packages_wait": values["plan_packages_wait"],
            "major": values["postgresql_version"],
        }
        while True:
            result = self._execute_module(
                module_name="minion.provision.host_plan",
                module_args={**arguments, **holder.arguments()},
                task_vars=task_vars,
            )
            if result.get("failed") or "host" not in result:
                said = " ".join(str(result.get(part, "")) for part in ("msg", "module_stderr")).strip()
                where = task_vars.get("ansible_host") or task_vars["inventory_hostname"]
                message = (
                    f"{task_vars['inventory_hostname']} cannot be probed as root with python3: {said} "
                    f"Nothing was changed. Run: provision bootstrap {where}"
                )
                return {}, printable({**result, "failed": True, "msg": message})
            refusal = holder.judge(result)
            if refusal:
                return {}, printable({"failed": True, "msg": refusal})
            if holder.held:
                host: dict[str, Any] = result["host"]
                return {**host, "clock_offset_s": host["clock"] - time.time()}, {}
            if holder.waiting:
                Display().display(printable(holder.waiting))

    def _refused(self, problems: Any, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Release the lock, since nothing will be changed, and name every problem."""
        if task_vars is not None:
            holder = Holder(task_vars["inventory_hostname"], 0)
            self._execute_module(
                module_name="minion.provision.host_lock",
                module_args={"state": "released", "run": holder.me},
                task_vars=task_vars,
            )
        return {"failed": True, "msg": "\n- ".join([f"{NOTHING}:", *sentences(problems)])}
