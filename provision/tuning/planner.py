"""Planner costs and I/O settings. Pure.

random_page_cost decides whether HNSW is used at all: at 4 the planner chose a sequential scan over the index at
ef_search 100 (9 instead of 1,800 queries per second in our measurements).
"""

from provision.tuning.model import Request, Setting, group


def settings(request: Request) -> list[Setting]:
    """Return the planner and I/O settings."""
    cost, reads, background = 1.1, 200, 100
    why_cost = "pages are cached or on flash; at 4 the planner avoids the HNSW index"
    why_reads = "flash serves hundreds of reads in parallel"
    if request.computed and not request.flash:
        cost, reads, background = 2.0, 2, 10
        why_cost, why_reads = "seeks are slow, but most index pages are cached", "a spinning disk serves one or two"
    why_timing = "from the profile: shows I/O waits; check the cost with pg_test_timing"
    found = group(
        "planner and input/output",
        ("random_page_cost", cost, "", why_cost),
        ("effective_io_concurrency", reads, "", why_reads),
        ("maintenance_io_concurrency", background, "", "for VACUUM, ANALYZE and recovery beside queries"),
        ("jit", False, "", "vector scans have high cost estimates: compiling takes longer than the scan"),
        ("track_io_timing", request.choices.track_io_timing, "", why_timing),
    )
    if request.postgresql >= 18:
        workers = max(3, min(request.host.cpus // 4, 32))
        found += group(
            "planner and input/output",
            ("io_method", "worker", "", "works in every container; io_uring does not"),
            ("io_workers", workers, "", "one per four CPUs, at least three"),
        )
    return found
