"""Preloaded libraries and their settings. Pure. The Ansible role `database` runs CREATE EXTENSION.

The list keeps the user's additions in order, without duplicates. The server does not start if a library is missing;
this module cannot check that.
"""

from collections.abc import Iterable

from provision.tuning.model import Request, Setting, group

PREWARM_INTERVAL_S = 300  # the default; the list has some 20 bytes for each cached page


def preload(chosen: Iterable[str], added: Iterable[str] = ()) -> tuple[str, ...]:
    """Merge the libraries of profile and user in order, without duplicates; Citus must be the first."""
    found = dict.fromkeys(name.strip() for name in (*chosen, *added) if name.strip())
    return tuple(sorted(found, key=lambda name: name != "citus"))


def settings(request: Request) -> list[Setting]:
    """Return the preload list and the settings of its libraries."""
    title, choices, libraries = "extensions", request.choices, request.choices.preload
    reason = "from the profile, plus postgresql_preload_libraries"
    found = group(title, ("shared_preload_libraries", ",".join(libraries), "", reason))
    if "pg_stat_statements" in libraries:
        found += group(
            title,
            ("pg_stat_statements.max", 10000, "", "generated SQL has many distinct statements"),
            ("pg_stat_statements.track_utility", False, "", "ALTER ROLE would store a password there"),
        )
    if "auto_explain" in libraries:
        why = "timing every plan node slows every statement"
        found += group(
            title,
            ("auto_explain.log_min_duration", choices.auto_explain_ms, "ms", "plans of slow statements"),
            ("auto_explain.log_analyze", choices.auto_explain_analyze, "", why),
        )
        if request.postgresql >= 16:
            cut = choices.log_parameter_bytes
            name = "auto_explain.log_parameter_max_length"
            found += group(title, (name, cut, "B", "same as log_parameter_max_length"))
    if "pg_prewarm" in libraries:
        every = "writes the list of cached pages to autoprewarm.blocks, from which a restart after a crash reads"
        found += group(
            title,
            ("pg_prewarm.autoprewarm", True, "", "loads the pages that were cached again after a restart"),
            ("pg_prewarm.autoprewarm_interval", PREWARM_INTERVAL_S, "s", every),
        )
    if "pgaudit" in libraries:
        found += group(
            title,
            ("pgaudit.log", ",".join(choices.audit), "", "from the profile: the classes of statements to log"),
            ("pgaudit.log_parameter", False, "", "parameters hold what agents remember about people"),
            ("pgaudit.log_catalog", False, "", "psql and exporters read the system catalogues all the time"),
            ("pgaudit.log_statement_once", True, "", "log a statement's text once, not for each object"),
        )
    return found
