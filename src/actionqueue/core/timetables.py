"""Timetables: the policies that imply many runs, and when those are due.

Knows: ``Repeat`` and ``Cron`` as users write them, and the way to their rules and back. Must not know: runs, which of
them exist, or what time it is.

A policy is for people: durations as text, instants as datetimes. Its rule (``rules``) is the same in integers and
canonical text, and is what events and rows hold. Both are validated by the rule's checks: a policy when it is made, a
rule that comes from another process by ``rule_problems``. The arithmetic is in ``fire_times``, the cron language in
``cron``, the zones in ``zones``; whoever uses schedules imports all of it from here.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from msgspec import Struct

from actionqueue.core.cron import canonical
from actionqueue.core.errors import InvalidSubmission
from actionqueue.core.fire_times import Timetable
from actionqueue.core.instants import DAY_US, instant_us, parse_duration_us, to_datetime
from actionqueue.core.rules import (
    CronRule,
    RepeatRule,
    describe,
    describe_duration,
    rule_problems,
    timetable,
    whole_problem,
)
from actionqueue.core.zones import known_zone

__all__ = [
    "Cron",
    "CronRule",
    "Repeat",
    "RepeatRule",
    "Timetable",
    "describe",
    "describe_duration",
    "policy_of",
    "rule_problems",
    "timetable",
]

OCCURRENCES_MAX: Final = 10_000
"""The most fire times of one call of ``occurrences``."""

CATCH_UP_WINDOW_US: Final = DAY_US
"""How far a cron schedule looks back for missed runs unless told otherwise, in microseconds (24 hours)."""

Duration = timedelta | float | str


class Repeat(Struct, frozen=True, tag="repeat"):
    """Exactly ``count`` runs, ``every`` apart: the run number i, from 0, is due at first + i × every.

    - ``count``: 1 to 2**31 - 1.
    - ``every``: a duration of 1 µs to 100 years: a timedelta, seconds, or text such as "15m". It is elapsed time, so
      daylight saving does not move it.
    - ``first_at``: an aware datetime; without one, the first run is due at submission.
    - ``misfire``: what happens to runs missed by more than ``misfire_grace``: "catch_up" (each happens), "coalesce"
      (one stands for all) or "skip". Those older than ``misfire_window`` are skipped anyway.
    - ``overlap``: what happens to a run that is due while the one before it has not ended: "allow", "queue" (it waits),
      "skip" or "cancel_running".

    Raises ``InvalidSubmission``, whose ``problems`` name every field that is wrong.

    >>> from datetime import UTC
    >>> noon = datetime(2026, 11, 2, 12, tzinfo=UTC)
    >>> [f"{due:%H:%M}" for due in Repeat(3, every="30m", first_at=noon).occurrences(after=noon, count=5)]
    ['12:30', '13:00']
    """

    count: int
    every: Duration
    first_at: datetime | None = None
    misfire: str = "catch_up"
    misfire_grace: Duration = "60s"
    misfire_window: Duration | None = None
    overlap: str = "allow"

    def __post_init__(self) -> None:
        """Raise ``InvalidSubmission`` when anything is wrong."""
        self.rule()

    def rule(self) -> RepeatRule:
        """The rule that is recorded for this policy."""
        reading = _Reading()
        rule = RepeatRule(
            count=self.count,
            every_us=reading.duration_us("every", self.every),
            first_us=reading.instant_us("first_at", self.first_at),
            misfire=self.misfire,
            grace_us=reading.duration_us("misfire_grace", self.misfire_grace),
            window_us=reading.optional_us("misfire_window", self.misfire_window),
            overlap=self.overlap,
        )
        _refuse("Repeat", reading.problems, rule)
        return rule

    def occurrences(self, after: datetime, count: int) -> list[datetime]:
        """The next ``count`` (1 to 10,000) times at which runs are due, strictly after ``after``, in its time zone.

        Fewer, when no more are left. Without ``first_at``, ``after`` stands for the submission, at which the first run
        is due: the list begins with it. Raises ``InvalidSubmission`` for a naive ``after`` or a ``count`` out of range.

        >>> from datetime import UTC
        >>> noon = datetime(2026, 11, 2, 12, tzinfo=UTC)
        >>> [f"{due:%H:%M}" for due in Repeat(3, every="30m").occurrences(noon, 5)]
        ['12:00', '12:30', '13:00']
        """
        after_us = instant_us(after, field="after")
        times = timetable(self.rule(), after_us)
        since_us = after_us if self.first_at is not None else after_us - 1
        return [to_datetime(us).astimezone(after.tzinfo) for us in _following(times, since_us, count)]


class Cron(Struct, frozen=True, tag="cron"):
    """A run at each time that ``expression`` names on the wall clock of ``timezone``.

    - ``expression``: 5 fields (minute, hour, day of month, month, day of week), 6 (second before them) or 7 (year
      behind them), or an alias such as "@daily".
    - ``timezone``: an IANA name. What happens when its clock is changed is in docs/schedules.md.
    - ``max_occurrences``: 1 to 2**31 - 1 runs in all; None for no end.
    - ``starts_at``, ``ends_at``: aware datetimes; no run is due before or after them. Without ``starts_at``, the first
      one is due after submission.
    - ``jitter``: each run starts up to this much later, at random: a duration up to 1 day (a timedelta, seconds, or
      text such as "30s").
    - ``misfire``: what happens to runs missed by more than ``misfire_grace``: "catch_up" (each happens), "coalesce"
      (one stands for all) or "skip". Those older than ``misfire_window`` are skipped anyway; with "catch_up" that is
      24 hours unless given.
    - ``overlap``: what happens to a run that is due while the one before it has not ended: "skip", "allow", "queue"
      (it waits) or "cancel_running".

    Raises ``InvalidSubmission``, whose ``problems`` name every field that is wrong.

    >>> from datetime import UTC
    >>> daily = Cron("30 2 * * *", timezone="Europe/Berlin")
    >>> [f"{due:%d %B %H:%M %Z}" for due in daily.occurrences(datetime(2026, 3, 28, tzinfo=UTC), 3)]
    ['28 March 02:30 CET', '29 March 03:00 CEST', '30 March 02:30 CEST']
    """

    expression: str
    timezone: str = "UTC"
    max_occurrences: int | None = None
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    jitter: Duration | None = None
    misfire: str = "coalesce"
    misfire_grace: Duration = "60s"
    misfire_window: Duration | None = None
    overlap: str = "skip"

    def __post_init__(self) -> None:
        """Raise ``InvalidSubmission`` when anything is wrong."""
        self.rule()

    def rule(self) -> CronRule:
        """The rule that is recorded for this policy."""
        reading = _Reading()
        window_us = reading.optional_us("misfire_window", self.misfire_window)
        if self.misfire_window is None and self.misfire == "catch_up":
            window_us = CATCH_UP_WINDOW_US
        rule = CronRule(
            expression=canonical(self.expression),
            timezone=canonical(self.timezone),
            max_occurrences=self.max_occurrences,
            starts_us=reading.instant_us("starts_at", self.starts_at),
            ends_us=reading.instant_us("ends_at", self.ends_at),
            jitter_us=reading.optional_us("jitter", self.jitter) or 0,
            misfire=self.misfire,
            grace_us=reading.duration_us("misfire_grace", self.misfire_grace),
            window_us=window_us,
            overlap=self.overlap,
        )
        _refuse("Cron", reading.problems, rule)
        return rule

    def occurrences(self, after: datetime, count: int) -> list[datetime]:
        """The next ``count`` (1 to 10,000) times at which runs are due, strictly after ``after``, in ``timezone``.

        Fewer, when no more come. Neither jitter nor ``max_occurrences`` is applied: how many runs there were, only the
        store knows. Raises ``InvalidSubmission`` for a naive ``after`` or a ``count`` out of range.

        >>> from datetime import UTC
        >>> last_friday = Cron("0 18 * * 5L", timezone="Europe/Berlin")
        >>> [f"{due:%Y-%m-%d %H:%M %z}" for due in last_friday.occurrences(datetime(2026, 10, 1, tzinfo=UTC), 2)]
        ['2026-10-30 18:00 +0100', '2026-11-27 18:00 +0100']
        """
        after_us = instant_us(after, field="after")
        rule = self.rule()
        here = known_zone(rule.timezone)
        return [to_datetime(us).astimezone(here) for us in _following(timetable(rule, after_us), after_us, count)]


def policy_of(rule: RepeatRule | CronRule) -> Repeat | Cron:
    """The policy that makes this rule, for display: durations as text, instants in UTC."""
    grace = describe_duration(rule.grace_us)
    window = None if rule.window_us is None else describe_duration(rule.window_us)
    if isinstance(rule, RepeatRule):
        return Repeat(
            rule.count,
            every=describe_duration(rule.every_us),
            first_at=_optional_datetime(rule.first_us),
            misfire=rule.misfire,
            misfire_grace=grace,
            misfire_window=window,
            overlap=rule.overlap,
        )
    return Cron(
        rule.expression,
        timezone=rule.timezone,
        max_occurrences=rule.max_occurrences,
        starts_at=_optional_datetime(rule.starts_us),
        ends_at=_optional_datetime(rule.ends_us),
        jitter=describe_duration(rule.jitter_us) if rule.jitter_us else None,
        misfire=rule.misfire,
        misfire_grace=grace,
        misfire_window=window,
        overlap=rule.overlap,
    )


def _optional_datetime(us: int | None) -> datetime | None:
    return None if us is None else to_datetime(us)


# --- from policies to rules and times -----------------------------------------------------------------------------


def _refuse(policy: str, reading_problems: dict[str, str], rule: RepeatRule | CronRule) -> None:
    problems = rule_problems(rule) | reading_problems
    if problems:
        listed = "; ".join(f"{field}: {problem}" for field, problem in problems.items())
        raise InvalidSubmission(f"{policy}: {listed}", problems=problems)


class _Reading:
    """Turns what users wrote into integers, and collects what it cannot read."""

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}

    def duration_us(self, field: str, value: Any) -> int:
        try:
            return parse_duration_us(value, field=field)
        except InvalidSubmission as refusal:
            self.problems |= refusal.problems
            return 1

    def optional_us(self, field: str, value: Any) -> int | None:
        return None if value is None else self.duration_us(field, value)

    def instant_us(self, field: str, value: Any) -> int | None:
        try:
            return None if value is None else instant_us(value, field=field)
        except InvalidSubmission as refusal:
            self.problems |= refusal.problems
            return None


def _following(times: Timetable, after_us: int, count: int) -> list[int]:
    if problem := whole_problem(count, 1, OCCURRENCES_MAX):
        raise InvalidSubmission(f"count: {problem}", problems={"count": problem})
    found: list[int] = []
    due_us = times.next_after(after_us)
    while due_us is not None and len(found) < count:
        found.append(due_us)
        due_us = times.next_after(due_us)
    return found
