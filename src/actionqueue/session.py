"""An open store: as its engine, or as a client that submits and stands by.

``role="auto"`` tries to be the engine; where another process is, it becomes a client, and a watcher makes it the engine
within two seconds of the holder's end. The line is swapped then; whoever waits for a result is answered from the store.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from actionqueue.client_line import ClientLine
from actionqueue.core.errors import ActionQueueError, NoEngine, NotRunning, StoreHeld
from actionqueue.core.ids import IdSource, RunId
from actionqueue.core.rows import Row
from actionqueue.engine.tickets import CallTicket, ThreadTicket
from actionqueue.executors import locators, logs
from actionqueue.line import EngineLine, Line, answer_inline
from actionqueue.records import run_record
from actionqueue.store.port import Reader, Store
from actionqueue.store.sqlite_reader import SQLiteReader
from actionqueue.task import declaring

if TYPE_CHECKING:
    import asyncio

    from actionqueue.app import ActionQueue
    from actionqueue.engine.engine import Engine
    from actionqueue.engine.housekeeping import Housekeeping
    from actionqueue.engine.inbox import InboxReader
    from actionqueue.executors.port import Executor
    from actionqueue.standby import Standby
    from actionqueue.task import Task

logger = logging.getLogger("actionqueue")

NO_ENGINE_AFTER_S = 5.0
PROCESS_GRACE_S_MAX = 5.0
"""How long a process may take to end after SIGTERM; it is killed well before ``stop_grace`` gives its attempt up."""
HOOK_READ_S = 10.0
HOOKS_END_S = 0.5
"""How long closing waits for ``on_failure`` hooks that are still running."""


class Session:
    """What an ``ActionQueue`` has while it is open."""

    def __init__(
        self,
        queue: ActionQueue,
        *,
        as_client: bool = False,
        must_be_engine: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.pid = os.getpid()
        self.line: Line
        self.engine: Engine | None = None
        self.on_fenced: Callable[[ActionQueueError], None] | None = None
        self._queue = queue
        self._as_client = as_client
        self._must_be_engine = must_be_engine
        self._loop = loop
        self._host_loops: set[asyncio.AbstractEventLoop] = set() if loop is None else {loop}
        self._housekeeping: Housekeeping | None = None
        self._standby: Standby | None = None
        self._client = _client_line(queue)
        self._inbox_reader: InboxReader | None = None
        self._hooks: SimpleQueue[bytes | None] | None = None
        self._hooks_thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False

    # --- opening -----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the store in the role that the queue's settings and the store's holder leave."""
        settings = self._queue.settings
        if settings.in_memory:
            if self._as_client or settings.role == "client":
                raise NotRunning(
                    'a ":memory:" store lives in its engine; use `with queue.running():` (or async with) around this'
                )
            self._open_engine()
        elif self._as_client or settings.role == "client":
            self._open_client()
        elif settings.role == "engine" or self._must_be_engine:
            self._open_engine()
        else:
            try:
                self._open_engine()
            except StoreHeld as held:
                logger.info("another process is the engine (%s); this one is a client and stands by", held.message)
                self._open_client()
                self._stand_by()

    @property
    def _may_stand_by(self) -> bool:
        return self._queue.settings.role == "auto" and not self._must_be_engine and not self._queue.settings.in_memory

    def _open_engine(self) -> None:
        from actionqueue.engine.engine import Engine  # the parts of an engine are imported where one is made

        if locators.importing_main.get():
            raise NotRunning(
                "a worker process is importing this script for its handlers, and the script starts an engine: put what "
                'runs under `if __name__ == "__main__":`'
            )
        logs.install()
        for module in self._queue.settings.imports:
            importlib.import_module(module)
        for task in self._queue.handlers.values():
            task.check_importable()
        settings = self._queue.settings
        engine = Engine(
            self._make_store(),
            self._make_executors(),
            IdSource(os.urandom).next,
            queues=settings.queues,
            stop_grace_us=settings.stop_grace_us,
            live_runs_max=settings.live_runs_max,
            aging_us=settings.aging_us,
        )
        for task in self._queue.handlers.values():
            declared = task.declared
            engine.register(task.runnable, declared.executor, declared.terms, declared.concurrency)
        engine.open()
        engine.effects.on_failure = self._note_failure
        engine.on_fenced = self._note_fenced
        self.engine = engine
        try:
            self._attend(engine)
        except BaseException:
            self._let_engine_go(0.0)
            raise
        self.line = EngineLine(engine, self._client, self._inbox_reader)

    def _attend(self, engine: Engine) -> None:
        """Start what works beside an engine."""
        from actionqueue.engine.housekeeping import Housekeeping
        from actionqueue.engine.inbox import InboxReader
        from actionqueue.store.inbox import Doorbell, Inbox

        settings = self._queue.settings
        if self._queue.handlers:
            engine.post(declaring(self._queue.handlers.values()), CallTicket(_tell_retired))
        self._housekeeping = Housekeeping(engine, settings.retention_us, settings.log_retention_us)
        engine.on_served = self._housekeeping.serve
        self._housekeeping.start()
        if not settings.in_memory:
            assert not isinstance(settings.store, str)
            self._inbox_reader = InboxReader(engine, Inbox(settings.store), Doorbell(settings.store))
            self._inbox_reader.start()

    def _make_store(self) -> Store:
        from actionqueue.store.sqlite import SQLiteStore

        if self._queue.settings.in_memory:
            if self._queue.memory is None:
                from actionqueue.store.memory import MemoryStore

                self._queue.memory = MemoryStore()
            return self._queue.memory
        assert not isinstance(self._queue.settings.store, str)
        return SQLiteStore(self._queue.settings.store)

    def _make_executors(self) -> list[Executor]:
        from actionqueue.executors.loop import AsyncExecutor
        from actionqueue.executors.processes import ProcessExecutor
        from actionqueue.executors.threads import ThreadExecutor

        settings = self._queue.settings
        on_loop = AsyncExecutor(settings.concurrency, loop=self._loop, resources=settings.resources)
        executors: list[Executor] = [
            on_loop,
            ThreadExecutor(settings.threads, resources=on_loop.enter_resources if settings.resources else None),
            ProcessExecutor(settings.processes, stop_grace_s=min(PROCESS_GRACE_S_MAX, settings.stop_grace_us / 2e6)),
        ]
        return executors

    def _open_client(self) -> None:
        assert self._client is not None
        self.line = self._client

    def _stand_by(self) -> None:
        from actionqueue.standby import Standby

        store = self._queue.settings.store
        assert not isinstance(store, str)
        self._standby = Standby(store, self._take_over)
        self._standby.start()

    def _take_over(self) -> bool:
        """The holder is gone: become the engine. False when another process was faster."""
        with self._lock:
            if self._closed:
                return True
            try:
                self._open_engine()
            except StoreHeld:
                return False
            logger.info("this process is the engine now")
            return True

    def register(self, task: Task[Any, Any]) -> None:
        """A handler was declared while the session is open."""
        engine = self.engine
        if engine is not None:
            task.check_importable()
            declared = task.declared
            engine.register(task.runnable, declared.executor, declared.terms, declared.concurrency)
            engine.post(declaring([task]), CallTicket(_tell_retired))

    def read_inbox(self, timeout_s: float) -> bool:
        """Have the engine take everything that waits in the inbox; False when that took too long."""
        reader = self._inbox_reader
        return reader is None or reader.catch_up(timeout_s)

    # --- questions ---------------------------------------------------------------------------------------------

    def blocks_loop(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether ``loop`` runs this queue's handlers, or entered the queue."""
        if loop in self._host_loops:
            return True
        if self.engine is None:
            return False
        from actionqueue.executors.loop import AsyncExecutor

        executor = self.engine.executors["async"]
        return isinstance(executor, AsyncExecutor) and executor.loop is loop

    def adopt_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """A loop entered the queue: calls that wait must not block it."""
        self._host_loops.add(loop)

    def check_engine_present(self, waited_s: float) -> None:
        """Raise ``NoEngine`` when someone has waited long enough and no engine is on the store."""
        if waited_s >= NO_ENGINE_AFTER_S and not self.line.engine_present():
            raise NoEngine(
                "no engine runs on this store, so nothing will happen: start one with `actionqueue run MODULE:queue`, "
                "queue.run_forever(), or `with queue.running():`"
            )

    # --- failures ----------------------------------------------------------------------------------------------

    def _note_fenced(self, error: ActionQueueError) -> None:
        threading.Thread(target=self._leave_fenced, name="actionqueue-fenced", daemon=True).start()
        if self.on_fenced is not None:
            self.on_fenced(error)

    def _leave_fenced(self) -> None:
        """The engine writes no more: let the store go, for whoever can open it, this process included."""
        with self._lock:
            if self._closed:
                return
            self._let_engine_go(0.0)
            if self._may_stand_by:
                self.engine = None
                self._open_client()
                self._stand_by()

    def _note_failure(self, run_id: bytes) -> None:
        if not self._queue.failure_hooks:
            return
        if self._hooks is None:
            self._hooks = SimpleQueue()
            self._hooks_thread = threading.Thread(
                target=self._run_hooks, args=(self._hooks,), name="actionqueue-hooks", daemon=True
            )
            self._hooks_thread.start()
        self._hooks.put(run_id)

    def _run_hooks(self, failed: SimpleQueue[bytes | None]) -> None:
        while (run_id := failed.get()) is not None:
            try:
                record = run_record(*self._read_failed(run_id))
            except (ActionQueueError, KeyError):
                logger.exception("the record of failed run %s could not be read for on_failure", RunId(bytes=run_id))
                continue
            for hook in self._queue.failure_hooks:
                try:
                    hook(record)
                except Exception:
                    logger.exception("an on_failure hook raised")

    def _read_failed(self, run_id: bytes) -> tuple[Row, list[Row]]:
        ticket = ThreadTicket()
        question = _reading_run(run_id)
        try:
            self.line.read(question, ticket)
        except NotRunning:  # it failed during the drain, and the engine is closed by now: everything is in the store
            memory, path = self._queue.memory, self._queue.settings.store
            answer_inline(question, memory.reader if memory is not None else lambda: SQLiteReader(Path(path)), ticket)
        if not ticket.wait(HOOK_READ_S):
            raise NotRunning("the engine did not answer")
        found: tuple[Row, list[Row]] = ticket.result()
        return found

    # --- closing -----------------------------------------------------------------------------------------------

    def close(self, drain_timeout_s: float | None = None) -> None:
        """Drain where this is the engine, and let go."""
        if drain_timeout_s is None:
            drain_timeout_s = self._queue.settings.drain_timeout_us / 1e6
        with self._lock:
            self._closed = True
        if self._standby is not None:
            self._standby.stop()
        self._let_engine_go(drain_timeout_s)
        if self._client is not None:
            self._client.close()

    def _let_engine_go(self, drain_timeout_s: float) -> None:
        if self._inbox_reader is not None:
            self._inbox_reader.stop()
        if self._housekeeping is not None:
            self._housekeeping.stop()
        if self.engine is not None:
            self.engine.close(drain_timeout_s)
        if self._hooks is not None and self._hooks_thread is not None:
            self._hooks.put(None)
            self._hooks_thread.join(HOOKS_END_S)
        self._inbox_reader = self._housekeeping = self._hooks = None


def _tell_retired(ended: Any) -> None:
    """Schedules that decorators declare otherwise now, or no more."""
    for name, reason in ended if isinstance(ended, list) else ():
        if reason == "undeclared":
            logger.warning("schedule %s is retired: its handler is registered without it", name)
        else:
            logger.info("schedule %s is declared otherwise: what comes from now on follows the new rule", name)


def _client_line(queue: ActionQueue) -> ClientLine | None:
    """How this process speaks to another one's engine; a store in memory has no other."""
    settings = queue.settings
    if isinstance(settings.store, str):
        return None
    return ClientLine(settings.store, queue.sent, decide_wait_s=settings.decide_wait_us / 1e6)


def _reading_run(run_id: bytes) -> Callable[[Reader], tuple[Row, list[Row]]]:
    def question(reader: Reader) -> tuple[Row, list[Row]]:
        return reader.runs_by_id([run_id])[run_id], reader.attempts_of([run_id]).get(run_id, [])

    return question
