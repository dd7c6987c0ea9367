"""A thread pool whose threads never keep the process alive, as the default executor of an own event loop.

``asyncio.to_thread`` and name resolution run there. concurrent.futures joins its threads when the interpreter ends, so
one stuck call of a handler would hang the exit for ever; these threads are daemons and joined by nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

Job = tuple[Future[Any], Callable[[], Any]]


class DaemonPool(ThreadPoolExecutor):
    """Has ``ThreadPoolExecutor``'s type, which asyncio asks for, and none of its threads."""

    def __init__(self, max_workers: int, thread_name_prefix: str) -> None:
        super().__init__(max_workers, thread_name_prefix)
        self._slots_free = max_workers
        self._prefix = thread_name_prefix
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._guard = threading.Lock()
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn`` in one of the threads; a new one only while none is idle."""
        future: Future[T] = Future()
        with self._guard:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._jobs.put((future, lambda: fn(*args, **kwargs)))
            if not self._idle.acquire(blocking=False) and self._slots_free:
                self._slots_free -= 1
                threading.Thread(target=self._work, name=f"{self._prefix}-pool", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the base's
        """Let idle threads end; never waits."""
        with self._guard:
            self._closed = True
            self._jobs.put(None)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                self._jobs.put(None)  # for the next thread
                return
            future, call = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # the waiter's, whatever it is
                    future.set_exception(error)
            del job, future, call
            self._idle.release()
