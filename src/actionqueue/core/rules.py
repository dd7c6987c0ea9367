"""Rules: what is recorded of a policy, and what can be wrong with it.

Knows: the fields of a rule in integers and canonical text, their limits, and the timetable a rule stands for. Must not
know: how users write policies, runs, or what time it is.

Rules are what events and rows hold. Everything about a schedule that must stay the same forever is in one; zone data
and the cron language are not, so fire times are recorded when they are derived.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from actionqueue.core.cron import expression_problem, wall_times
from actionqueue.core.fire_times import CronTimes, RepeatTimes, Timetable
from actionqueue.core.instants import DAY_US, HOUR_US, MINUTE_US, SECOND_US, SUBMIT_INSTANT_MAX, shown
from actionqueue.core.zones import zone_problem

COUNT_MAX: Final = 2**31 - 1
"""The most runs of a ``Repeat``, and the largest ``max_occurrences``."""

EVERY_US_MAX: Final = 100 * 366 * DAY_US
"""The longest ``every``, grace and window, in microseconds (100 years)."""

JITTER_US_MAX: Final = DAY_US
"""The largest jitter, in microseconds (one day)."""

MISFIRES: Final = ("catch_up", "coalesce", "skip")
"""What happens to fire times that were missed."""

OVERLAPS: Final = ("allow", "queue", "skip", "cancel_running")
"""What happens to a run that is due while the one before it is still going on."""


class RepeatRule(Struct, frozen=True, tag="repeat", array_like=True):
    """A ``Repeat`` as it is recorded; ``first_us`` is None where the first run is due at submission."""

    count: int
    every_us: int
    first_us: int | None
    misfire: str
    grace_us: int
    window_us: int | None
    overlap: str


class CronRule(Struct, frozen=True, tag="cron", array_like=True):
    """A ``Cron`` as it is recorded; ``expression`` as it was written, but for spaces."""

    expression: str
    timezone: str
    max_occurrences: int | None
    starts_us: int | None
    ends_us: int | None
    jitter_us: int
    misfire: str
    grace_us: int
    window_us: int | None
    overlap: str


Rule = RepeatRule | CronRule


def timetable(rule: RepeatRule | CronRule, submitted_us: int) -> Timetable:
    """When the runs of a rule are due that was submitted at ``submitted_us`` (microseconds since the epoch, UTC).

    A cron rule without a start begins after its submission, one with a start at it. ``max_occurrences`` is not applied:
    it counts runs. Cheap to make: what is derived from an expression and a zone is kept. Raises ``InvalidSubmission``
    for an expression or a zone that is not valid here.

    >>> rule = RepeatRule(3, 1_000_000, None, "skip", 0, None, "skip")
    >>> timetable(rule, 500).last_until(10_000_000)
    2000500
    """
    if isinstance(rule, RepeatRule):
        first_us = submitted_us if rule.first_us is None else rule.first_us
        return RepeatTimes(first_us=first_us, every_us=rule.every_us, total=rule.count)
    first_us = submitted_us + 1 if rule.starts_us is None else rule.starts_us
    return CronTimes(wall_times(rule.expression), rule.timezone, first_us=first_us, last_us=rule.ends_us)


# --- validation ---------------------------------------------------------------------------------------------------


def rule_problems(rule: RepeatRule | CronRule, submitted_us: int | None = None) -> dict[str, str]:
    """Everything that is wrong with a rule, by the field of its policy; empty when it is valid.

    With ``submitted_us`` (microseconds since the epoch, UTC) also that it would never be due when submitted then.
    """
    specific = _repeat_problems(rule) if isinstance(rule, RepeatRule) else _cron_problems(rule)
    problems = specific | {
        "misfire": _choice_problem(rule.misfire, MISFIRES),
        "misfire_grace": _duration_problem(rule.grace_us, 0, EVERY_US_MAX),
        "misfire_window": None if rule.window_us is None else _duration_problem(rule.window_us, 0, EVERY_US_MAX),
        "overlap": _choice_problem(rule.overlap, OVERLAPS),
    }
    found = {field: problem for field, problem in problems.items() if problem is not None}
    return found or _due_problems(rule, submitted_us)


def _repeat_problems(rule: RepeatRule) -> dict[str, str | None]:
    return {
        "count": whole_problem(rule.count, 1, COUNT_MAX),
        "every": _duration_problem(rule.every_us, 1, EVERY_US_MAX),
        "first_at": _instant_problem(rule.first_us),
    }


def _cron_problems(rule: CronRule) -> dict[str, str | None]:
    ends = _instant_problem(rule.ends_us)
    if ends is None and rule.ends_us is not None and type(rule.starts_us) is int and rule.ends_us <= rule.starts_us:
        ends = "is not after starts_at; give a later instant"
    occurrences = rule.max_occurrences
    return {
        "expression": expression_problem(rule.expression),
        "timezone": zone_problem(rule.timezone),
        "max_occurrences": None if occurrences is None else whole_problem(occurrences, 1, COUNT_MAX),
        "starts_at": _instant_problem(rule.starts_us),
        "ends_at": ends,
        "jitter": _duration_problem(rule.jitter_us, 0, JITTER_US_MAX),
    }


def _due_problems(rule: RepeatRule | CronRule, submitted_us: int | None) -> dict[str, str]:
    """Problems that show only in the fire times of a rule whose fields are valid."""
    if isinstance(rule, RepeatRule):
        first_us = (submitted_us or 0) if rule.first_us is None else rule.first_us
        if first_us + (rule.count - 1) * rule.every_us > SUBMIT_INSTANT_MAX:
            return {"count": "the last run would be due after the year 9999; give fewer runs, or a shorter every"}
        return {}
    if rule.starts_us is None and submitted_us is None:
        return {}
    if timetable(rule, submitted_us or 0).next_after(-1) is None:
        field = "ends_at" if rule.ends_us is not None else "expression"
        return {field: "no run would ever be due: no time that expression names is left in the range of time given"}
    return {}


def whole_problem(value: object, low: int, high: int) -> str | None:
    if type(value) is int and low <= value <= high:
        return None
    return f"is {shown(value)}; give a whole number from {low} to {high}"


def _duration_problem(us: object, low: int, high: int) -> str | None:
    if type(us) is int and low <= us <= high:
        return None
    given = describe_duration(us) if type(us) is int and us >= 0 else shown(us)
    return f"is {given}; give a duration from {describe_duration(low)} to {describe_duration(high)}"


def _instant_problem(us: object) -> str | None:
    if us is None or (type(us) is int and 0 <= us <= SUBMIT_INSTANT_MAX):
        return None
    return f"is {shown(us)}; give an instant from 1970 to the year 9999"


def _choice_problem(value: object, choices: tuple[str, ...]) -> str | None:
    return None if value in choices else f"is {shown(value)}; give one of {', '.join(choices)}"


# --- for people ---------------------------------------------------------------------------------------------------


def describe(rule: RepeatRule | CronRule) -> str:
    """One line for tables.

    >>> describe(RepeatRule(6, 1_800_000_000, None, "skip", 0, None, "skip"))
    '6 × every 30m'
    >>> describe(CronRule("0 9 * * MON-FRI", "Europe/Berlin", None, None, None, 0, "skip", 0, None, "skip"))
    '0 9 * * MON-FRI Europe/Berlin'
    """
    if isinstance(rule, RepeatRule):
        return f"{rule.count} × every {describe_duration(rule.every_us)}"
    return f"{rule.expression} {rule.timezone}"


def describe_duration(us: int) -> str:
    """The shortest text that ``parse_duration_us`` reads as exactly this duration.

    >>> describe_duration(5_400_000_000), describe_duration(0)
    ('1h30m', '0s')
    """
    units = (("d", DAY_US), ("h", HOUR_US), ("m", MINUTE_US), ("s", SECOND_US), ("ms", 1000), ("us", 1))
    parts: list[str] = []
    for unit, unit_us in units:
        number, us = divmod(us, unit_us)
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"
