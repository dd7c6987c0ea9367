"""Schedules: what ten thousand of them cost, and what ten missed years of a schedule of every second do."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

from actionqueue import ActionQueue, Cron
from actionqueue.engine import engine as engine_module
from actionqueue.engine.clock import SystemClock
from benchmarks.harness import fresh, in_parts, wait_for
from benchmarks.work import BATCH, open_queue, percentile

MINUTE_S = 60
TEN_YEARS_US = 3_652 * 86_400 * 1_000_000
LIMIT_S = 60.0


def every_minute(directory: str, schedules: int) -> dict[str, float]:
    """So many schedules that fire on the minute: the share of one core over a minute, and how late they are."""
    queue = open_queue(Path(directory) / "jobs.db")
    begun: list[float] = []

    @queue.task
    async def tick(n: int) -> None:
        begun.append(time.time())

    each_minute = tick.options(schedule=Cron("* * * * *"))
    with queue.running():
        first = 0
        for size in in_parts(schedules, BATCH):
            queue.submit_many([each_minute.bind(n) for n in range(first, first + size)])
            first += size
        _until_past_the_minute()
        begun.clear()
        cpu_s, began = time.process_time(), time.time()
        time.sleep(MINUTE_S)
        cpu_s = time.process_time() - cpu_s
        fired = len(begun)
        minute = (began // MINUTE_S + 1) * MINUTE_S
        late = [at - minute for at in begun]
    if fired != schedules:
        raise RuntimeError(f"{fired} of {schedules} fired in a minute")
    return {
        "cpu_percent": 100 * cpu_s / MINUTE_S,
        "late_p50_ms": 1_000 * median(late),
        "late_max_ms": 1_000 * percentile(late, 100),
    }


def _until_past_the_minute() -> None:
    """Wait for the second half of a minute that began after this call: what was submitted has fired once."""
    time.sleep(MINUTE_S - time.time() % MINUTE_S + MINUTE_S / 2)


def after_a_gap(directory: str) -> dict[str, float]:
    """From opening a store whose schedule of every second was last looked after ten years ago to its next run."""
    return {
        f"{misfire}_ms": fresh(
            "benchmarks.rows_schedules:reopened", LIMIT_S, directory=_left(directory, misfire), misfire=misfire
        )
        for misfire in ("coalesce", "skip", "catch_up")
    }


def _left(directory: str, misfire: str) -> str:
    place = Path(directory) / misfire
    place.mkdir()
    fresh("benchmarks.rows_schedules:abandoned", LIMIT_S, directory=str(place), misfire=misfire)
    return str(place)


class TenYearsAgo(SystemClock):
    """The clock as it was then."""

    def now_us(self) -> int:
        """Ten years before now."""
        return super().now_us() - TEN_YEARS_US

    def wall_us(self) -> int:
        """Ten years before now."""
        return super().wall_us() - TEN_YEARS_US


def abandoned(directory: str, misfire: str) -> int:
    """A store with the schedule, as an engine left it ten years ago."""
    engine_module.SystemClock = TenYearsAgo  # type: ignore[misc]
    queue, begun = _with_tick(directory, misfire)
    with queue.running():
        wait_for(lambda: begun, LIMIT_S, "the first run")
    return len(begun)


def reopened(directory: str, misfire: str) -> float:
    """Milliseconds from opening it to the start of the next run."""
    queue, begun = _with_tick(directory, misfire)
    began = time.perf_counter()
    with queue.running():
        wait_for(lambda: begun, LIMIT_S, "a run after the gap")
        return 1_000 * (begun[0] - began)


def _with_tick(directory: str, misfire: str) -> tuple[ActionQueue, list[float]]:
    queue = ActionQueue(Path(directory) / "jobs.db")
    begun: list[float] = []

    @queue.task(schedule=Cron("* * * * * *", misfire=misfire))
    async def tick() -> None:
        begun.append(time.perf_counter())

    return queue, begun
