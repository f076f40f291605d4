"""Preloaded libraries and their settings. Pure. CREATE EXTENSION belongs to the role `database`.

The list keeps what the user adds, in order and once each; a library that is not installed would keep the server
from starting, which only a start proves.
"""

from collections.abc import Iterable

from provision.tuning.model import Request, Setting, group


def preload(chosen: Iterable[str], added: Iterable[str] = ()) -> tuple[str, ...]:
    """Join the profile's libraries and the user's, each once, in order."""
    return tuple(dict.fromkeys(name.strip() for name in (*chosen, *added) if name.strip()))


def settings(request: Request) -> list[Setting]:
    """Return the preload list and what the libraries in it take."""
    title, choices, libraries = "extensions", request.choices, request.choices.preload
    reason = "by the profile, and what the user adds"
    found = group(title, ("shared_preload_libraries", ",".join(libraries), "", reason))
    if "pg_stat_statements" in libraries:
        found += group(
            title,
            ("pg_stat_statements.max", 10000, "", "generated SQL has many shapes"),
            ("pg_stat_statements.track_utility", False, "", "ALTER ROLE would leave a password there"),
        )
    if "auto_explain" in libraries:
        why = "timing every plan node slows every statement: on in dev only"
        found += group(
            title,
            ("auto_explain.log_min_duration", choices.auto_explain_ms, "ms", "plans of slow statements"),
            ("auto_explain.log_analyze", choices.auto_explain_analyze, "", why),
        )
        if request.postgresql >= 16:
            cut = choices.log_parameter_bytes
            name = "auto_explain.log_parameter_max_length"
            found += group(title, (name, cut, "B", "as log_parameter_max_length"))
    return found
