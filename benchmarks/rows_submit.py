"""What a submission costs its caller: alone, among 64 coroutines, and beside a thread that computes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.work import ARGUMENT, open_queue, synced_appends, timed

SUBMITTERS = 64
ALTERNATIONS = 20
"""Of the disk and the engine: a shared machine's disk changes its mind within seconds."""
PAUSE_S = 0.002
"""Between two submissions of an idle engine: the run of the first is over by then."""


def one_at_a_time(directory: str, submissions: int) -> dict[str, float]:
    """One thread, engine idle; the disk is measured in between, in the same directory."""
    place = Path(directory)
    queue = open_queue(place / "jobs.db")

    @queue.task
    async def no_op(a: str) -> None: ...

    appends: list[float] = []
    submits: list[float] = []
    with queue.running():
        _submit_singly(no_op.submit, 200)
        for _ in range(ALTERNATIONS):
            appends += synced_appends(place, 4096, submissions // ALTERNATIONS)
            submits += _submit_singly(no_op.submit, submissions // ALTERNATIONS)
        queue.run_until_idle()
    submit_s, append_s = median(submits), median(appends)
    return {"submit_ms": submit_s * 1e3, "append_4k_ms": append_s * 1e3, "ratio": submit_s / append_s}


def beside_computation(directory: str, submissions: int) -> dict[str, float]:
    """One thread submits, another one of the process does nothing but compute in Python."""
    queue = open_queue(Path(directory) / "jobs.db")

    @queue.task
    async def no_op(a: str) -> None: ...

    stop = threading.Event()

    def compute() -> None:
        x = 0
        while not stop.is_set():
            for n in range(10_000):
                x += n * n

    with queue.running():
        _submit_singly(no_op.submit, 200)
        thread = threading.Thread(target=compute)
        thread.start()
        times = _submit_singly(no_op.submit, submissions)
        stop.set()
        thread.join()
    return {"p50_ms": median(times) * 1e3}


def _submit_singly(submit: Callable[..., Any], submissions: int) -> list[float]:
    times = []
    for _ in range(submissions):
        times.append(timed(lambda: submit(ARGUMENT)))
        time.sleep(PAUSE_S)
    return times


def concurrent(directory: str, submissions: int) -> dict[str, float]:
    """64 coroutines that each submit one task, await it, and submit the next; the handlers run meanwhile.

    On the loop that also runs the handlers (``async with``, as in a web application), and with the engine on threads
    of its own (``running()``).
    """
    place = Path(directory)
    host, own = place / "host", place / "own"
    host.mkdir()
    own.mkdir()
    return {
        "per_s": asyncio.run(_on_host_loop(host, submissions)),
        "own_loop_per_s": _beside_engine(own, submissions),
    }


async def _on_host_loop(place: Path, submissions: int) -> float:
    queue = open_queue(place / "jobs.db")

    @queue.task
    async def no_op(a: str) -> None: ...

    async with queue:
        return await _submit_together(no_op.asubmit, submissions)


def _beside_engine(place: Path, submissions: int) -> float:
    queue = open_queue(place / "jobs.db")

    @queue.task
    async def no_op(a: str) -> None: ...

    with queue.running():
        return asyncio.run(_submit_together(no_op.asubmit, submissions))


async def _submit_together(asubmit: Callable[..., Any], submissions: int) -> float:
    async def submitter(count: int) -> None:
        for _ in range(count):
            await asubmit(ARGUMENT)

    await asyncio.gather(*(submitter(10) for _ in range(SUBMITTERS)))
    each = submissions // SUBMITTERS
    began = time.perf_counter()
    await asyncio.gather(*(submitter(each) for _ in range(SUBMITTERS)))
    return each * SUBMITTERS / (time.perf_counter() - began)
