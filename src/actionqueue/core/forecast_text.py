"""A forecast as lines of text: what is known and what is estimated, apart where they are summed up, in order where they
happen.

Knows: how people read it. Must not know: how wide a terminal is, or how any of it was found out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from actionqueue.core.instants import timedelta_us
from actionqueue.core.rules import describe_duration

if TYPE_CHECKING:
    from actionqueue.core.forecast import BacklogEstimate, Forecast, ForecastEntry, OverlapEstimate

HALF_SECOND = timedelta(seconds=0.5)

_DOES = {"skip": "skipped", "queue": "made to wait", "allow": "started beside it", "cancel_running": "ended early"}
_WHAT = {
    "schedule": "occurs", "scheduled": "due", "retry": "retry due", "wakes": "wakes",
    "timeout": "waits until", "deadline": "must start", "start": "starts",
    "expiry": "expires", "drained": "drained", "overlap": "overlaps",
}  # fmt: skip


def lines_of(forecast: Forecast, plot: Sequence[str] = ()) -> Iterator[str]:
    """All of it. ``plot`` are lines to put between what happens and what it comes to."""
    at = forecast.at
    span, end = shown_span(forecast.until - at), shown_moment(forecast.until, at)
    yield f"Forecast from {at + HALF_SECOND:%Y-%m-%d %H:%M:%S}Z for {span}, to {end}Z"
    yield from (f"  what if: {each}" for each in forecast.what_if)
    yield from (f"  assumed: {each}" for each in forecast.assumed)
    if forecast.reached < forecast.until:
        yield f"  so much happens that the estimates end at {shown_moment(forecast.reached, at)}Z"
    if forecast.differences:
        yield from ("", "What that changes")
        yield from _aligned([
            [each.what, f"{each.with_it}, instead of {each.without}"] for each in forecast.differences
        ])  # fmt: skip
    yield ""
    yield from _events(forecast)
    if plot:
        yield from ("", *plot)
    yield from _sums(forecast)


def _events(forecast: Forecast) -> Iterator[str]:
    if not forecast.entries:
        yield "Nothing is known to happen, and nothing is expected to."
        return
    yield "What will happen (times in UTC; ~ is an estimate)"
    yield from _aligned([_row(each, forecast.at) for each in forecast.entries])
    if forecast.left_out:
        yield f"  … and {forecast.left_out} later entries, which are left out"


def _row(entry: ForecastEntry, at: datetime) -> list[str]:
    mark = " " if entry.exact else "~"
    when = shown_moment(entry.at, at)
    said = "  ".join(part for part in (_subject(entry, at), _remark(entry)) if part)
    wait = f"in {shown_span(entry.at - at)}" if entry.at > at else "now"
    return [f"{mark}{when}", wait, _WHAT[entry.kind], said]


def _subject(entry: ForecastEntry, at: datetime) -> str:
    name = entry.name
    if entry.queue not in ("", "default"):
        name += f" (queue {entry.queue})"
    if entry.run is not None and entry.kind != "schedule":
        name += f" …{entry.run.hex[-8:]}"
    if entry.count == 1:
        return name
    last = "" if entry.until is None or _same_second(entry) else f" until {shown_moment(entry.until, at)}"
    every = "" if entry.every is None else f", every {describe_duration(timedelta_us(entry.every))}"
    more = " more" if entry.kind == "schedule" else " waiting runs" if entry.kind in ("start", "expiry") else " runs"
    return f"{name}: {entry.count}{more}{last}{every}"


def _same_second(entry: ForecastEntry) -> bool:
    return entry.until is not None and shown_moment(entry.until, entry.at) == shown_moment(entry.at, entry.at)


def _remark(entry: ForecastEntry) -> str:
    parts = []
    zone = getattr(entry.at.tzinfo, "key", "UTC")
    if entry.kind == "schedule" and zone != "UTC":
        parts.append(f"{entry.at:%a %H:%M:%S} {zone}")
    if entry.latest is not None:
        parts.append(f"up to {shown_span(entry.latest - entry.at)} later, by jitter")
    if entry.kind == "overlap":
        parts.append(f"the one before has not ended: {_DOES[entry.note]}")
    elif entry.note:
        parts.append(entry.note)
    if entry.held_by:
        parts.append(f"HELD by {entry.held_by}")
    return "; ".join(parts)


# --- sums ---------------------------------------------------------------------------------------------------------


def _sums(forecast: Forecast) -> Iterator[str]:
    at = forecast.at
    rows = [[backlog_named(each), f"{each.waiting} waiting", backlog_outcome(each, at)] for each in forecast.backlogs]
    yield from ("", "Backlog (estimated)", *_aligned(rows))
    if forecast.limits_left_out:
        yield f"  … and {forecast.limits_left_out} keys and rates for which fewer wait"
    if forecast.held:
        yield from ("", "Held back until someone acts")
        yield from _aligned([[each.by, f"{each.waiting} waiting"] for each in forecast.held])
    if forecast.overlaps:
        yield from ("", "Schedules that meet themselves (estimated)")
        yield from _aligned([[each.schedule, overlap_outcome(each)] for each in forecast.overlaps])
    if any(each.most for each in forecast.peaks):
        yield from ("", "Most at once (estimated)")
        yield from _aligned([
            [each.executor, f"{each.most} of {each.capacity}", f"first at {shown_moment(each.at, at)}"]
            for each in forecast.peaks
            if each.at is not None
        ])  # fmt: skip
    if forecast.durations:
        yield from ("", "Durations the estimates rest on")
        yield from _aligned([
            [
                each.handler, shown_span(each.takes),
                f"median of {each.recorded} recorded" if each.recorded else "assumed: none is recorded",
            ]
            for each in forecast.durations
        ])  # fmt: skip


def backlog_named(backlog: BacklogEstimate) -> str:
    """What it is the backlog of."""
    return "in all" if backlog.kind == "all" else f"{backlog.kind} {backlog.name}"


def backlog_outcome(backlog: BacklogEstimate, at: datetime, *, brief: bool = False) -> str:
    """What becomes of it; when ``brief``, without how it was on the way."""
    most = f"; {backlog.most} at most" if backlog.most > backlog.waiting and not brief else ""
    if backlog.grows:
        return f"grows: {backlog.left} at the end, as more arrive than start"
    if backlog.drained_at is not None:
        return f"drains by {shown_moment(backlog.drained_at, at)}, in {shown_span(backlog.drained_at - at)}{most}"
    if not backlog.waiting and not backlog.left:
        return f"keeps up{most}" if backlog.most else "nothing waits"
    return f"{backlog.left} left at the end{most}"


def overlap_outcome(overlap: OverlapEstimate) -> str:
    """What becomes of its occurrences."""
    often = "1 time" if overlap.count == 1 else f"{overlap.count} times"
    return f"takes {shown_span(overlap.takes)}; {often} one is {_DOES[overlap.policy]}"


# --- parts --------------------------------------------------------------------------------------------------------


def shown_moment(then: datetime, at: datetime) -> str:
    """An instant in UTC to the nearest second; with its day, where that is not the day of ``at``.

    Nearest, since the engine's clock is a few microseconds beside the wall clock, by which schedules go.
    """
    then = then.astimezone(UTC) + HALF_SECOND
    return f"{then:%H:%M:%S}" if then.date() == at.date() else f"{then:%b %d %H:%M:%S}"


def shown_span(length: timedelta) -> str:
    """A duration, short: two units at most, rounded.

    >>> [shown_span(timedelta(seconds=each)) for each in (18_187, 754, 17.999, 1.5, 0.0249)]
    ['5h3m', '12m34s', '18s', '1.5s', '25ms']
    """
    us = timedelta_us(length)
    if us >= 99 * 3_600_000_000:
        return describe_duration(us // 3_600_000_000 * 3_600_000_000)
    if us >= 3_600_000_000:
        return describe_duration(us // 60_000_000 * 60_000_000)
    if us >= 59_500_000:
        return describe_duration((us + 500_000) // 1_000_000 * 1_000_000)
    if us >= 999_500:
        return f"{us / 1e6:.0f}s" if us >= 9_950_000 else f"{round(us / 1e6, 1):g}s"
    return f"{us / 1000:.0f}ms" if us >= 1_000 else f"{us}us"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [f"  {line}".rstrip() for line in lines]
