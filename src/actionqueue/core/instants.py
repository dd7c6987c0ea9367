"""Instants and durations: integer microseconds, and the one place where other forms become them.

Knows: how aware datetimes, timedeltas, plain seconds and text such as "15m" turn into integers and back. Must not
know: what time it is; no clock is read here.

Instants are microseconds since the Unix epoch, UTC. Everything is integer arithmetic: a float holds microseconds
exactly for 285 years only, and an instant that moves by one microsecond between a record and its replay breaks the
replay. Two ranges: what is recorded fits 64 bits unsigned (``INSTANT_MAX``); what users submit ends with the year
9999 (``SUBMIT_INSTANT_MAX``), where ``datetime`` ends.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Final

from actionqueue.core.errors import InvalidDuration, InvalidInstant

SECOND_US: Final = 1_000_000
MINUTE_US: Final = 60 * SECOND_US
HOUR_US: Final = 60 * MINUTE_US
DAY_US: Final = 24 * HOUR_US
WEEK_US: Final = 7 * DAY_US

INSTANT_MAX: Final = 2**64 - 1
"""The largest instant that can be recorded."""

SUBMIT_INSTANT_MAX: Final = 253_402_300_800 * SECOND_US - 1
"""The last microsecond of the year 9999, UTC: the largest instant a user can give."""

DURATION_US_MAX: Final = SUBMIT_INSTANT_MAX
"""The longest duration: any longer one ends past the year 9999, wherever it begins."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TEXT_LENGTH_MAX: Final = 100
_SHOWN_LENGTH_MAX: Final = 50

_UNITS_US: Final = {
    "w": WEEK_US,
    "d": DAY_US,
    "h": HOUR_US,
    "m": MINUTE_US,
    "min": MINUTE_US,
    "s": SECOND_US,
    "ms": 1000,
    "us": 1,
    "µs": 1,
    "μs": 1,
}
_FORMS: Final = (
    'give a timedelta, seconds as a number, or text such as "15m", "1h30m", "1.5s", "250ms"'
    " (units w, d, h, m, s, ms, us, from the largest down)"
)
_NUMBER = re.compile(r"([0-9]+)(?:\.([0-9]+))?")
_PART = re.compile(rf"{_NUMBER.pattern}\s*({'|'.join(sorted(_UNITS_US, key=len, reverse=True))})\s*")


# --- durations ---------------------------------------------------------------------------------------------------


def parse_duration_us(value: timedelta | int | float | str, *, field: str = "duration") -> int:
    """A duration in microseconds, 0 to ``DURATION_US_MAX``.

    Takes a ``timedelta``, seconds as int or float (rounded to the microsecond), or text: parts of a number and a unit
    from the largest unit down ("1h30m", "2d", "250ms", "10us", "1w"), or a bare number of seconds. Raises
    ``InvalidDuration``, naming ``field``, for anything else: negative, NaN, infinite, bool, empty, too long, or finer
    than a microsecond.

    >>> parse_duration_us("1h30m"), parse_duration_us(1.5), parse_duration_us("250ms")
    (5400000000, 1500000, 250000)
    """
    return _in_range(_any_us(value, field), value, field)


def timedelta_us(delta: timedelta) -> int:
    """The exact number of microseconds in a ``timedelta``; negative for a negative one.

    >>> timedelta_us(timedelta(minutes=15, microseconds=1))
    900000001
    """
    return (delta.days * 86_400 + delta.seconds) * SECOND_US + delta.microseconds


def format_duration(us: int) -> str:
    """Short text for people: the two largest units, what is smaller is cut off. ``parse_duration_us`` reads it.

    >>> format_duration(1_500_000), format_duration(123_000_000), format_duration(250)
    ('1.5 s', '2 min 3 s', '250 us')
    """
    if us < 0:
        return f"-{format_duration(-us)}"
    if us < 1000:
        return f"{us} us"
    if us < SECOND_US:
        return f"{_decimal(us, 1000)} ms"
    if us < MINUTE_US:
        return f"{_decimal(us // 1000, 1000)} s"
    if us < HOUR_US:
        return _two_units(us, MINUTE_US, "min", SECOND_US, "s")
    if us < DAY_US:
        return _two_units(us, HOUR_US, "h", MINUTE_US, "min")
    return _two_units(us, DAY_US, "d", HOUR_US, "h")


def _any_us(value: object, field: str) -> int:
    if isinstance(value, str):
        return _text_us(value, field)
    if isinstance(value, timedelta):
        return timedelta_us(value)
    if isinstance(value, bool):
        raise _not_a_duration(value, field, "is a bool")
    if isinstance(value, int):
        return value * SECOND_US
    if isinstance(value, float):
        return _float_us(value, field)
    raise _not_a_duration(value, field, "is not a duration")


def _text_us(text: str, field: str) -> int:
    stripped = text.strip()
    if not stripped:
        raise _not_a_duration(text, field, "is empty")
    if len(stripped) > _TEXT_LENGTH_MAX:
        raise _not_a_duration(text, field, f"is longer than {_TEXT_LENGTH_MAX} characters")
    if stripped.startswith("-"):
        raise _not_a_duration(text, field, "is negative")
    if number := _NUMBER.fullmatch(stripped):
        return _part_us(number[1], number[2], SECOND_US, text, field)
    return _parts_us(stripped, text, field)


def _parts_us(stripped: str, text: str, field: str) -> int:
    total_us = 0
    at = 0
    larger_unit_us = WEEK_US + 1
    while at < len(stripped):
        part = _PART.match(stripped, at)
        if part is None:
            raise _not_a_duration(text, field, "is not a duration")
        unit_us = _UNITS_US[part[3]]
        if unit_us >= larger_unit_us:
            raise _not_a_duration(text, field, "has its units out of order or twice")
        total_us += _part_us(part[1], part[2], unit_us, text, field)
        larger_unit_us = unit_us
        at = part.end()
    return total_us


def _part_us(whole: str, fraction: str | None, unit_us: int, text: str, field: str) -> int:
    if fraction is None:
        return int(whole) * unit_us
    scale: int = 10 ** len(fraction)
    fraction_us, rest = divmod(int(fraction) * unit_us, scale)
    if rest:
        raise _not_a_duration(text, field, "is finer than a microsecond")
    return int(whole) * unit_us + fraction_us


def _float_us(seconds: float, field: str) -> int:
    if not math.isfinite(seconds):
        raise _not_a_duration(seconds, field, "is not a finite number")
    numerator, denominator = seconds.as_integer_ratio()
    us = (2 * numerator * SECOND_US + denominator) // (2 * denominator)
    if us == 0 and seconds != 0:
        raise _not_a_duration(seconds, field, "is negative" if seconds < 0 else "is finer than a microsecond")
    return us


def _in_range(us: int, value: object, field: str) -> int:
    if us < 0:
        raise _not_a_duration(value, field, "is negative")
    if us > DURATION_US_MAX:
        raise _not_a_duration(value, field, "is too long (past the year 9999 from any instant)")
    return us


def _decimal(value: int, unit: int) -> str:
    whole, rest = divmod(value, unit)
    return f"{whole}.{rest:03}".rstrip("0").rstrip(".")


def _two_units(us: int, large_us: int, large: str, small_us: int, small: str) -> str:
    count, rest_us = divmod(us, large_us)
    small_count = rest_us // small_us
    return f"{count} {large} {small_count} {small}" if small_count else f"{count} {large}"


# --- instants ----------------------------------------------------------------------------------------------------


def instant_us(value: datetime, *, field: str = "instant") -> int:
    """The instant of an aware ``datetime``, 0 to ``SUBMIT_INSTANT_MAX``, exact to the microsecond.

    Raises ``InvalidInstant``, naming ``field``, for a naive datetime, one before 1970 or after the year 9999 (in
    UTC), and for anything that is not a datetime.

    >>> instant_us(datetime(2026, 11, 2, 9, tzinfo=UTC))
    1793610000000000
    """
    _check_aware(value, field)
    us = timedelta_us(value - _EPOCH)
    if us < 0:
        raise _not_an_instant(value, field, "is before 1970-01-01T00:00:00Z; give a later one")
    if us > SUBMIT_INSTANT_MAX:
        raise _not_an_instant(value, field, "is after the year 9999 in UTC; give an earlier one")
    return us


def _check_aware(value: object, field: str) -> None:
    if not isinstance(value, datetime):
        raise _not_an_instant(value, field, "is not a datetime; give an aware one, e.g. datetime.now(UTC)")
    if value.utcoffset() is None:
        remedy = "add a time zone: .replace(tzinfo=UTC) if it is UTC, .astimezone() if it is local time"
        raise _not_an_instant(value, field, f"is a naive datetime, which names no instant; {remedy}")


def check_instant(value: int, *, field: str = "instant") -> int:
    """The value itself, when it is an int of 0 to ``INSTANT_MAX`` microseconds; bools are refused.

    Raises ``InvalidInstant`` otherwise.

    >>> check_instant(0)
    0
    """
    if type(value) is not int or not 0 <= value <= INSTANT_MAX:
        raise _not_an_instant(value, field, "is not an instant; give an int of microseconds, 0 to 2**64 - 1")
    return value


def to_datetime(us: int) -> datetime:
    """The aware UTC datetime of an instant. Raises ``InvalidInstant`` past ``SUBMIT_INSTANT_MAX``.

    >>> to_datetime(1_793_610_000_000_000)
    datetime.datetime(2026, 11, 2, 9, 0, tzinfo=datetime.timezone.utc)
    """
    if not 0 <= us <= SUBMIT_INSTANT_MAX:
        raise _not_an_instant(us, "instant", "is not within the years 1970 to 9999, which a datetime can show")
    return _EPOCH + timedelta(microseconds=us)


def shown_datetime(us: int) -> datetime:
    """The same for whatever is recorded: what is past the year 9999 is shown as its end."""
    return to_datetime(min(us, SUBMIT_INSTANT_MAX))


def format_instant(us: int) -> str:
    """RFC 3339 text in UTC, always with six decimals, so that the texts sort like the instants.

    Raises ``InvalidInstant`` past ``SUBMIT_INSTANT_MAX``.

    >>> format_instant(1_793_610_000_250_000)
    '2026-11-02T09:00:00.250000Z'
    """
    return to_datetime(us).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


# --- refusals ----------------------------------------------------------------------------------------------------


def shown(value: object) -> str:
    """A value as an error message shows it: its repr, bounded, also for ints too long to print.

    >>> shown("15x"), shown(2**20000)
    ("'15x'", 'an int of 20001 bits')
    """
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an int of {value.bit_length()} bits"
    text = repr(value[: _SHOWN_LENGTH_MAX + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= _SHOWN_LENGTH_MAX else f"{text[:_SHOWN_LENGTH_MAX]}…"


def _not_a_duration(value: object, field: str, what: str) -> InvalidDuration:
    problem = f"{shown(value)} {what}; {_FORMS}"
    return InvalidDuration(f"{field}: {problem}", problems={field: problem})


def _not_an_instant(value: object, field: str, what: str) -> InvalidInstant:
    problem = f"{shown(value)} {what}"
    return InvalidInstant(f"{field}: {problem}", problems={field: problem})
