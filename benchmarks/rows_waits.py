"""Waits and steps: what waking a great many costs, what they cost others while they wait, and steps a second."""

from __future__ import annotations

import time
from pathlib import Path

from actionqueue import CONTEXT, ActionQueue, Context
from benchmarks.harness import fresh, in_parts
from benchmarks.work import BATCH, open_queue, timed

LIMIT_S = 280.0
ADDRESSES = 100
"""Signals that wake the runs, each its part of them."""


def woken(directory: str, runs: int) -> dict[str, float]:
    """So many runs come to wait, and are woken: by one signal, or by a hundred, each by its key."""
    found: dict[str, float] = {}
    for name, signals in (("one", 1), ("many", ADDRESSES)):
        place = Path(directory, name)
        place.mkdir()
        seconds = fresh("benchmarks.rows_waits:wake", LIMIT_S, directory=str(place), runs=runs, signals=signals)
        found[f"{name}_per_s"] = runs / seconds
    for name, waiting in (("alone", 0), ("beside", runs)):
        place = Path(directory, name)
        place.mkdir()
        found[name] = fresh("benchmarks.rows_waits:unrelated", LIMIT_S, directory=str(place), waiting=waiting)
    found["beside_ratio"] = found.pop("beside") / found.pop("alone")
    return found


def _waiting(directory: str) -> tuple[ActionQueue, object]:
    queue = open_queue(Path(directory) / "jobs.db", concurrency=1_000)

    async def waits(key: int, *, ctx: Context = CONTEXT) -> None:
        await ctx.receive("go", key=key)

    return queue, queue.task(waits)


def _submit(queue: ActionQueue, task: object, runs: int, signals: int) -> None:
    first = 0
    for size in in_parts(runs, BATCH):
        task.submit_many([(n % signals,) for n in range(first, first + size)])  # type: ignore[attr-defined]
        first += size
    while queue.stats().runs.get("awaiting", 0) < runs:
        time.sleep(0.05)


def wake(directory: str, runs: int, signals: int) -> float:
    """Seconds from the first signal until every run has completed."""
    queue, task = _waiting(directory)
    with queue.running():
        _submit(queue, task, runs, signals)

        def go() -> None:
            for key in range(signals):
                queue.signal("go", key=key)
            queue.run_until_idle(timeout=LIMIT_S)

        seconds = timed(go)
        done = queue.stats().runs.get("completed", 0)
    if done != runs:
        raise RuntimeError(f"{done} runs completed of {runs}")
    return seconds


def unrelated(directory: str, waiting: int) -> float:
    """Runs a second of another handler, and signals that nobody waits for, while so many wait."""
    queue, task = _waiting(directory)
    count = 20_000

    async def other(n: int) -> None: ...

    work = queue.task(other)
    with queue.running():
        if waiting:
            _submit(queue, task, waiting, ADDRESSES)

        def go() -> None:
            for first in range(0, count, BATCH):
                queue.signal("other", key=first)
                work.submit_many([(n,) for n in range(first, first + BATCH)])
            queue.run_until_idle(timeout=LIMIT_S)

        return count / timed(go)


def steps(directory: str, runs: int, each: int) -> dict[str, float]:
    """Steps a second over so many runs of so many steps each, every one durable before the next."""
    queue = open_queue(Path(directory) / "jobs.db")

    async def works(*, ctx: Context = CONTEXT) -> None:
        for n in range(each):
            await ctx.step(f"step {n}", lambda: 1)

    task = queue.task(works)
    with queue.running():

        def go() -> None:
            task.submit_many([()] * runs)
            queue.run_until_idle(timeout=LIMIT_S)

        seconds = timed(go)
    return {"per_s": runs * each / seconds}
