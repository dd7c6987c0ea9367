"""Dramatiq, RQ and Celery on the Redis server of ``BENCHMARK_REDIS``. Each measurement has queues of its own names."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.driving import TEXT, marks_in
from benchmarks.peers.marks import Marks

REDIS = os.environ.get("BENCHMARK_REDIS", "redis://127.0.0.1:6379/15")
_of_this_process: dict[str, Marks] = {}


def mark(place: str, number: int, text: str) -> None:
    """The handler of queues that import theirs by name."""
    del text
    if place not in _of_this_process:
        _of_this_process[place] = marks_in(Path(place))
    _of_this_process[place].mark(number)


class Dramatiq:
    """Its worker with 8 threads, the default, in one process."""

    worker_process = True

    def __init__(self, argument: str) -> None:
        del argument
        self._actor: Any
        self._broker: Any

    def open(self, place: Path) -> None:
        import dramatiq
        from dramatiq.brokers.redis import RedisBroker

        marks = marks_in(place)
        self._broker = RedisBroker(url=REDIS, namespace=f"dramatiq-{place.name}")
        dramatiq.set_broker(self._broker)

        @dramatiq.actor(actor_name="work")
        def work(number: int, text: str) -> None:
            marks.mark(number)

        self._actor = work

    def submit(self, number: int) -> None:
        self._actor.send(number, TEXT)

    def submit_all(self, numbers: Sequence[int]) -> None:
        """There is no call for many."""
        for number in numbers:
            self._actor.send(number, TEXT)

    def settle(self) -> None: ...

    def work(self, place: Path) -> None:
        from dramatiq import Worker

        self.open(place)
        Worker(self._broker, worker_threads=8).start()
        time.sleep(600)

    def close(self) -> None:
        self._broker.flush_all()


class Rq:
    """One SimpleWorker, which runs jobs in its own process. Results are kept for no time."""

    worker_process = True

    def __init__(self, argument: str) -> None:
        del argument
        self._queue: Any
        self._place = ""

    def open(self, place: Path) -> None:
        from redis import Redis
        from rq import Queue

        self._place = str(place)
        self._queue = Queue(f"rq-{place.name}", connection=Redis.from_url(REDIS))

    def submit(self, number: int) -> None:
        self._queue.enqueue(mark, self._place, number, TEXT, result_ttl=0)

    def submit_all(self, numbers: Sequence[int]) -> None:
        """Its ``enqueue_many``, 500 at a time."""
        for first in range(0, len(numbers), 500):
            part = numbers[first : first + 500]
            prepare = self._queue.prepare_data
            self._queue.enqueue_many([prepare(mark, (self._place, n, TEXT), result_ttl=0) for n in part])

    def settle(self) -> None: ...

    def work(self, place: Path) -> None:
        from rq import SimpleWorker

        self.open(place)
        SimpleWorker([self._queue], connection=self._queue.connection).work(logging_level="ERROR")

    def close(self) -> None:
        self._queue.delete(delete_jobs=True)


class Celery:
    """``argument``: default, or late (acks_late, and results kept in Redis). One process with the solo pool."""

    worker_process = True

    def __init__(self, argument: str) -> None:
        self._late = argument == "late"
        self._app: Any
        self._task: Any
        self._name = ""

    def open(self, place: Path) -> None:
        from celery import Celery as App

        marks = marks_in(place)
        self._name = f"celery-{place.name}"
        self._app = App("bench", broker=REDIS, backend=REDIS if self._late else None)
        self._app.conf.update(
            task_default_queue=self._name,
            task_acks_late=self._late,
            task_ignore_result=not self._late,
            broker_connection_retry_on_startup=True,
        )

        @self._app.task(name="work")
        def work(number: int, text: str) -> None:
            marks.mark(number)

        self._task = work

    def submit(self, number: int) -> None:
        self._task.delay(number, TEXT)

    def submit_all(self, numbers: Sequence[int]) -> None:
        """There is no call for many that is faster."""
        for number in numbers:
            self._task.delay(number, TEXT)

    def settle(self) -> None: ...

    def work(self, place: Path) -> None:
        self.open(place)
        logging.disable(logging.WARNING)
        options = ["worker", "--pool=solo", "--loglevel=ERROR", "--without-gossip", "--without-mingle"]
        self._app.worker_main(options)

    def close(self) -> None:
        from redis import Redis

        Redis.from_url(REDIS).delete(self._name)
