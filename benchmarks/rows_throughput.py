"""End to end: submitted in batches, run, and every end durable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from actionqueue import ActionQueue
from benchmarks import importable
from benchmarks.harness import fresh, in_parts
from benchmarks.work import ARGUMENT, BATCH, open_queue, timed

LIMIT_S = 120.0
WARM_UP = 500


def against_floor(directory: str, runs: int, pairs: int) -> dict[str, float]:
    """The floor's skeleton and the engine, alternately, each in a fresh process; medians, and that of the ratios."""
    floors: list[float] = []
    rates: list[float] = []
    for n in range(pairs):
        for name, rates_of, target in (
            ("floor", floors, "benchmarks.floor:pipeline_row"),
            ("ours", rates, "benchmarks.rows_throughput:drain_async"),
        ):
            place = Path(directory, f"{name}-{n}")
            place.mkdir()
            rates_of.append(fresh(target, LIMIT_S, directory=str(place), runs=runs))
    return {
        "runs_per_s": median(rates),
        "ratio": median(rate / floor for rate, floor in zip(rates, floors, strict=True)),
        "floor_per_s": median(floors),
    }


def drain_async(directory: str, runs: int) -> float:
    """Async handlers on the engine's own loop; runs a second."""
    queue = open_queue(Path(directory) / "jobs.db")

    @queue.task
    async def no_op(a: str) -> None: ...

    return _drain(queue, no_op.submit_many, runs)


def threads(directory: str, runs: int, repeats: int) -> dict[str, float]:
    """Plain handlers in the default 16 threads."""
    return {"runs_per_s": _median_rate("benchmarks.rows_throughput:drain_threads", directory, runs, repeats)}


def drain_threads(directory: str, runs: int) -> float:
    """The same with plain handlers; runs a second."""
    queue = ActionQueue(Path(directory) / "jobs.db")

    @queue.task
    def no_op(a: str) -> None: ...

    return _drain(queue, no_op.submit_many, runs)


def processes(directory: str, runs: int, repeats: int) -> dict[str, float]:
    """Plain handlers in two worker processes, started before the clock."""
    return {"runs_per_s": _median_rate("benchmarks.rows_throughput:drain_processes", directory, runs, repeats)}


def drain_processes(directory: str, runs: int) -> float:
    """The same in worker processes; runs a second."""
    queue = ActionQueue(Path(directory) / "jobs.db", processes=2)
    no_op = queue.task(executor="process")(importable.no_op)
    return _drain(queue, no_op.submit_many, runs)


def _median_rate(target: str, directory: str, runs: int, repeats: int) -> float:
    rates: list[float] = []
    for n in range(repeats):
        place = Path(directory, str(n))
        place.mkdir()
        rates.append(fresh(target, LIMIT_S, directory=str(place), runs=runs))
    return median(rates)


def _drain(queue: ActionQueue, submit_many: Callable[..., Any], runs: int) -> float:
    with queue.running():
        submit_many([(ARGUMENT,)] * WARM_UP)
        queue.run_until_idle(timeout=LIMIT_S)

        def work() -> None:
            for size in in_parts(runs, BATCH):
                submit_many([(ARGUMENT,)] * size)
            queue.run_until_idle(timeout=LIMIT_S)

        seconds = timed(work)
        done = queue.stats().runs.get("completed", 0)
    if done != runs + WARM_UP:
        raise RuntimeError(f"{done} runs completed of {runs + WARM_UP}")
    return runs / seconds
