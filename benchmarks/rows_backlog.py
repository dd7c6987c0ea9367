"""Many runs waiting: what they weigh, whether they slow the engine down, and how long they stall its writer."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from actionqueue.engine.writer import Writer
from benchmarks.harness import fresh, in_parts, wait_for
from benchmarks.work import ARGUMENT, BATCH, open_queue, percentile, resident_bytes

PRUNED = timedelta(seconds=1)
"""What completed in the first second is pruned in the end, while the engine works on."""


def backlog(directory: str, pending: int, few: int, runs: int, within_s: float) -> dict[str, float]:
    """Deep against shallow, each in a fresh process."""
    place = Path(directory)
    answers = []
    for depth in (few, pending):
        folder = place / str(depth)
        folder.mkdir()
        answers.append(
            fresh("benchmarks.rows_backlog:at_depth", within_s, directory=str(folder), pending=depth, runs=runs)
        )
    shallow, deep = answers
    return {
        "bytes_per_run": deep["bytes_per_run"],
        "ratio": deep["runs_per_s"] / shallow["runs_per_s"],
        "runs_per_s": deep["runs_per_s"],
        "stall_ms": deep["stall_ms"],
        "stall_p999_ms": deep["stall_p999_ms"],
        "stall_cpu_ms": deep["stall_cpu_ms"],
        "gc_ms": deep["gc_ms"],
        "submit_per_s": deep["submit_per_s"],
    }


def at_depth(directory: str, pending: int, runs: int) -> dict[str, float]:
    """``pending`` runs wait behind a pause; then it is lifted and ``runs`` of them complete while as many are added."""
    queue = open_queue(Path(directory) / "jobs.db")
    done = 0

    @queue.task
    async def no_op(a: str) -> None:
        nonlocal done
        done += 1

    stalls = Stalls()
    with queue.running(), stalls:
        queue.pause()
        before = resident_bytes()
        began = time.perf_counter()
        submit(no_op.submit_many, pending)
        submit_per_s = pending / (time.perf_counter() - began)
        queue.stats()  # everything is durable and projected
        weight = (resident_bytes() - before) / pending
        resumed_at = datetime.now(UTC)
        queue.resume()
        rate = _at_constant_depth(no_op.submit_many, lambda: done, runs)
        queue.prune(before=resumed_at + PRUNED)
        queue.pause()
    return {
        "bytes_per_run": weight,
        "runs_per_s": rate,
        "submit_per_s": submit_per_s,
        **stalls.figures(),
    }


def submit(submit_many: Callable[..., Any], runs: int) -> None:
    """In batches."""
    for size in in_parts(runs, BATCH):
        submit_many([(ARGUMENT,)] * size)


def _at_constant_depth(submit_many: Callable[..., Any], done: Callable[[], int], runs: int) -> float:
    """Completions a second while a batch is added for each that completes."""
    wait_for(lambda: done() > 0, 30, "the first run")
    began, first, sent = time.perf_counter(), done(), 0
    while (ended := done() - first) < runs:
        if sent <= ended:
            submit_many([(ARGUMENT,)] * BATCH)
            sent += BATCH
        else:
            time.sleep(0.0005)
    return ended / (time.perf_counter() - began)


class Stalls:
    """Times every step and hand-over of writers while it is entered, and every garbage collection."""

    def __init__(self) -> None:
        self._times_s: list[float] = []
        self._cpu_s: list[float] = []
        self._collections_s: list[float] = []
        self._collection_began = 0.0
        self._originals: dict[str, Callable[..., Any]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        for name in ("step", "take_turn"):
            original = self._originals[name] = getattr(Writer, name)
            setattr(Writer, name, self._timing(original))
        gc.callbacks.append(self._on_collection)
        return self

    def __exit__(self, *exc: object) -> None:
        gc.callbacks.remove(self._on_collection)
        for name, original in self._originals.items():
            setattr(Writer, name, original)

    def _timing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        times_s, cpu_s, clock, cpu_clock = self._times_s, self._cpu_s, time.perf_counter, time.thread_time

        def timed(writer: Writer, now: int) -> Any:
            began, cpu_began = clock(), cpu_clock()
            answer = original(writer, now)
            times_s.append(clock() - began)
            cpu_s.append(cpu_clock() - cpu_began)
            return answer

        return timed

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._collection_began = time.thread_time()
        else:
            self._collections_s.append(time.thread_time() - self._collection_began)

    def figures(self) -> dict[str, float]:
        """The longest step, the 99.9th percentile; in CPU time, the longest step and the longest collection."""
        return {
            "stall_ms": max(self._times_s) * 1e3,
            "stall_p999_ms": percentile(self._times_s, 99.9) * 1e3,
            "stall_cpu_ms": max(self._cpu_s) * 1e3,
            "gc_ms": max(self._collections_s, default=0.0) * 1e3,
        }
