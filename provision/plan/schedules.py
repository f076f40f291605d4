"""Judge schedules by the answers of systemd-analyze; translate cron syntax for the message. Pure.

The probe returns the answers of `host.timers.elapses`, from the host or, for `provision plan`, from the controller. A
schedule of "" is never, and needs no answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from provision.plan.context import Verdict

SUFFIX = "_schedule"
HEAVY = ("backup_full_schedule", "backup_logical_schedule", "backup_drill_schedule")
"""Each run of these reads or writes the whole cluster."""
OFTEN_S = 3600
EXAMPLE = '"*-*-* 03:30" for every day at 03:30, or "" for never'
DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
WORDS = {"@hourly": "hourly", "@daily": "daily", "@midnight": "daily", "@weekly": "weekly", "@monthly": "monthly",
         "@yearly": "yearly", "@annually": "yearly"}  # fmt: skip
FIELDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
"""Minute, hour, day of the month, month, day of the week, as in crontab(5)."""


def requested(v: Mapping[str, Any]) -> dict[str, str]:
    """Return every schedule that is not empty, by its variable."""
    return {name: text for name, text in sorted(v.items()) if name.endswith(SUFFIX) and text}


def judge(v: Mapping[str, Any], host: Mapping[str, Any], verdict: Verdict) -> None:
    """Refuse schedules that systemd cannot read or that never elapse; warn about one that elapses once, or too often.

    Without systemd-analyze nothing is judged; a host that systemd did not boot runs no timers either.
    """
    schedules, answers = requested(v), host["schedules"]
    if answers is None:
        if schedules and host["systemd"]:
            verdict.notices.append(
                "schedules were not checked, because systemd-analyze is missing or too old here: "
                f"{', '.join(schedules)}; site.yml checks them on the host before any change"
            )
        return
    for name, text in schedules.items():
        answer = answers.get(text) or {"at": [], "said": "no answer"}
        times = answer["at"]
        if answer["said"]:
            verdict.refusals.append(f"{name} is {text!r}: {_expected(text)}; systemd-analyze says: {answer['said']}")
        elif not times:
            verdict.refusals.append(
                f"{name} is {text!r}, which never elapses: expected a time in the future, such as {EXAMPLE}; "
                f"test it with systemd-analyze calendar '{text}'"
            )
        elif len(times) == 1:
            verdict.warnings.append(f"{name} is {text!r}, which elapses only once")
        elif name in HEAVY and times[1] - times[0] < OFTEN_S:
            verdict.warnings.append(
                f"{name} is {text!r}, which runs every {(times[1] - times[0]) // 60 or 1} min; each run reads "
                "the whole cluster"
            )


def _expected(text: str) -> str:
    translated = from_cron(text)
    if translated:
        return f"this is cron syntax; write {translated!r} (man systemd.time)"
    return f"expected a calendar expression (man systemd.time), such as {EXAMPLE}"


def from_cron(text: str) -> str:
    """Translate a simple line of crontab(5) into a calendar expression; "" if it is not one, or not a simple one."""
    words = text.split()
    if len(words) == 1:
        return WORDS.get(words[0].lower(), "")
    if len(words) != len(FIELDS):
        return ""
    parts = [_field(word, low, high) for word, (low, high) in zip(words, FIELDS, strict=True)]
    if not all(parts):
        return ""
    minute, hour, day, month, weekday = parts
    if weekday == "*":
        days = ""
    elif day != "*" or not (numbers := _numbers(weekday)):
        return ""  # cron runs when either day matches, systemd when both do
    else:
        days = ",".join(DAYS[each] for each in sorted({each % 7 for each in numbers}, key=lambda each: each or 7)) + " "
    return f"{days}*-{month}-{day} {hour}:{minute}"


def _field(word: str, low: int, high: int) -> str:
    """Write one field of cron as systemd does: numbers with two digits, ranges with two dots."""
    if word == "*":
        return "*"
    step = re.fullmatch(r"[*]/(\d+)", word)
    if step:
        return f"{low:02}/{int(step[1])}" if 0 < int(step[1]) <= high else ""
    found = []
    for each in word.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", each)
        ends = [int(number) for number in match.groups() if number] if match else []
        if not ends or ends != sorted(ends) or ends[0] < low or ends[-1] > high:
            return ""
        found.append("..".join(f"{number:02}" for number in ends))
    return ",".join(found)


def _numbers(field: str) -> list[int]:
    """List the numbers of a field; [] for a step."""
    if "/" in field:
        return []
    ends = [[int(number) for number in part.split("..")] for part in field.split(",")]
    return [number for pair in ends for number in range(pair[0], pair[-1] + 1)]
