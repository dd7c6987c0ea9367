"""Time zones as stretches of constant offset: the only module that asks ``zoneinfo``.

Knows: which stretches of UTC time have which offset in a zone. Must not know: cron, policies, or what time it is.

Within a stretch, wall-clock time is UTC plus a constant, so questions about wall-clock times become integer arithmetic;
daylight saving is what happens where one stretch meets the next. ``zoneinfo`` does not tell its changes, so a year is
sampled at each UTC midnight, and a change between two samples is bisected to the second. No zone has changed twice
within a day since 1970 (a test compares with the zones' own tables).

Zone data may change between releases. What was once derived from it is recorded, so a replay never asks this module.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from actionqueue.core.errors import InvalidSubmission
from actionqueue.core.instants import shown

DAY_S: Final = 86_400

END_S: Final = 253_402_214_400
"""9999-12-31T00:00:00Z, in seconds: instants before it have a wall-clock time in every zone."""

_YEAR_MAX: Final = 9999
_NAME_CHARACTERS_MAX: Final = 100
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NOT_PORTABLE: Final = ("right/", "posix/", "posixrules", "localtime")
"""Names that some systems have: they count leap seconds, or mean something else on each machine."""


class Stretch(NamedTuple):
    """UTC seconds from ``start_s`` up to, not including, ``end_s``, all with the same offset to the wall clock."""

    start_s: int
    end_s: int
    offset_s: int
    offset_before_s: int
    """The offset just before ``start_s``; the same, where the stretch begins with a year instead of a change."""


def zone_problem(name: object) -> str | None:
    """What is wrong with the name of a time zone, if anything."""
    if not isinstance(name, str) or not 0 < len(name) <= _NAME_CHARACTERS_MAX:
        return f"{shown(name)} is not the name of a time zone; give an IANA name such as 'Europe/Berlin' or 'UTC'"
    try:
        if not name.startswith(_NOT_PORTABLE):
            zone(name)
            return None
    except (LookupError, ValueError, OSError):  # unknown; not a proper path; a folder, such as "America"
        pass
    return (
        f"{shown(name)} is not a time zone that this machine knows; give an IANA name such as 'Europe/Berlin' or 'UTC'"
    )


@lru_cache(maxsize=1024)
def zone(name: str) -> ZoneInfo:
    """The zone of this name. Raises what ``zoneinfo`` raises; ``zone_problem`` tells it first."""
    return ZoneInfo(name)


@lru_cache(maxsize=4096)
def stretches(name: str, year: int) -> tuple[Stretch, ...]:
    """The stretches of a zone in one UTC year, 1970 to 9999, cut at its borders.

    >>> [(each.offset_s, each.end_s - each.start_s) for each in stretches("Europe/Berlin", 2026)]
    [(3600, 7520400), (7200, 18144000), (3600, 5871600)]
    """
    here = known_zone(name)
    start_s, end_s = year_start_s(year), year_start_s(year + 1)
    starts = [start_s, *_changes(here, start_s, end_s)]
    return tuple(
        Stretch(at_s, until_s, offset_at(here, at_s), offset_at(here, at_s - 1))
        for at_s, until_s in zip(starts, [*starts[1:], end_s], strict=True)
    )


def known_zone(name: str) -> ZoneInfo:
    """The zone of this name. Raises ``InvalidSubmission`` when there is none."""
    if problem := zone_problem(name):
        raise InvalidSubmission(f"timezone: {problem}", problems={"timezone": problem})
    return zone(name)


def offset_at(here: ZoneInfo, at_s: int) -> int:
    """Wall clock minus UTC at an instant, both in seconds."""
    offset = (_EPOCH + timedelta(seconds=at_s)).astimezone(here).utcoffset()
    assert offset is not None
    return offset.days * DAY_S + offset.seconds


def year_of(at_s: int) -> int:
    """The UTC year of an instant in seconds."""
    return (_EPOCH + timedelta(seconds=at_s)).year


def year_start_s(year: int) -> int:
    """The first second of a UTC year, within the range of time: 1970-01-01 to ``END_S``.

    >>> year_start_s(1900), year_start_s(1971), year_start_s(10_000) == END_S
    (0, 31536000, True)
    """
    if not _EPOCH.year <= year <= _YEAR_MAX:
        return 0 if year < _EPOCH.year else END_S
    return (datetime(year, 1, 1, tzinfo=UTC) - _EPOCH).days * DAY_S


def _changes(here: ZoneInfo, start_s: int, end_s: int) -> Iterator[int]:
    """The first second of each new offset, after ``start_s`` and before ``end_s``."""
    if here.utcoffset(None) is not None:  # the offset never changes
        return
    offset_s = offset_at(here, start_s)
    for day_s in range(start_s, end_s, DAY_S):
        last_s = min(day_s + DAY_S, end_s) - 1
        if (now_s := offset_at(here, last_s)) != offset_s:
            yield _first_with_other_offset(here, day_s, last_s, offset_s)
            offset_s = now_s


def _first_with_other_offset(here: ZoneInfo, day_s: int, last_s: int, offset_s: int) -> int:
    return bisect_right(range(day_s, last_s), 0, key=lambda at_s: int(offset_at(here, at_s) != offset_s)) + day_s
