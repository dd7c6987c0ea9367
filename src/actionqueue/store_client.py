"""A store's operating surface without handlers: what the command line works with.

Reads go to the file, commands through the inbox; it is never the engine, and costs as little to import as it can.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from actionqueue.administer import Administering
from actionqueue.client_line import ClientLine, SentTasks
from actionqueue.core.instants import parse_duration_us

if TYPE_CHECKING:
    import asyncio


class StoreClient(Administering):
    """The reads and controls of ``ActionQueue``, of a store that other processes run.

    ``decide_wait`` bounds how long a control waits while no engine is on the store; 0 leaves it in the inbox at once.

    >>> StoreClient("jobs.db").store.name
    'jobs.db'
    """

    def __init__(self, store: str | os.PathLike[str], *, decide_wait: float | str = "1s") -> None:
        self._store = Path(store).absolute()
        decide_wait_us = parse_duration_us(decide_wait, field="decide_wait")
        self._line = ClientLine(self._store, SentTasks(), decide_wait_s=decide_wait_us / 1e6)

    @property
    def store(self) -> Path:
        """Where the store is."""
        return self._store

    def line(self) -> ClientLine:
        """The line to the engine."""
        return self._line

    def blocks_loop(self, loop: asyncio.AbstractEventLoop) -> bool:
        """No loop runs handlers here."""
        del loop
        return False

    def asker(self) -> str:
        """Who is recorded as having asked: this process."""
        return f"pid {os.getpid()}"

    def close(self) -> None:
        """Let go of inbox and watcher."""
        self._line.close()
