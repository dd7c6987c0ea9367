"""Forecasts of a store: read once, then rehearsed on a state of one's own, away from the engine.

Only the reading takes the reader's time: in the engine's process that is the look-up thread, about 10 µs a live run.
The rehearsal is made by whoever asked, in the thread that waits (or, for a coroutine, in a worker thread).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from actionqueue.core.errors import InvalidSubmission
from actionqueue.core.instants import DAY_US, SECOND_US, format_duration, instant_us, parse_duration_us
from actionqueue.core.machine import Machine
from actionqueue.core.state import COMPLETED
from actionqueue.explaining import ExplainingOperating
from actionqueue.line import work_inline
from actionqueue.operations import Operation, Script, awaiting_script, blocking_script
from actionqueue.store.port import Reader, RunFilter

if TYPE_CHECKING:
    from actionqueue.core.forecast import Forecast  # what only a forecast needs is imported when one is made
    from actionqueue.verify import OnProgress

HORIZON_US_MAX = 366 * DAY_US
"""How far a forecast may reach."""
SAMPLES_MAX = 200
"""Completed runs of a handler whose durations are read: the newest."""
HANDLERS_MAX = 500
"""Handlers whose durations are read: those with the most to do come first."""

SHIFTED = "the wall clock, which cron follows, is {} {} the engine's clock, which everything else goes by"
NO_ENGINE = "no engine runs on this store; this is as if one like the last had started now"
NEVER_AN_ENGINE = "no engine has run on this store, so nothing is known of slots and handlers"
LOST = "what was running when the last engine ended is lost, and tried again as its retries allow"


class ForecastOperating(ExplainingOperating):
    """The part of ``ActionQueue`` that looks ahead."""

    def _script_forecast(
        self,
        until: datetime | timedelta | float | str = "24h",
        what_if: Sequence[str] = (),
        *,
        progress: OnProgress | None = None,
    ) -> Script[Forecast]:
        """What will happen until then: an aware datetime, or how long from now, up to 366 days. ``print`` it to read it.

        Exact are the occurrences of schedules, runs and retries that wait for an instant, and deadlines to start. All
        else is an estimate: the real machine lets time pass in a copy of the state, and handlers take as long as the
        median of their newest completed runs. It changes nothing.

        ``what_if`` makes changes to that copy first, such as ``"concurrency=8"``, ``"pause queue mail"``,
        ``"limit customer:7=3"``; the answer says what they make different. ``progress(phase, done, total)`` is called
        now and then, in the thread that works. Raises ``InvalidSubmission``.

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
        count = 2 if wanted else 1
        found = yield self._read(
            lambda reader: _Reading.of(reader, count), absent=lambda: _Reading([Machine() for _ in range(count)], {})
        )

        def work() -> Forecast:
            with found:
                now = found.begin(line.now_us, has_engine=has_engine)
                answer: Forecast = found.foretell(0, now, reach(now), wanted, progress)  # refused before all else
                if not wanted:
                    return answer
                return _compared(answer, found.foretell(1, now, reach(now), (), progress), wanted)

        answer: Forecast = yield Operation(lambda ticket: work_inline(work, ticket), lambda reply: reply)
        return answer

    forecast = blocking_script(_script_forecast)
    aforecast = awaiting_script(_script_forecast)


class _Reading:
    """What is read for a forecast: copies of the state, and how long handlers took. To be used in a ``with``."""

    def __init__(self, copies: list[Machine], recorded: dict[str, list[int]]) -> None:
        self.copies = copies
        self.recorded = recorded
        self.assumed: list[str] = []
        self.uncertain: frozenset[bytes] = frozenset()
        """Runs whose attempts are lost, so that when they are due again is not decided yet."""

    @classmethod
    def of(cls, reader: Reader, count: int) -> _Reading:
        """So many copies."""
        from actionqueue.fork import fork

        copies = [fork(reader) for _ in range(count)]
        return cls(copies, _recorded(reader, copies[0]))

    def __enter__(self) -> None:
        """Nothing else is to be done first."""

    def __exit__(self, *_: object) -> None:
        """Let go of the copies."""
        for machine in self.copies:
            machine.state.dispose()

    def begin(self, now_us: Callable[[int], int], *, has_engine: bool) -> int:
        """The present, by the engine's clock. Where none runs, one opens now in the copies."""
        state = self.copies[0].state
        wall = now_us(state.wall_shift if has_engine else 0)
        now = max(wall, state.last_at)
        if not has_engine:
            self._open(now, wall - now)
        if abs(state.wall_shift) >= SECOND_US:
            way = "ahead of" if state.wall_shift > 0 else "behind"
            self.assumed.append(SHIFTED.format(format_duration(abs(state.wall_shift)), way))
        return now

    def _open(self, now: int, wall_shift: int) -> None:
        state = self.copies[0].state
        self.assumed.append(NO_ENGINE if state.places.executors else NEVER_AN_ENGINE)
        self.uncertain = frozenset(run_id for run_id, run in state.runs.items() if run.attempt is not None)
        if self.uncertain:
            self.assumed.append(LOST)
        number = 1 if state.epoch is None else state.epoch.number + 1
        for machine in self.copies:
            machine.open(now, number, 0, "", "", 0.5, wall_shift)

    def foretell(
        self, index: int, now: int, until: int, what_if: Sequence[str], progress: OnProgress | None
    ) -> Forecast:
        """What will happen in the copy of that index, which is used up by it."""
        from actionqueue.core.foretelling import foretell
        from actionqueue.core.what_if import change

        machine = self.copies[index]
        change(machine, what_if, now)
        phase = "future" if what_if or len(self.copies) == 1 else "future without that"
        return foretell(
            machine, now, until, self.recorded, uncertain=self.uncertain, assumed=self.assumed,
            progress=None if progress is None else partial(progress, phase),
        )  # fmt: skip


def _recorded(reader: Reader, machine: Machine) -> dict[str, list[int]]:
    """The durations of the newest completed runs of handlers that have something to do, in microseconds."""
    live = Counter(task.handler for task in machine.state.tasks.values())
    return {
        name: [
            row[14] - row[13]
            for row in reader.runs(RunFilter(handler=name, states=(COMPLETED,), limit=SAMPLES_MAX))
            if row[13] is not None and row[14] is not None
        ]
        for name, _ in live.most_common(HANDLERS_MAX)
        if name in machine.state.places.handlers
    }


def _compared(changed: Forecast, without: Forecast, what_if: Sequence[str]) -> Forecast:
    from actionqueue.core.forecast import differences

    return replace(changed, what_if=tuple(what_if), differences=tuple(differences(without, changed)))


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
