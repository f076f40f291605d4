"""CPU time of a real server, whose sessions end while it is read."""

from __future__ import annotations

import psycopg

from provision.controller.bench.processes import cpu_seconds, peak_memory
from tests.clusters import Cluster

WORK = "SELECT sum(sqrt(i)) FROM generate_series(1, 400000) AS i"


def test_cpu_time_never_falls_and_keeps_that_of_sessions_that_ended(cluster: Cluster) -> None:
    postmaster = int((cluster.data / "postmaster.pid").read_text().split()[0])
    seen = [cpu_seconds(postmaster)]
    for _ in range(10):
        with psycopg.connect(cluster.url()) as session:
            session.execute(WORK)
        seen += [cpu_seconds(postmaster) for _ in range(3)]  # the postmaster reaps the session in between
    assert seen == sorted(seen)
    assert seen[-1] - seen[0] > 0.2  # ten sums of some 50 ms each


def test_peak_memory_is_that_of_a_sort_in_memory(cluster: Cluster) -> None:
    postmaster = int((cluster.data / "postmaster.pid").read_text().split()[0])
    with psycopg.connect(cluster.url()) as session:
        session.execute("SET work_mem = '1GB'")
        with peak_memory(postmaster) as peak:
            session.execute(
                "SELECT i FROM (SELECT i::text FROM generate_series(1, 1000000) i) t ORDER BY i OFFSET 999999"
            )
    assert 40 < peak[0] < 400  # a million short texts, and what other tests' sessions take meanwhile
