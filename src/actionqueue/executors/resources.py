"""The value of ``resources=``: entered once per event loop or worker process, shared by its attempts, left at the end.

The async context manager is entered and left by one task that lives in between: cancel scopes (anyio,
``asyncio.timeout``) may not be left by another task than the one that entered them. Everything here runs on the loop's
thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

ResourcesFactory = Callable[[], AbstractAsyncContextManager[Any]]

log = logging.getLogger("actionqueue")


class ResourceKeeper:
    """Holds one ``async with factory()`` open. ``value`` is its value while ``is_open``."""

    def __init__(self, factory: ResourcesFactory) -> None:
        self.value: Any = None
        self.is_open = False
        self.task: asyncio.Task[None] | None = None
        self._factory = factory
        self._opened: asyncio.Future[None] | None = None
        self._leave: asyncio.Event | None = None

    async def enter(self) -> None:
        """Return once the resources are there, entering them if nobody did; raises what entering them raised.

        After a failure the next call tries again.
        """
        if self._opened is None:
            loop = asyncio.get_running_loop()
            self._opened, self._leave = loop.create_future(), asyncio.Event()
            self.task = loop.create_task(self._keep(self._opened, self._leave))
        await asyncio.shield(self._opened)

    async def leave(self) -> None:
        """Leave them, and return when that is done; an error of leaving is logged."""
        task = self.task
        if task is None or self._leave is None:
            return
        self._leave.set()
        if not self.is_open:
            task.cancel()
        await asyncio.wait([task])

    async def _keep(self, opened: asyncio.Future[None], leave: asyncio.Event) -> None:
        try:
            async with self._factory() as self.value:
                self.is_open = True
                opened.set_result(None)
                await leave.wait()
        except BaseException as error:  # also what would end a program: whoever waits must hear of it
            if opened.done():
                log.exception("leaving the handlers' resources failed")
            else:
                opened.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
                opened.exception()  # retrieved, whether or not anybody waits still
        finally:
            self.value, self.is_open = None, False
            self.task = self._opened = None
