"""A cluster can be adopted as it is, or the refusal names the change that it needs."""

from __future__ import annotations

from typing import Any

import pytest

from provision.plan.adoption import refusals

CLUSTER: dict[str, Any] = {
    "major": "17", "name": "main", "port": "5432", "data_directory": "/var/lib/postgresql/17/main",
    "version_file": "17", "running_pid": 812, "running_port": 5432, "includes_conf_d": True,
}  # fmt: skip


def said(adopt: str = "17/main", method: str = "package", host: dict[str, Any] | None = None, **changed: Any) -> str:
    given = {"adopt_cluster": adopt, "postgresql_version": 17, "pgvector_install_method": method}
    seen = {"ours": False, "clusters": [{**CLUSTER, **changed}], "pgvector_version": "0.8.0", **(host or {})}
    return "; ".join(refusals(given, seen, "0.5.1"))


@pytest.mark.parametrize("adopt", ["", "17/main"])
def test_accepts_a_plain_cluster(adopt: str) -> None:
    assert said(adopt) == ""


def test_is_silent_once_the_cluster_is_ours() -> None:
    assert said(host={"ours": True}, running_pid=0) == ""


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({"adopt": "16/main"}, "adopt_cluster 16/main: this host has 17/main"),
        ({"host": {"clusters": []}}, "adopt_cluster 17/main: this host has no cluster"),
        ({"adopt": "15/main", "major": "15"}, "only 17/main can be adopted; set postgresql_version to 15"),
        ({"adopt": "17/old", "name": "old"}, "only 17/main can be adopted; pg_renamecluster can rename it"),
        (
            {"running_pid": 0},
            "the server is not running, so its contents cannot be read; on the host: pg_ctlcluster 17 main start",
        ),
        ({"data_directory": "/srv/pg"}, "its data is in /srv/pg; move it to /var/lib/postgresql/17/main"),
        ({"includes_conf_d": False}, "does not include conf.d, where the settings go; add include_dir = 'conf.d'"),
        ({"method": "source"}, "pgvector 0.8.0 is installed, and 0.5.1 would replace it"),
    ],
)
def test_refuses_a_cluster_that_could_not_be_kept(case: dict[str, Any], expected: str) -> None:
    assert expected in said(**case)


def test_builds_over_an_older_pgvector_or_none() -> None:
    assert said(method="source", host={"pgvector_version": "0.5.0"}) == ""
    assert said(method="source", host={"pgvector_version": None}) == ""
