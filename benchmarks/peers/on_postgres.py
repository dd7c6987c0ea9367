"""PgQueuer and procrastinate on the PostgreSQL server of ``BENCHMARK_POSTGRES``, each time in a database of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.peers.driving import TEXT, marks_in

POSTGRES = os.environ.get("BENCHMARK_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")
BATCH = 500


def _database(place: Path) -> str:
    return f"benchmark_{place.name.replace('-', '_')}".lower()


def _url(place: Path) -> str:
    return urlsplit(POSTGRES)._replace(path=f"/{_database(place)}").geturl()


def _administer(statement: str) -> None:
    import psycopg

    with psycopg.connect(POSTGRES, autocommit=True) as connection:
        connection.execute(statement.encode())


def _create(place: Path) -> None:
    _administer(f"CREATE DATABASE {_database(place)}")


def _drop(place: Path) -> None:
    _administer(f"DROP DATABASE IF EXISTS {_database(place)} WITH (FORCE)")


class PgQueuer:
    """Its defaults, with batches of 100 taken at once (its default of 10 is slower here)."""

    worker_process = True

    def __init__(self, argument: str) -> None:
        del argument
        self._loop: asyncio.AbstractEventLoop
        self._queries: Any
        self._connection: Any
        self._place = Path()

    def open(self, place: Path) -> None:
        self._place = place
        self._loop = asyncio.new_event_loop()
        _create(place)
        self._do(self._connect(place))
        self._do(self._queries.install())

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(work)

    async def _connect(self, place: Path) -> None:
        import asyncpg
        from pgqueuer import Queries

        self._connection = await asyncpg.connect(_url(place))
        self._queries = Queries.from_asyncpg_connection(self._connection)

    def submit(self, number: int) -> None:
        self._do(self._queries.enqueue("work", json.dumps([number, TEXT]).encode()))

    def submit_all(self, numbers: Sequence[int]) -> None:
        """Lists of 500."""
        for first in range(0, len(numbers), BATCH):
            bodies = [json.dumps([number, TEXT]).encode() for number in numbers[first : first + BATCH]]
            self._do(self._queries.enqueue(["work"] * len(bodies), bodies, [0] * len(bodies)))

    def settle(self) -> None: ...

    def work(self, place: Path) -> None:
        asyncio.run(self._work(place))

    async def _work(self, place: Path) -> None:
        import pgqueuer

        marks = marks_in(place)
        await self._connect(place)
        queue = pgqueuer.PgQueuer.from_asyncpg_connection(self._connection)

        @queue.entrypoint("work")
        async def work(job: Any) -> None:
            marks.mark(json.loads(job.payload)[0])

        await queue.run(batch_size=100)

    def close(self) -> None:
        self._do(self._connection.close())
        _drop(self._place)


class Procrastinate:
    """A worker with 10 jobs at once; one is the default and slower."""

    worker_process = True

    def __init__(self, argument: str) -> None:
        del argument
        self._app: Any
        self._task: Any
        self._place = Path()

    def _declare(self, place: Path, connector: Any) -> None:
        from procrastinate import App

        marks = marks_in(place)
        self._app = App(connector=connector)

        @self._app.task(name="work")
        async def work(number: int, text: str) -> None:
            marks.mark(number)

        self._task = work

    def open(self, place: Path) -> None:
        from procrastinate import SyncPsycopgConnector

        self._place = place
        _create(place)
        self._declare(place, SyncPsycopgConnector(conninfo=_url(place)))
        self._app.open()
        self._app.schema_manager.apply_schema()

    def submit(self, number: int) -> None:
        self._task.defer(number=number, text=TEXT)

    def submit_all(self, numbers: Sequence[int]) -> None:
        """Its ``batch_defer``, 500 at a time."""
        for first in range(0, len(numbers), BATCH):
            self._task.batch_defer(*({"number": n, "text": TEXT} for n in numbers[first : first + BATCH]))

    def settle(self) -> None: ...

    def work(self, place: Path) -> None:
        from procrastinate import PsycopgConnector

        logging.disable(logging.WARNING)
        self._declare(place, PsycopgConnector(conninfo=_url(place)))

        async def serve() -> None:
            async with self._app.open_async():
                await self._app.run_worker_async(concurrency=10)

        asyncio.run(serve())

    def close(self) -> None:
        self._app.close()
        _drop(self._place)
