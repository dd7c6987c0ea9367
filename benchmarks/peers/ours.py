"""ActionQueue itself: embedded in the producer's process, or with the producer in another one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from actionqueue import ActionQueue
from benchmarks.peers.driving import TEXT, marks_in

BATCH = 500


class Ours:
    """``argument``: embedded, or client (the engine then is the worker process)."""

    def __init__(self, argument: str) -> None:
        self.worker_process = argument == "client"
        self._queue: ActionQueue
        self._task: Any
        self._running: AbstractContextManager[Any] | None = None

    def _declare(self, place: Path, role: Any) -> None:
        marks = marks_in(place)
        queue = ActionQueue(place / "jobs.db", role=role, concurrency=200)

        @queue.task(name="work")
        async def work(number: int, text: str) -> None:
            marks.mark(number)

        self._queue, self._task = queue, work

    def open(self, place: Path) -> None:
        """As the engine, or as its client."""
        self._declare(place, "client" if self.worker_process else "engine")
        if not self.worker_process:
            self._running = self._queue.running()
            self._running.__enter__()

    def submit(self, number: int) -> None:
        """One, durable when it returns."""
        self._task.submit(number, TEXT)

    def submit_all(self, numbers: Sequence[int]) -> None:
        """In batches of 500."""
        for first in range(0, len(numbers), BATCH):
            self._task.submit_many([(number, TEXT) for number in numbers[first : first + BATCH]])

    def settle(self) -> None:
        """Until the ends are durable."""
        if self._running is not None:
            self._queue.run_until_idle()

    def work(self, place: Path) -> None:
        """The engine's process."""
        self._declare(place, "engine")
        self._queue.run_forever()

    def close(self) -> None:
        """Drain."""
        self._queue.close()
