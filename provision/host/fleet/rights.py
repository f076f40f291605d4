"""Functions of Citus that no tenant may call, on every node of a fleet. Changes the database as the superuser.

Citus leaves them to PUBLIC. Some have no check at all (the registration of schemas), others place a tenant, end jobs of
others, or open connections to any address. What a tenant's own CREATE and DROP TABLE calls checks the owner: it stays.
Source: the SQL files of Citus 14.0.
"""

from __future__ import annotations

from psycopg import sql

from provision.host.access import Access

CLOSED = (
    "add_tenant_schema", "delete_tenant_schema", "unregister_tenant_schema_globally",
    "update_none_dist_table_metadata", "delete_placement_metadata",
    "citus_internal_add_tenant_schema", "citus_internal_delete_tenant_schema",
    "citus_internal_unregister_tenant_schema_globally", "citus_internal_update_none_dist_table_metadata",
    "citus_internal_delete_placement_metadata", "citus_internal_mark_node_not_synced",
    "update_relation_colocation", "citus_internal_update_relation_colocation",
    "citus_schema_distribute", "citus_schema_undistribute", "citus_schema_move", "citus_move_shard_placement",
    "citus_copy_shard_placement", "citus_internal_copy_single_shard_placement", "master_move_shard_placement",
    "master_copy_shard_placement", "rebalance_table_shards", "undistribute_table", "citus_rebalance_start",
    "citus_rebalance_stop", "citus_rebalance_wait", "citus_job_cancel", "citus_job_wait",
    "citus_add_rebalance_strategy", "citus_set_default_rebalance_strategy", "citus_cleanup_orphaned_resources",
    "citus_cleanup_orphaned_shards", "citus_stat_tenants_reset", "citus_stat_tenants_local_reset",
    "master_run_on_worker", "run_command_on_workers", "run_command_on_all_nodes", "run_command_on_coordinator",
    "run_command_on_placements", "run_command_on_colocated_placements", "run_command_on_shards",
    "citus_check_connection_to_node", "citus_check_cluster_node_health",
)  # fmt: skip
"""Names, in pg_catalog and citus_internal."""
OPEN = """
SELECT p.oid::regprocedure::text FROM pg_proc p
JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'citus'
WHERE p.proname = ANY(%s)
AND EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) x WHERE x.grantee = 0) ORDER BY 1
"""


def close(access: Access) -> None:
    """Revoke them from PUBLIC, in a session of the fleet's database."""
    for (name,) in access.ask(OPEN, list(CLOSED)):
        statement = sql.SQL(f"REVOKE ALL ON ROUTINE {name} FROM PUBLIC")  # quoted by the server; some are procedures
        access.change(f"function {name}: REVOKE ALL FROM PUBLIC", statement)
