"""DBOS on SQLite: a workflow with nothing in it, through a queue. One process enqueues and runs, as it advises."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.peers.driving import TEXT, marks_in

SUBMITTERS = 4


class DbosSqlite:
    """Defaults: its queue is polled every second."""

    worker_process = False

    def __init__(self, argument: str) -> None:
        del argument
        self._queue: Any
        self._work: Any

    def open(self, place: Path) -> None:
        from dbos import DBOS

        marks = marks_in(place)
        DBOS(config={"name": "bench", "system_database_url": f"sqlite:///{place}/dbos.sqlite", "log_level": "ERROR"})

        @DBOS.workflow()
        def work(number: int, text: str) -> None:
            marks.mark(number)

        DBOS.launch()
        self._queue = DBOS.register_queue("bench")
        self._work = work

    def submit(self, number: int) -> None:
        self._queue.enqueue(self._work, number, TEXT)

    def submit_all(self, numbers: Sequence[int]) -> None:
        """There is no call for many; a few threads."""
        with ThreadPoolExecutor(SUBMITTERS) as pool:
            list(pool.map(self.submit, numbers))

    def settle(self) -> None: ...

    def work(self, place: Path) -> None:
        raise NotImplementedError

    def close(self) -> None: ...
