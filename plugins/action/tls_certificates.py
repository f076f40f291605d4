"""Controller's half of tls_certificates: make the authority, issue what is missing, bad or due, and place it.

One round trip where nothing is due. No key is in a result: keys go to the host in the arguments of `host_files` alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from ..plugin_utils.lock import kept
from ..plugin_utils.project import ROOT  # noqa: F401 - makes the package importable

# isort: split
from provision.controller import authority
from provision.errors import ProvisionError

JUDGE, PLACE = "minion.provision.tls_certificates", "minion.provision.host_files"
KEPT = "nothing was placed; the old certificate is still served"
LATER, LATER_KEY = "issued by the run\n", "a key issued by the run\n"
"""Stand for texts in check mode. Two, because a key's text is masked wherever it appears."""
SETS = {"server": "tls", "pooler-client": "tls-pooler", "member": "tls-member", "etcd-client": "tls-etcd"}


class ModuleFailedError(Exception):
    """A module on the host failed; holds its result."""


class ActionModule(ActionBase):
    """Issue, judge and place a host's certificates."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what was issued and placed; a refusal names each file with its reason."""
        super().run(tmp, task_vars)
        self._variables = task_vars or {}
        arguments = self._task.args
        if not arguments["plan"]["enabled"]:
            return {"changed": False, "skipped": True, "skip_reason": "TLS is off"}
        try:
            return self._converge(arguments)
        except ProvisionError as error:
            return {"failed": True, "msg": f"{error}\n{KEPT}"}
        except ModuleFailedError as error:
            result: dict[str, Any] = error.args[0]
            return result

    def _converge(self, arguments: dict[str, Any]) -> dict[str, Any]:
        plan, check = arguments["plan"], bool(self._task.check_mode)
        directory, passphrase = Path(arguments["directory"]).expanduser(), str(arguments.get("passphrase") or "")
        key_type, days = arguments.get("key_type", "ecdsa"), int(plan["valid_days"])
        files = arguments.get("provided") or {}
        own = authority.provided(files)
        made = authority.make(directory, passphrase, key_type, int(arguments.get("ca_valid_days", 3650)), check=check)
        clients = self._clients(arguments)
        root = authority.trust([files.get("ca", ""), directory / "ca.crt"])

        texts = {"server": own} if own else {}
        leaves, warnings = self._judge(plan, root, key_type, texts)
        self._refuse(leaves)
        new = {name for name, row in leaves.items() if row["wanting"] or (made and check)}
        issued = sorted(new - set(texts))
        if check:
            texts |= dict.fromkeys(issued, authority.Pair(LATER, LATER_KEY))
            root += LATER if made else ""
        elif issued:
            ours = authority.unlock(directory, passphrase)
            described = {each["name"]: each for each in plan["certificates"]}
            for name in issued:
                row = described[name]
                names = leaves[name]["names"]
                texts[name] = ours.issue(self._common_name(row, names), names, row["purpose"], key_type, days)
            self._refuse(self._judge(plan, root, key_type, texts)[0])
        placed = [self._place(plan, name, root, texts[name]) for name in SETS if name in new]
        fate = "to be replaced" if check else "replaced"
        problems = [problem for row in leaves.values() if not row["absent"] for problem in row["problems"]]
        return {
            "changed": made or bool(clients) or any(each["changed"] for each in placed),
            "authority_made": made,
            "issued": issued,
            "changed_paths": [path for each in placed for path in each.get("changed_paths", [])],
            "clients": clients,
            "days_left": {name: row["days_left"] for name, row in leaves.items()},
            "diff": [part for each in placed for part in each.get("diff", [])],
            "warnings": [*warnings, *(f"{problem}; {fate}" for problem in dict.fromkeys(problems))],
        }

    @staticmethod
    def _common_name(row: dict[str, Any], names: list[str]) -> str:
        """Return the common name; a server's is its first name, a client without one gets none."""
        return str(row["common_name"] or (names[0] if row["purpose"] == "server" else ""))

    def _judge(
        self, plan: dict[str, Any], root: str, key_type: str, texts: dict[str, authority.Pair]
    ) -> tuple[dict[str, Any], list[str]]:
        rows = [
            {
                **{name: row[name] for name in ("name", "certificate", "key", "purpose", "names", "own_names")},
                "common_name": row["common_name"],
                "texts": vars(texts[row["name"]]) if row["name"] in texts else None,
            }
            for row in plan["certificates"]
        ]
        result = self._call(
            JUDGE, {"authority": plan["ca"], "authority_text": root, "key_type": key_type, "leaves": rows}
        )
        return result["leaves"], result.get("warnings", [])

    def _refuse(self, leaves: dict[str, Any]) -> None:
        problems = [problem for row in leaves.values() for problem in row["refused"]]
        if problems:
            raise ProvisionError("; ".join(problems))

    def _place(self, plan: dict[str, Any], name: str, root: str, pair: authority.Pair) -> dict[str, Any]:
        """Place a certificate with its key, the server's together with the authority's."""
        row = {each["name"]: each for each in plan["certificates"]}[name]
        certificate = {"path": row["certificate"], "content": pair.certificate}
        key = {"path": row["key"], "content": pair.key, "group": "ssl-cert", "mode": "0640", "secret": True}
        authorities = [{"path": plan["ca"], "content": root}] if name == "server" else []
        verify = ["openssl", "verify", "-CAfile", plan["ca"], "-untrusted", row["certificate"], row["certificate"]]
        return self._call(
            PLACE,
            {
                "name": SETS[name],
                "files": [*authorities, certificate, key],
                "check": [verify] if name == "server" else [],
                **kept(self),
            },
        )

    def _clients(self, arguments: dict[str, Any]) -> list[str]:
        """Write the certificates of clients once for all hosts of the play."""
        hosts = self._variables.get("ansible_play_hosts") or [None]
        if not arguments.get("clients") or self._variables.get("inventory_hostname") != hosts[0]:
            return []
        return authority.clients(
            Path(arguments["directory"]).expanduser(),
            str(arguments.get("passphrase") or ""),
            arguments["clients"],
            arguments.get("key_type", "ecdsa"),
            int(arguments["plan"]["valid_days"]),
            check=bool(self._task.check_mode),
        )

    def _call(self, module: str, arguments: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = self._execute_module(
            module_name=module, module_args=arguments, task_vars=self._variables
        )
        result.pop("invocation", None)
        if result.get("failed") or result.get("unreachable"):
            raise ModuleFailedError(result)
        return result
