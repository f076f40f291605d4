"""What the planner believes about storage, and how reads are issued. Pure.

random_page_cost decides whether HNSW is used at all: at 4 the planner left the index for a sequential scan at
ef_search 100 (9 instead of 1,800 queries a second in our measurements).
"""

from provision.tuning.model import Request, Setting, group


def settings(request: Request) -> list[Setting]:
    """Return costs and input/output."""
    cost, reads, background = 1.1, 200, 100
    why_cost = "pages are cached or on flash; at 4 the planner leaves the HNSW index"
    why_reads = "flash answers hundreds of reads at once"
    if request.computed and not request.flash:
        cost, reads, background = 2.0, 2, 10
        why_cost, why_reads = "a seek costs, yet most index pages are cached", "a spinning disk answers one or two"
    found = group(
        "planner and input/output",
        ("random_page_cost", cost, "", why_cost),
        ("effective_io_concurrency", reads, "", why_reads),
        ("maintenance_io_concurrency", background, "", "for VACUUM, ANALYZE and recovery beside the users"),
        ("jit", False, "", "cost estimates of vector scans trigger compilations that outlast the scans"),
        ("track_io_timing", True, "", "shows what waits for the disk; cheap where pg_test_timing says so"),
    )
    if request.postgresql >= 18:
        workers = max(3, min(request.host.cpus // 4, 32))
        found += group(
            "planner and input/output",
            ("io_method", "worker", "", "works in every kernel and container; io_uring does not"),
            ("io_workers", workers, "", "one per four CPUs, at least the default"),
        )
    return found
