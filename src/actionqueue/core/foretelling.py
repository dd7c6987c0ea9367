"""From a state to a forecast of it: what is known is read off it, what is estimated comes of a rehearsal.

Pure: the instant comes in, and so do the durations. The machine is used up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import timedelta

from actionqueue.core.estimates import Estimates
from actionqueue.core.forecast import DurationEstimate, Forecast, ForecastEntry, OverlapEstimate
from actionqueue.core.instants import SECOND_US, to_datetime
from actionqueue.core.known import ENTRIES_MAX, known_entries
from actionqueue.core.machine import Machine
from actionqueue.core.rehearsal import EVENTS_MAX, Rehearsal
from actionqueue.core.state import Run

PARTS = 100
"""Parts of the time, by which it is told how far a rehearsal is."""
ASSUMED_US = SECOND_US
"""How long a handler is taken to take of which no completed run is recorded."""


def foretell(
    machine: Machine,
    now: int,
    until: int,
    recorded: Mapping[str, Collection[int]],
    *,
    uncertain: Collection[bytes] = (),
    assumed: Iterable[str] = (),
    events_max: int = EVENTS_MAX,
    progress: Callable[[int, int], object] | None = None,
) -> Forecast:
    """What will happen in ``machine`` from ``now`` up to ``until``; ``recorded`` are durations of handlers' completed runs.

    Both instants are in microseconds, and so are durations. What waits for an instant because of one of the runs in
    ``uncertain`` is an estimate too. ``progress`` is told how many of how many parts of the time have passed.
    """
    durations = _Durations(recorded)
    estimates = Estimates(machine.state, now, until)
    rehearsal = Rehearsal(machine, now, durations.takes_us, estimates, events_max=events_max)
    rehearsal.settle()
    estimates.begin()
    happenings = list(known_entries(machine.state, now, until, uncertain))
    for part in range(1, PARTS + 1):
        rehearsal.play(now + (until - now) * part // PARTS)
        if progress is not None:
            progress(part, PARTS)
    estimates.close(rehearsal.now)
    overlaps = tuple(estimates.overlaps_found(lambda handler: durations.estimate(handler).takes))
    happenings += [(each.at, each) for each in (*estimates.entries(), *map(_met, overlaps))]
    happenings.sort(key=lambda each: (each[0], not each[1].exact, each[1].kind, each[1].name))
    entries = tuple(entry for _, entry in happenings[:ENTRIES_MAX])
    return Forecast(
        at=to_datetime(now), until=to_datetime(until), reached=to_datetime(rehearsal.now),
        entries=entries, left_out=len(happenings) - len(entries),
        backlogs=tuple(estimates.backlogs()), limits_left_out=estimates.limits_left_out(),
        overlaps=overlaps, peaks=tuple(estimates.peaks()),
        durations=tuple(map(durations.estimate, sorted(durations.asked))),
        held=tuple(estimates.held_runs()), load=estimates.loads(), assumed=tuple(assumed),
    )  # fmt: skip


def _met(overlap: OverlapEstimate) -> ForecastEntry:
    """The entry of the first time."""
    return ForecastEntry(
        at=overlap.first_at, kind="overlap", exact=False, name=overlap.schedule, handler=overlap.handler,
        note=overlap.policy,
    )  # fmt: skip


class _Durations:
    """How long the attempts of each handler are expected to take."""

    def __init__(self, recorded: Mapping[str, Collection[int]]) -> None:
        self._recorded = recorded
        self._typical: dict[str, int] = {}
        self.asked: set[str] = set()

    def takes_us(self, run: Run) -> int:
        """That of an attempt of ``run``."""
        handler = run.task.lane.handler
        found = self._typical.get(handler)
        return self._look(handler) if found is None else found

    def _look(self, handler: str) -> int:
        self.asked.add(handler)
        found = self._typical[handler] = typical_us(self._recorded.get(handler, ()))
        return found

    def estimate(self, handler: str) -> DurationEstimate:
        """What is told of it."""
        durations = self._recorded.get(handler, ())
        takes = timedelta(microseconds=typical_us(durations))
        return DurationEstimate(handler=handler, takes=takes, recorded=len(durations))


def typical_us(durations: Collection[int]) -> int:
    """The median, the smaller of two; a guess, where there are none.

    >>> typical_us([7, 1, 100, 3]), typical_us([])
    (3, 1000000)
    """
    return sorted(durations)[(len(durations) - 1) // 2] if durations else ASSUMED_US
