"""The cron language: which wall-clock times an expression names.

Knows: fields, names, aliases, the calendar. Must not know: time zones, instants, daylight saving; wall-clock times here
are seconds since 1970-01-01T00:00:00 on the wall.

``cronsim`` parses the fields and decides whether a day matches; the aliases, the year and the remedies in refusals are
ours. Times are not searched one by one, but ranked: each matching day has the same number of times (hours × minutes ×
seconds), and the calendar has only fourteen kinds of years (seven weekdays to begin with, leap or not), whose matching
days are found once. So the millionth time after any other is found as fast as the next one.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Any, Final

from cronsim import CronSim, CronSimError

from actionqueue.core.errors import InvalidSubmission
from actionqueue.core.instants import shown

EXPRESSION_CHARACTERS_MAX: Final = 500
YEAR_MIN, YEAR_MAX = 1970, 9999

BARREN_YEARS_MAX: Final = 50
"""A day that comes at all comes within as many years: the rarest, 29 February on a given weekday, within 40."""

ALIASES: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}

FIELDS: Final = {
    "second": (60, "0 to 59"),
    "minute": (60, "0 to 59"),
    "hour": (24, "0 to 23"),
    "day of month": (31, "1 to 31, L (the last day) or LW (the last weekday)"),
    "month": (12, "1 to 12 or JAN to DEC"),
    "day of week": (7, "0 to 7 or SUN to SAT (0 and 7 are Sunday), 5L (the last Friday) or FRI#2 (the second Friday)"),
}
"""The fields in their order: how many values each has, and which."""

_FORMS = "lists (1,15), ranges upward (1-5) and steps (*/10)"
_DAY_S = 86_400
_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()
_YEARS = re.compile(r"(?:(?P<every>\*)|(?P<first>[0-9]{4})(?:-(?P<last>[0-9]{4}))?)(?:/(?P<step>[0-9]{1,4}))?")


class WallTimes:
    """The wall-clock times that an expression names, by rank.

    ``is_fixed``: it names times of day, as "30 2 * * *" does, instead of the steps of a running clock. As in Debian's
    cron, that is so when neither the hour nor the minute (nor the second) begins with a star.
    """

    __slots__ = (
        "_days",
        "_matcher",
        "first_year",
        "hours",
        "is_fixed",
        "last_year",
        "minutes",
        "per_day",
        "seconds",
        "years",
    )

    def __init__(self, fields: list[str], years: frozenset[int] | None) -> None:
        self._matcher = CronSim(" ".join(fields), datetime(2000, 1, 1, tzinfo=UTC))
        self._days: dict[tuple[int, int], tuple[int, ...]] = {}
        self.seconds = tuple(sorted(self._matcher.seconds))
        self.minutes = tuple(sorted(self._matcher.minutes))
        self.hours = tuple(sorted(self._matcher.hours))
        self.per_day = len(self.hours) * len(self.minutes) * len(self.seconds)
        self.is_fixed = not any(field.startswith("*") for field in fields[:3])
        self.years = years
        self.first_year, self.last_year = (min(years), max(years)) if years else (YEAR_MIN, YEAR_MAX)

    def days(self, year: int) -> tuple[int, ...]:
        """The matching days of a year, counted from 0 for the first of January."""
        if self.years is not None and year not in self.years:
            return ()
        first = date(year, 1, 1)
        kind = (first.weekday(), date(year, 12, 31).toordinal() - first.toordinal())
        found = self._days.get(kind)
        if found is None:
            found = self._days[kind] = self._matching(first.toordinal(), kind[1] + 1)
        return found

    def _matching(self, first: int, length: int) -> tuple[int, ...]:
        months, match_day = self._matcher.months, self._matcher.match_day
        days = (date.fromordinal(first + n) for n in range(length))
        return tuple(n for n, day in enumerate(days) if day.month in months and match_day(day))

    def count(self, since: int, until: int) -> int:
        """How many times lie from ``since`` up to, not including, ``until``."""
        if since >= until:
            return 0
        (year, before), (last_year, within) = self._rank(since), self._rank(until)
        return sum(self.per_day * len(self.days(each)) for each in range(year, last_year)) + within - before

    def pick(self, since: int, n: int) -> int:
        """The time with ``n`` others between it and ``since`` (which may be one of them); it must exist."""
        year, before = self._rank(since)
        rank = before + n
        while rank >= (total := self.per_day * len(self.days(year))):
            rank -= total
            year += 1
        nth_day, nth_time = divmod(rank, self.per_day)
        day = date(year, 1, 1).toordinal() - _EPOCH_ORDINAL + self.days(year)[nth_day]
        return day * _DAY_S + self._time_of_day(nth_time)

    def _rank(self, wall_s: int) -> tuple[int, int]:
        """The year of a time, and how many matching times of that year are before it."""
        day, second_of_day = divmod(wall_s, _DAY_S)
        year = date.fromordinal(day + _EPOCH_ORDINAL).year
        days, day_of_year = self.days(year), day + _EPOCH_ORDINAL - date(year, 1, 1).toordinal()
        days_before = bisect_left(days, day_of_year)
        rank = days_before * self.per_day
        if days_before < len(days) and days[days_before] == day_of_year:
            rank += self._times_before(second_of_day)
        return year, rank

    def _times_before(self, second_of_day: int) -> int:
        minute_of_day, second = divmod(second_of_day, 60)
        hour, minute = divmod(minute_of_day, 60)
        nth_hour, nth_minute = bisect_left(self.hours, hour), bisect_left(self.minutes, minute)
        before = nth_hour * len(self.minutes)
        if hour not in self._matcher.hours:
            return before * len(self.seconds)
        before = (before + nth_minute) * len(self.seconds)
        return before + bisect_left(self.seconds, second) if minute in self._matcher.minutes else before

    def _time_of_day(self, nth: int) -> int:
        rest, nth_second = divmod(nth, len(self.seconds))
        nth_hour, nth_minute = divmod(rest, len(self.minutes))
        return self.hours[nth_hour] * 3600 + self.minutes[nth_minute] * 60 + self.seconds[nth_second]


# --- reading an expression ---------------------------------------------------------------------------------------


def canonical(text: Any) -> Any:
    """The text as it was written, without spaces around it and with single ones inside; no text stays what it is."""
    return " ".join(text.split()) if isinstance(text, str) else text


def expression_problem(expression: object) -> str | None:
    """What is wrong with an expression and what to write instead, if anything."""
    try:
        wall_times(_checked_text(expression))
    except InvalidSubmission as refusal:
        return refusal.problems["expression"]
    return None


@lru_cache(maxsize=1024)
def wall_times(expression: str) -> WallTimes:
    """The wall-clock times that an expression names. Raises ``InvalidSubmission``, naming every bad field.

    >>> wall_times("@daily").per_day, wall_times("*/10 * * * * *").per_day
    (1, 8640)
    """
    fields, year = _fields(expression)
    problems = [problem for name, text in zip(FIELDS, fields, strict=True) if (problem := _field_problem(name, text))]
    years, year_problem = _years(year)
    if year_problem:
        problems.append(year_problem)
    if problems:
        raise _refused("; ".join(problems))
    return _with_days(fields, years)


def _with_days(fields: list[str], years: frozenset[int] | None) -> WallTimes:
    try:
        times = WallTimes(fields, years)
    except CronSimError:  # each field is right, but no month is that long
        times = None
    candidates = years or range(2000, 2000 + BARREN_YEARS_MAX)
    if times is None or not any(map(times.days, candidates)):
        year = f", year {min(years)}" if years else ""
        raise _refused(
            f"names a day that never comes (day of month {fields[3]}, month {fields[4]}, day of week {fields[5]}{year}); "
            "give a day that exists, or L for the last one of a month"
        )
    return times


def _checked_text(expression: object) -> str:
    if not isinstance(expression, str):
        raise _refused(f"{shown(expression)} is not a text; give a cron expression such as '0 9 * * MON-FRI'")
    if len(expression) > EXPRESSION_CHARACTERS_MAX:
        raise _refused(f"is longer than {EXPRESSION_CHARACTERS_MAX} characters; use ranges and steps")
    return expression


def _fields(expression: str) -> tuple[list[str], str]:
    """The six fields and the year of an expression with five, six or seven fields, or of an alias."""
    text = _checked_text(expression).strip()
    if text.startswith("@"):
        if text.lower() not in ALIASES:
            raise _refused(f"{shown(text)} is not an alias; the aliases are {', '.join(ALIASES)}")
        text = ALIASES[text.lower()]
    fields = text.upper().split()
    if not 5 <= len(fields) <= 7:
        raise _refused(
            f"{shown(text)} has {len(fields)} fields; give 5 (minute, hour, day of month, month, day of week), 6 (second "
            "before them) or 7 (second before and year behind them)"
        )
    seconds, year = ([] if len(fields) > 5 else ["0"]), (fields.pop() if len(fields) == 7 else "*")
    return seconds + fields, year


def _field_problem(name: str, text: str) -> str | None:
    """What is wrong with one field."""
    size, values = FIELDS[name]
    fields = [text if each == name else "*" for each in FIELDS]
    try:
        CronSim(" ".join(fields), datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError:
        return f"{name} {shown(text)} is not understood: give {values}; with {_FORMS}"
    if "L/" in text or "LW/" in text:
        return f"{name} {shown(text)} has a step where there is one value only; leave the step out"
    if any(int(step) > size for step in re.findall(r"/([0-9]+)", text)):
        return f"{name} {shown(text)} has a step above {size}, which would start anew in each cycle; give a smaller one"
    return None


def _years(text: str) -> tuple[frozenset[int] | None, str | None]:
    """The years of a field, None for all, and what is wrong with it."""
    if text == "*":
        return None, None
    years: set[int] = set()
    for term in text.split(","):
        found = _YEARS.fullmatch(term)
        some = _year_range(found) if found else range(0)
        if not some:
            return None, (
                f"year {shown(text)} is not understood, or can never come: give {YEAR_MIN} to {YEAR_MAX}; with lists "
                "(2027,2029), ranges upward (2027-2030) and steps (2027/2)"
            )
        years.update(some)
    return frozenset(years), None


def _year_range(found: re.Match[str]) -> range:
    step = int(found["step"] or 1)
    first = YEAR_MIN if found["every"] else int(found["first"])
    last = int(found["last"]) if found["last"] else YEAR_MAX if found["every"] or found["step"] else first
    return range(first, last + 1, step) if step and YEAR_MIN <= first <= last <= YEAR_MAX else range(0)


def _refused(problem: str) -> InvalidSubmission:
    return InvalidSubmission(f"expression: {problem}", problems={"expression": problem})
