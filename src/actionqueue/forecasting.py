"""Forecasts of a store: read once, then rehearsed on a state of one's own, away from the engine.

Only the reading takes the reader's time: in the engine's process that is the look-up thread, about 10 µs a live run.
The rehearsal is made by whoever asked, in the thread that waits (or, for a coroutine, in a worker thread).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from actionqueue.core.errors import InvalidSubmission
from actionqueue.core.instants import DAY_US, instant_us, parse_duration_us
from actionqueue.core.machine import Machine
from actionqueue.core.state import COMPLETED
from actionqueue.line import work_inline
from actionqueue.operations import Operation, Script, awaiting_script, blocking_script
from actionqueue.scheduling import SchedulingOperating
from actionqueue.store.port import Reader, RunFilter

if TYPE_CHECKING:
    from actionqueue.core.forecast import Forecast  # what only a forecast needs is imported when one is made

HORIZON_US_MAX = 366 * DAY_US
"""How far a forecast may reach."""
SAMPLES_MAX = 200
"""Completed runs of a handler whose durations are read: the newest."""
HANDLERS_MAX = 500
"""Handlers whose durations are read: those with the most to do come first."""

NO_ENGINE = "no engine runs on this store; this is as if one like the last had started now"
NEVER_AN_ENGINE = "no engine has run on this store, so nothing is known of slots and handlers"
LOST = "what was running when the last engine ended is lost, and tried again as its retries allow"


class ForecastOperating(SchedulingOperating):
    """The part of ``ActionQueue`` that looks ahead."""

    def _script_forecast(
        self, until: datetime | timedelta | float | str = "24h", what_if: Sequence[str] = ()
    ) -> Script[Forecast]:
        """What will happen until then: an aware datetime, or how long from now, up to 366 days. ``print`` it to read it.

        Exact are the occurrences of schedules, runs and retries that wait for an instant, and deadlines to start. All
        else is an estimate: the real machine lets time pass in a copy of the state, and handlers take as long as the
        median of their newest completed runs. It changes nothing.

        ``what_if`` makes changes to that copy first, such as ``"concurrency=8"``, ``"pause queue mail"``,
        ``"limit customer:7=3"``; the answer says what they make different. Raises ``InvalidSubmission``.

        >>> from actionqueue import ActionQueue, Cron
        >>> queue = ActionQueue(":memory:")
        >>> @queue.task(schedule=Cron("0 9 * * *", timezone="Europe/Berlin"))
        ... def morning_report() -> None: ...
        >>> with queue.running():
        ...     [(each.kind, each.name, f"{each.at:%H:%M}") for each in queue.forecast("24h").exact]
        [('schedule', 'morning_report', '09:00')]
        """
        line = self.line()
        wanted = (what_if,) if isinstance(what_if, str) else tuple(what_if)
        reach = _reach(until)
        has_engine = line.engine_present()
        found = yield self._read(lambda reader: _Reading.of(reader, twice=bool(wanted)), absent=_Reading.absent)

        def work() -> Forecast:
            with found:
                return _forecast(found, line.now_us(), reach, wanted, has_engine=has_engine)

        forecast: Forecast = yield Operation(lambda ticket: work_inline(work, ticket), lambda reply: reply)
        return forecast

    forecast = blocking_script(_script_forecast)
    aforecast = awaiting_script(_script_forecast)


class _Reading(Struct):
    """What is read for a forecast. ``spare`` is a second copy of the state, for comparison."""

    machine: Machine
    spare: Machine | None
    recorded: dict[str, list[int]]

    @classmethod
    def of(cls, reader: Reader, *, twice: bool) -> _Reading:
        """All of it."""
        from actionqueue.fork import fork

        machine = fork(reader)
        return cls(machine, fork(reader) if twice else None, _recorded(reader, machine))

    @classmethod
    def absent(cls) -> _Reading:
        """There is no store yet."""
        return cls(Machine(), Machine(), {})

    def __enter__(self) -> None:
        """For as long as it is used."""

    def __exit__(self, *_: object) -> None:
        """Let go of the copies."""
        for machine in (self.machine, self.spare):
            if machine is not None:
                machine.state.dispose()


def _recorded(reader: Reader, machine: Machine) -> dict[str, list[int]]:
    """The durations of the newest completed runs of handlers that have something to do, in microseconds."""
    live: dict[str, int] = {}
    for task in machine.state.tasks.values():
        live[task.handler] = live.get(task.handler, 0) + 1
    busiest = sorted(live, key=lambda name: (-live[name], name))[:HANDLERS_MAX]
    return {
        name: [
            row[14] - row[13]
            for row in reader.runs(RunFilter(handler=name, states=(COMPLETED,), limit=SAMPLES_MAX))
            if row[13] is not None and row[14] is not None
        ]
        for name in busiest
        if name in machine.state.places.handlers
    }


def _forecast(
    found: _Reading, now: int, reach: Callable[[int], int], what_if: Sequence[str], *, has_engine: bool
) -> Forecast:
    from actionqueue.core.forecast import differences

    now = max(now, found.machine.state.last_at)
    until = reach(now)
    if not what_if:
        return _foretell(found.machine, now, until, found.recorded, (), has_engine=has_engine)
    assert found.spare is not None, "two copies were asked for"
    changed = _foretell(found.spare, now, until, found.recorded, what_if, has_engine=has_engine)
    without = _foretell(found.machine, now, until, found.recorded, (), has_engine=has_engine)
    return replace(changed, what_if=tuple(what_if), differences=tuple(differences(without, changed)))


def _foretell(
    machine: Machine,
    now: int,
    until: int,
    recorded: Mapping[str, list[int]],
    what_if: Sequence[str],
    *,
    has_engine: bool,
) -> Forecast:
    from actionqueue.core.foretelling import foretell
    from actionqueue.core.what_if import change

    assumed: list[str] = []
    uncertain: set[bytes] = set()
    state = machine.state
    if not has_engine:
        assumed.append(NO_ENGINE if state.places.executors else NEVER_AN_ENGINE)
        uncertain = {run_id for run_id, run in state.runs.items() if run.attempt is not None}
        machine.open(now, (state.epoch.number if state.epoch is not None else 0) + 1, 0, "", "", 0.5)
        if uncertain:
            assumed.append(LOST)
    change(machine, what_if, now)
    return foretell(machine, now, until, recorded, uncertain=uncertain, assumed=assumed)


def _reach(until: datetime | timedelta | float | str) -> Callable[[int], int]:
    """Of the present, the instant that a forecast is to reach. What is wrong with it by itself is said at once."""
    is_instant = isinstance(until, datetime)
    given = instant_us(until, field="until") if isinstance(until, datetime) else parse_duration_us(until, field="until")

    def reach(now: int) -> int:
        at = given if is_instant else now + given
        if not now < at <= now + HORIZON_US_MAX:
            problem = "give an instant to come, or a duration, of at most 366 days"
            raise InvalidSubmission(f"until: {problem}", problems={"until": problem})
        return at

    return reach


__all__ = ["ForecastOperating"]
