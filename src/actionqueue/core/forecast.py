"""What a forecast says: plain values, from what is known for certain to what is estimated, each marked as what it is.

**Exact** is what follows from the state alone: when schedules occur, when a run that waits for an instant is due, and by
when one must have started. **Estimated** is everything that depends on how long handlers take: it is what a rehearsal
(``core/rehearsal.py``) saw, with durations that were recorded, or assumed where none were.

Knows: the words, and how they are put together (``core/foretelling.py`` does it). Must not know: a clock or a store.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Literal

from msgspec import Struct

from actionqueue.core.forecast_text import backlog_named, backlog_outcome, lines_of, overlap_outcome, shown_moment
from actionqueue.core.ids import RunId

Kind = Literal[
    "schedule", "scheduled", "retry", "wakes", "timeout", "deadline", "start", "expiry", "drained", "overlap"
]


class ForecastEntry(Struct, frozen=True, kw_only=True):
    """Something that will happen at ``at``: in the zone of its schedule, else UTC.

    ``kind`` is, of what is known: ``schedule`` (an occurrence), ``scheduled`` (a run is due), ``retry`` (the same after
    a failed attempt), ``wakes`` (a sleeping run goes on), ``timeout`` (a run's wait for a signal is over, unless it comes
    before), ``deadline`` (a run that has not started by then is canceled). Of what is estimated: ``start``
    (runs that wait now have their turn), ``expiry`` (a deadline passes before the start), ``drained`` (nothing waits in
    a queue, or for a key, any more), ``overlap`` (an occurrence finds the one before it going on).

    ``name`` is a schedule, a handler, or what is drained. With a ``count`` above 1 the entry stands for so many, the
    last one at ``until``, ``every`` so long where that is regular. ``latest`` is the end of the range that jitter leaves.
    ``held_by`` is the pause that keeps it from happening, such as ``"queue mail"``. ``run`` is the run, where it is one.
    """

    at: datetime
    kind: Kind
    exact: bool
    name: str
    handler: str = ""
    queue: str = ""
    count: int = 1
    until: datetime | None = None
    every: timedelta | None = None
    latest: datetime | None = None
    run: RunId | None = None
    held_by: str = ""
    note: str = ""


class BacklogEstimate(Struct, frozen=True, kw_only=True):
    """What becomes of the runs that wait in all queues, in one queue, for a key, or for a rate (``kind``).

    ``waiting`` is how many do now, ``most`` the largest number on the way, ``left`` the number at the end. ``drained_at``
    is the first instant at which none does (None: not within the forecast), and ``grows`` says that more arrive than
    start. Runs under a pause or without a handler are not counted: they do not start at all.
    """

    kind: Literal["all", "queue", "key", "rate"]
    name: str
    waiting: int
    most: int
    left: int
    drained_at: datetime | None
    grows: bool


class OverlapEstimate(Struct, frozen=True, kw_only=True):
    """A schedule that meets itself: ``count`` occurrences find an earlier one going on, the first of them at ``first_at``.

    ``policy`` is what happens to them (``skip``, ``queue``, ``cancel_running``, ``allow``). ``takes`` is how long its
    handler is expected to take.
    """

    schedule: str
    handler: str
    policy: str
    count: int
    first_at: datetime
    takes: timedelta


class PeakEstimate(Struct, frozen=True, kw_only=True):
    """The most attempts that run at once on an executor, first at ``at`` (None: never any), and how many may."""

    executor: str
    capacity: int
    most: int
    at: datetime | None


class DurationEstimate(Struct, frozen=True, kw_only=True):
    """How long a handler is expected to take: the median of ``recorded`` completed runs, or, if that is 0, a guess."""

    handler: str
    takes: timedelta
    recorded: int


class HeldRuns(Struct, frozen=True, kw_only=True):
    """Runs that do not start until someone acts: under a pause (``by``), or because no engine has their handler."""

    by: str
    waiting: int


class LoadEstimate(Struct, frozen=True, kw_only=True):
    """From ``at`` until the next one: attempts that run, on average, and the most runs that wait for their turn."""

    at: datetime
    running: float
    waiting: int


class ForecastDifference(Struct, frozen=True, kw_only=True):
    """What a change makes different: ``what``, as it is ``without`` it and ``with_it``."""

    what: str
    without: str
    with_it: str


class Forecast(Struct, frozen=True, kw_only=True):
    """What will happen from ``at`` until ``until``. ``print`` it to read it.

    ``entries`` are in order; ``left_out`` later ones had no room. ``limits_left_out`` keys and rates for which fewer wait
    are not among the ``backlogs``. Estimates reach until ``reached``, which is
    earlier than ``until`` where too much happens. ``assumed`` are sentences on what is taken for granted, ``what_if`` the
    changes that were asked about, and ``differences`` what they change.
    """

    at: datetime
    until: datetime
    reached: datetime
    entries: tuple[ForecastEntry, ...]
    left_out: int
    backlogs: tuple[BacklogEstimate, ...]
    limits_left_out: int
    overlaps: tuple[OverlapEstimate, ...]
    peaks: tuple[PeakEstimate, ...]
    durations: tuple[DurationEstimate, ...]
    held: tuple[HeldRuns, ...]
    load: tuple[LoadEstimate, ...]
    what_if: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    differences: tuple[ForecastDifference, ...] = ()

    @property
    def exact(self) -> tuple[ForecastEntry, ...]:
        """The entries that are known, not estimated."""
        return tuple(each for each in self.entries if each.exact)

    def __str__(self) -> str:
        return "\n".join(lines_of(self))


def differences(without: Forecast, with_it: Forecast) -> Iterable[ForecastDifference]:
    """What is different in the second of two forecasts of the same."""
    before, after = _facts(without), _facts(with_it)
    for what in dict.fromkeys((*before, *after)):
        told, tells = before.get(what, "none"), after.get(what, "none")
        if told != tells:
            yield ForecastDifference(what=what, without=told, with_it=tells)


def _facts(forecast: Forecast) -> dict[str, str]:
    """What two forecasts are compared by, as text."""
    found = {backlog_named(each): backlog_outcome(each, forecast.at, brief=True) for each in forecast.backlogs}
    found |= {f"schedule {each.schedule}": overlap_outcome(each) for each in forecast.overlaps}
    found |= {f"most at once on {each.executor}": f"{each.most} of {each.capacity}" for each in forecast.peaks}
    found |= {f"held by {each.by}": f"{each.waiting} waiting" for each in forecast.held}
    if forecast.reached < forecast.until:
        found["estimates reach"] = shown_moment(forecast.reached, forecast.at)
    return found
