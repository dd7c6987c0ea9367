"""Queues without a worker of their own, each with the plainest loop that acknowledges: persist-queue and litequeue."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.driving import TEXT, marks_in


class PersistQueue:
    """persist-queue's SQLite queue with acknowledgement. It is for the threads of one process, so the worker is one."""

    worker_process = False

    def __init__(self, argument: str) -> None:
        del argument
        self._queue: Any

    def open(self, place: Path) -> None:
        import persistqueue

        marks = marks_in(place)
        queue = self._queue = persistqueue.SQLiteAckQueue(str(place / "queue"), multithreading=True, auto_commit=True)

        def work() -> None:
            while True:
                item = queue.get()
                marks.mark(item[0])
                queue.ack(item)

        threading.Thread(target=work, daemon=True).start()

    def submit(self, number: int) -> None:
        self._queue.put([number, TEXT])

    def submit_all(self, numbers: Sequence[int]) -> None:
        """There is no call for many."""
        for number in numbers:
            self._queue.put([number, TEXT])

    def settle(self) -> None:
        """Until nothing is left unacknowledged."""
        while self._queue.unack_count():
            time.sleep(0.001)

    def work(self, place: Path) -> None:
        raise NotImplementedError

    def close(self) -> None: ...


class LiteQueue:
    """litequeue, with its files synced at each commit (its default is not). A worker process polls every 5 ms."""

    worker_process = True

    def __init__(self, argument: str) -> None:
        del argument
        self._queue: Any

    def open(self, place: Path) -> None:
        from litequeue import LiteQueue as Queue

        self._queue = Queue(str(place / "queue.db"), sqlite_cache_size_bytes=16_000, timeout=30)
        self._queue.conn.execute("PRAGMA synchronous = FULL")

    def submit(self, number: int) -> None:
        self._queue.put(json.dumps([number, TEXT]))

    def submit_all(self, numbers: Sequence[int]) -> None:
        """Many in one transaction."""
        for first in range(0, len(numbers), 500):
            with self._queue.transaction():
                for number in numbers[first : first + 500]:
                    self._queue.put(json.dumps([number, TEXT]))

    def settle(self) -> None: ...

    def work(self, place: Path) -> None:
        self.open(place)
        marks, queue = marks_in(place), self._queue
        while True:
            message = queue.pop()
            if message is None:
                time.sleep(0.005)
                continue
            marks.mark(json.loads(message.data)[0])
            queue.done(message.message_id)

    def close(self) -> None: ...
