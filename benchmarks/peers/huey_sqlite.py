"""huey on SQLite. It has no call for many; the loop over single calls is its best."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.driving import TEXT, marks_in


class HueySqlite:
    """``argument``: fsync or nosync. One worker thread, defaults otherwise; a second one only contends for the file."""

    worker_process = True

    def __init__(self, argument: str) -> None:
        self._fsync = argument == "fsync"
        self._huey: Any
        self._task: Any

    def _declare(self, place: Path) -> None:
        from huey import SqliteHuey

        marks = marks_in(place)
        self._huey = SqliteHuey("bench", filename=str(place / "huey.db"), fsync=self._fsync)

        @self._huey.task(name="work")
        def work(number: int, text: str) -> None:
            marks.mark(number)

        self._task = work

    def open(self, place: Path) -> None:
        self._declare(place)

    def submit(self, number: int) -> None:
        self._task(number, TEXT)

    def submit_all(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._task(number, TEXT)

    def settle(self) -> None:
        """It records no ends."""

    def work(self, place: Path) -> None:
        logging.getLogger("huey").setLevel(logging.ERROR)
        self._declare(place)
        self._huey.create_consumer(workers=1).run()

    def close(self) -> None: ...
