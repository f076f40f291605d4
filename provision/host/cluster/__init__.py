"""Clients of a cluster's etcd and Patroni: status, switchover, restart, and the follower that routes the pooler."""
