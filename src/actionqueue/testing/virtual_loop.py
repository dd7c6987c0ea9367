"""An event loop whose time is virtual: ``asyncio.sleep`` ends when the simulation's clock says so, and nothing waits.

``step`` runs everything that can run at this instant and returns. Sockets and pipes are looked at and not waited for;
work for another thread (``asyncio.to_thread``) runs inline.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any, TypeVar, TypeVarTuple, Unpack, cast

from actionqueue.testing.clock import VirtualTime

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

PASSES_MAX = 100_000
"""Passes of the loop at one instant after which a handler is taken to go round in circles."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module's head."""

    def __init__(self, time: VirtualTime) -> None:
        super().__init__()
        self._virtual = time
        self.set_exception_handler(_unheard)

    def time(self) -> float:
        """Virtual seconds."""
        return self._virtual.elapsed_us / 1e6

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Here and now, in this thread."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def step(self) -> None:
        """Everything that can run at this instant."""
        with _apart():
            for _ in range(PASSES_MAX):
                self.call_soon(self.stop)
                self.run_forever()
                next_us = self.next_us()
                if not self._is_ready() and (next_us is None or next_us > self._virtual.elapsed_us):
                    return
        raise AssertionError(f"async handlers still have something to do after {PASSES_MAX} passes at one instant")

    def complete(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run one coroutine to its end."""
        with _apart():
            return self.run_until_complete(coroutine)

    def next_us(self) -> int | None:
        """The elapsed time at which a timer is due."""
        timers = cast("list[asyncio.TimerHandle]", self.__dict__["_scheduled"])
        return min((math.ceil(timer.when() * 1e6) for timer in timers if not timer.cancelled()), default=None)

    def _is_ready(self) -> bool:
        return bool(self.__dict__["_ready"])


@contextmanager
def _apart() -> Generator[None]:
    """A test may itself be a coroutine: its loop and task stand aside while the handlers' loop runs in its thread."""
    outer = asyncio._get_running_loop()  # noqa: SLF001 - what asyncio offers to those who write loops
    task = None if outer is None else asyncio.current_task(outer)
    if outer is not None and task is not None:
        asyncio.tasks._leave_task(outer, task)  # noqa: SLF001
    asyncio._set_running_loop(None)  # noqa: SLF001
    try:
        yield
    finally:
        asyncio._set_running_loop(outer)  # noqa: SLF001
        if outer is not None and task is not None:
            asyncio.tasks._enter_task(outer, task)  # noqa: SLF001


def _unheard(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What a crash left pending is nobody's mistake."""
    del loop, context
