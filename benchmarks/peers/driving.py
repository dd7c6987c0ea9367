"""Drives one peer through one measurement, in the peer's own environment. Imports nothing but the standard library.

``python -m benchmarks.peers.driving drive PEER MODE RUNS PLACE LIMIT ANSWER`` measures, and starts the worker, which is
``python -m benchmarks.peers.driving work PEER PLACE``. ``PEER`` is ``module:Class:argument``.

=======  ==========================================================================================================
single   one producer, one after another, each returned before the next; until all are done
many     all at once, in the queue's best way; until all are done
pickup   one at a time with nothing else going on: from the call to the handler's first line
=======  ==========================================================================================================
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from benchmarks.peers.marks import Marks

TEXT = "x" * 80
"""With the run's number and its own punctuation, about 100 bytes of arguments."""
MARKS = "marks"
SIZE = "runs"
WARM_UP = 20
PAUSE_S = 0.03
START_S_MAX = 30.0


class Peer(Protocol):
    """A queue under measurement, on a store in the directory ``place``."""

    worker_process: bool
    """Whether a worker process runs beside the producer; else the producer's process also works."""

    def open(self, place: Path) -> None:
        """Be the producer."""
        ...

    def submit(self, number: int) -> None:
        """Submit one run; returns when the queue says it has it."""
        ...

    def submit_all(self, numbers: Sequence[int]) -> None:
        """Submit many, in the fastest way the queue offers."""
        ...

    def settle(self) -> None:
        """Wait until the ends of what was done are recorded, where the queue records them."""
        ...

    def work(self, place: Path) -> None:
        """Be the worker, until killed."""
        ...

    def close(self) -> None:
        """End what ``open`` began."""
        ...


def load(spec: str) -> Peer:
    """``module:Class:argument`` as an object."""
    module, name, argument = spec.split(":", 2)
    peer: Peer = getattr(importlib.import_module(f"benchmarks.peers.{module}"), name)(argument)
    return peer


def marks_in(place: Path) -> Marks:
    """The marks of the measurement in ``place``; for workers."""
    return Marks(place / MARKS, int((place / SIZE).read_text()))


def drive(spec: str, mode: str, runs: int, place: Path, limit_s: float) -> dict[str, float]:
    """One measurement."""
    total = runs + WARM_UP
    (place / SIZE).write_text(str(total))
    marks = Marks(place / MARKS, total)
    peer = load(spec)
    peer.open(place)
    worker = None
    if peer.worker_process:
        command = [sys.executable, "-m", "benchmarks.peers.driving", "work", spec, str(place)]
        worker = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        for number in range(runs, total):
            peer.submit(number)
        deadline = time.monotonic() + START_S_MAX
        while _wait(marks, runs, total, 0.5) < WARM_UP:
            if worker is not None and worker.poll() is not None:
                raise RuntimeError(f"the worker ended with {worker.returncode}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the worker did not do the first runs within {START_S_MAX:g} s")
        return {"single": _single, "many": _many, "pickup": _pickup}[mode](peer, marks, runs, limit_s)
    finally:
        if worker is not None:
            worker.kill()
            worker.wait()
        peer.close()


def _wait(marks: Marks, first: int, last: int, limit_s: float) -> int:
    """Until all are done or time is up; how many are."""
    deadline = time.monotonic() + limit_s
    while (done := marks.done(first, last)) < last - first and time.monotonic() < deadline:
        time.sleep(0.001)
    return done


def _single(peer: Peer, marks: Marks, runs: int, limit_s: float) -> dict[str, float]:
    began = time.monotonic()
    sent = 0
    while sent < runs and time.monotonic() - began < limit_s / 2:
        peer.submit(sent)
        sent += 1
    submitted = time.monotonic()
    done = _wait(marks, 0, sent, limit_s / 2)
    peer.settle()
    ended = time.monotonic()
    return {"submit_per_s": sent / (submitted - began), "per_s": done / (ended - began), "repeated": marks.repeated()}


def _many(peer: Peer, marks: Marks, runs: int, limit_s: float) -> dict[str, float]:
    numbers = range(runs)
    began = time.monotonic()
    peer.submit_all(numbers)
    submitted = time.monotonic()
    done = _wait(marks, 0, runs, limit_s)
    peer.settle()
    ended = time.monotonic()
    return {"submit_per_s": runs / (submitted - began), "per_s": done / (ended - began), "repeated": marks.repeated()}


def _pickup(peer: Peer, marks: Marks, runs: int, limit_s: float) -> dict[str, float]:
    delays_ms = []
    began = time.monotonic()
    for number in range(runs):
        sent_ns = time.monotonic_ns()
        peer.submit(number)
        if not _wait(marks, number, number + 1, 20):
            raise TimeoutError("an idle worker did not begin within 20 s")
        delays_ms.append((marks.began_ns(number) - sent_ns) / 1e6)
        if time.monotonic() - began > limit_s:
            break
        time.sleep(PAUSE_S * (0.5 + number % 10 / 10))
    delays_ms.sort()
    return {"p50_ms": delays_ms[len(delays_ms) // 2], "p99_ms": delays_ms[int(len(delays_ms) * 0.99)]}


def main() -> None:
    """Entry point."""
    if sys.argv[1] == "work":
        load(sys.argv[2]).work(Path(sys.argv[3]))
        return
    spec, mode, runs, place, limit_s, answer = sys.argv[2:]
    figures = drive(spec, mode, int(runs), Path(place), float(limit_s))
    Path(answer).write_text(json.dumps(figures))
    sys.stdout.flush()
    os._exit(0)  # some queues leave threads that would not end


if __name__ == "__main__":
    main()
