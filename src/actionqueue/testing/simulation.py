"""A queue on a simulated machine: the real engine, stepped, on virtual time and a store in memory.

Knows: how a user's queue is moved onto the parts that the simulated world is made of, and back. Everything runs in the
calling thread and nothing waits: a submission is durable when it returns, handlers run in ``run_until_idle`` and
``advance``, and time passes in ``advance`` alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any, Self

import msgspec

from actionqueue.core.attempts import Progress
from actionqueue.core.check import check
from actionqueue.core.errors import NotRunning
from actionqueue.core.ids import IdSource
from actionqueue.core.instants import instant_us, parse_duration_us, to_datetime
from actionqueue.engine.housekeeping import Housekeeping
from actionqueue.executors.port import Assignment, AttemptControl
from actionqueue.records import run_record
from actionqueue.running import IdleSummary
from actionqueue.settings import MEMORY
from actionqueue.store.port import RunFilter
from actionqueue.task import declaring
from actionqueue.testing.clock import VirtualTime
from actionqueue.testing.faults import Died, Disk
from actionqueue.testing.inline import InlineExecutor
from actionqueue.testing.killing import Places, WatchedControl, watched
from actionqueue.testing.replay import StandIns, feed, no_arguments
from actionqueue.testing.session import CrashedLine, SimulatedLine, SimulatedSession
from actionqueue.testing.stepped import Stepper
from actionqueue.testing.virtual_loop import VirtualLoop
from actionqueue.verify import verify

if TYPE_CHECKING:
    from actionqueue.app import ActionQueue
    from actionqueue.session import Session
    from actionqueue.store.memory import MemoryStore
    from actionqueue.task import Task

ROUNDS_MAX = 100_000
"""Rounds at one instant after which handlers are taken to keep each other busy for ever."""

_left: list[object] = []
"""What a crash ended never goes on, not even to clean up; so its tasks and coroutines are never freed."""


class Simulation:
    """Moves ``queue`` onto a simulated machine for the time of a ``with``. ``seed`` decides jitter and ids.

    Virtual time begins at ``starts_at`` (default: the first of January 2026, UTC); ``sim.now`` is what it is now.

    Async handlers' ``asyncio.sleep`` follows the virtual clock; plain handlers (threads and processes) run inline.
    With ``export``, the lines of ``actionqueue export``, it begins as that log left its store, right after its last
    commit; arguments are not in a log, so ``stand_ins(handler)`` makes those of what runs again.

    ``disk`` is the store's disk; ``sim.disk.arm("unavailable")`` makes its next commit fail (see ``testing.faults``).
    Works in plain tests and in coroutines.

    >>> from actionqueue import ActionQueue
    >>> queue = ActionQueue("jobs.db")
    >>> @queue.task
    ... def hello(name: str) -> str:
    ...     return f"hello {name}"
    >>> with Simulation(queue) as sim:
    ...     job = hello.options(delay="1h").submit("world")
    ...     sim.advance("1h")
    ...     job.result()
    'hello world'
    """

    def __init__(
        self,
        queue: ActionQueue,
        *,
        seed: int = 0,
        starts_at: datetime | None = None,
        kill_at: int | None = None,
        export: Iterable[str] | None = None,
        stand_ins: StandIns = no_arguments,
    ) -> None:
        self.queue = queue
        self.seed = seed
        self.time = VirtualTime() if starts_at is None else VirtualTime(instant_us(starts_at, field="starts_at"))
        self.disk = Disk()
        if export is not None:
            self.time = VirtualTime(max(self.time.wall_us, feed(self.disk, export, stand_ins).state.last_at))
        self.stepper: Stepper | None = None
        self.loop: VirtualLoop | None = None
        self.places = Places(kill_at)
        """The places that handlers have passed, where one is to be killed (``retry_safety``)."""
        self._chance = Random(seed)
        self._ids = IdSource(self._chance.randbytes)
        self._failures: dict[str, deque[BaseException]] = {}
        self._failed: list[bytes] = []
        self._house: Housekeeping | None = None
        self._executors: list[InlineExecutor] = []
        self._resources: tuple[Any, Any] | None = None
        self._session: SimulatedSession | None = None
        self._before: tuple[Session | None, Any, MemoryStore | None] | None = None

    # --- the block --------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        queue = self.queue
        self._session = SimulatedSession(self)
        before = queue.exchange_session(self._session)
        self._before = (before, queue.settings, queue.memory)
        queue.settings = msgspec.structs.replace(queue.settings, store=MEMORY, role="auto")
        queue.memory = self.disk.memory
        try:
            self._open()
        except BaseException:
            self._give_back()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            if self.stepper is not None:
                self._leave_resources()
                self._die()
        finally:
            self._give_back()

    def _give_back(self) -> None:
        assert self._before is not None
        session, self.queue.settings, self.queue.memory = self._before
        self.queue.exchange_session(session)

    def _open(self) -> None:
        queue, settings = self.queue, self.queue.settings
        loop = VirtualLoop(self.time)
        slots = {"async": settings.concurrency, "thread": settings.threads, "process": settings.processes}
        self._executors = [InlineExecutor(name, count, loop, self, self._enter) for name, count in slots.items()]
        stepper = Stepper(
            self.disk, self.time, self._executors, self._ids.next, draw=self.draw, queues=settings.queues,
            stop_grace_us=settings.stop_grace_us, live_runs_max=settings.live_runs_max, aging_us=settings.aging_us,
        )  # fmt: skip
        engine = stepper.engine
        for task in queue.handlers.values():
            declared = task.declared
            engine.register(task.runnable, declared.executor, declared.terms, declared.concurrency)
        engine.take_store()
        engine.effects.on_failure = self._failed.append
        engine.post(declaring(queue.handlers.values()))
        house = Housekeeping(engine, settings.retention_us, settings.log_retention_us)
        engine.on_served = house.serve
        self.stepper, self.loop, self._house = stepper, loop, house
        assert self._session is not None
        self._session.engine = engine
        self._session.line = SimulatedLine(self, engine)
        self.settle()

    def _die(self) -> None:
        assert self.stepper is not None
        assert self.loop is not None
        assert self._session is not None
        self.disk.has_died = False
        self.disk.let_go()
        self.stepper.drop()
        _left.extend(asyncio.all_tasks(self.loop))  # the loop forgets them when it is closed
        _left.extend(self.places.left)
        self.loop.close()
        self.stepper = self.loop = self._house = self._resources = self._session.engine = None
        self._session.line = CrashedLine()

    # --- what tests do ----------------------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """The virtual wall clock."""
        return to_datetime(self.time.wall_us)

    def run_until_idle(self) -> IdleSummary:
        """Run until nothing more can happen at this instant; the clock does not move. Returns what is left."""
        self.run_until_idle_or_dead()
        stats = self.queue.stats()
        return IdleSummary(runs=stats.runs, blocked=stats.blocked, paused=stats.paused)

    def run_until_idle_or_dead(self) -> None:
        """The same, where the process may die on the way."""
        self._run()

    def advance(self, duration: timedelta | float | str) -> None:
        """Let that much time pass; whatever falls due on the way happens when it is due."""
        target_us = self.time.elapsed_us + parse_duration_us(duration, field="duration")
        self._run()
        while self.stepper is not None:
            next_us = self._next_us()
            if next_us is None or next_us > target_us:
                break
            self.time.advance(max(0, next_us - self.time.elapsed_us))
            self._run()
        self.time.advance(max(0, target_us - self.time.elapsed_us))
        if self.stepper is not None:
            self._run()

    def crash(self) -> None:
        """The process dies: what is not durable is gone, and no handler goes on, not even to clean up."""
        if self.stepper is None:
            raise NotRunning("the simulated process has crashed already; sim.restart() opens the queue again")
        self._die()

    def restart(self) -> None:
        """Open the queue again: after a crash, or after a drain that this begins."""
        if self.stepper is not None:
            if self.stepper.drain(self.queue.settings.drain_timeout_us / 1e6, self._pass):
                self._leave_resources()
            self._die()
        self._open()

    def fail_next(self, task: Task[Any, Any], error: BaseException | type[BaseException]) -> None:
        """The next attempt of ``task`` fails with ``error`` instead of running; called again, the one after it too."""
        failure = error() if isinstance(error, type) else error
        self._failures.setdefault(task.name, deque()).append(failure)

    def assert_submitted(self, task: Task[Any, Any], **args: Any) -> int:
        """Assert that a call of ``task`` with these arguments (others may be anything) was submitted; how many were."""
        self._flush()
        reader = self.disk.memory.reader()
        rows = reader.tasks(RunFilter(handler=task.name, limit=1_000_000))
        calls = [msgspec.json.decode(body) for body in reader.blobs([row[0] for row in rows]).values()]
        wanted = msgspec.json.decode(msgspec.json.encode(args))
        found = [call for call in calls if all(name in call and call[name] == wanted[name] for name in wanted)]
        assert found, f"{task.name}({args}) was not submitted; what was: {calls[:20]}"
        return len(found)

    def check(self) -> None:
        """Assert that every invariant of the engine's state holds and that the store is whole."""
        self._flush()
        assert self.stepper is not None
        problems = check(self.stepper.state)
        assert not problems, problems
        report = verify(self.disk.memory.reader(), name="the simulated store")
        assert report.ok, str(report)

    # --- what the parts need ----------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Everything but handlers."""
        stepper = self._open_stepper()
        stepper.settle()
        self._notice()

    def serve(self) -> None:
        """Housekeeping does what it was asked for."""
        stepper, house = self._open_stepper(), self._house
        assert house is not None
        with stepper.pumping():
            house.serve_asked()
        stepper.settle()

    def draw(self) -> float:
        """Chance, from the seed."""
        return self._chance.random()

    def next_failure(self, handler: str) -> BaseException | None:
        """What the next attempt of a handler is to fail with, if anything."""
        waiting = self._failures.get(handler)
        return waiting.popleft() if waiting else None

    def control(self, assignment: Assignment, emit: Callable[[Progress], None]) -> AttemptControl:
        """The line to a handler that starts; watched where one is to be killed."""
        if self.places.kill_at is None or self.places.killed_at is not None:
            return AttemptControl(assignment, emit)
        return WatchedControl(assignment, emit, self.places)

    async def watched(self, control: AttemptControl, handler: Callable[[], Any]) -> Any:
        """What an async handler returns, unless it is killed on its way."""
        if not isinstance(control, WatchedControl):
            return await handler()
        return await watched(handler(), self.places)

    def finished(self, control: AttemptControl) -> None:
        """A handler has ended; a plain one can be killed before anybody hears of it."""
        if self.places.killed_at is not None and self.places.kill_at is not None:
            raise Died
        if isinstance(control, WatchedControl) and not control.assignment.runnable.is_async:
            self.places.pass_by("its return")

    def _open_stepper(self) -> Stepper:
        if self.stepper is None:
            raise NotRunning("the simulated process has crashed; sim.restart() opens the queue again")
        return self.stepper

    def _run(self) -> None:
        for _ in range(ROUNDS_MAX):
            self.settle()
            if self.stepper is None or not self._act():
                return
        raise AssertionError("handlers keep each other busy for ever at one instant")

    def _act(self) -> bool:
        """Handlers do what they can do now; whether there is anything that follows."""
        assert self.stepper is not None
        assert self.loop is not None
        before = len(self.stepper.engine.writer.mailbox)
        had_work = any(executor.has_work for executor in self._executors)
        try:
            for executor in self._executors:
                executor.act()
            self.loop.step()
        except Died:
            self.places.killed_at = self.places.killed_at or "a plain handler"
        if self.places.killed_at is not None and self.places.kill_at is not None:
            self.places.kill_at = None
            self._die()
            return False
        return had_work or len(self.stepper.engine.writer.mailbox) > before

    def _notice(self) -> None:
        """The process may have died in a commit, or the engine may have stopped writing; failures are told to hooks."""
        stepper = self._open_stepper()
        if stepper.is_dead:
            self._die()
            return
        failed, self._failed[:] = list(self._failed), []
        if failed and self.queue.failure_hooks:
            self._flush()
            reader = self.disk.memory.reader()
            for run_id in failed:
                attempts = reader.attempts_of([run_id])[run_id]
                record = run_record(reader.runs_by_id([run_id])[run_id], attempts)
                for hook in self.queue.failure_hooks:
                    hook(record)

    def _flush(self) -> None:
        stepper = self._open_stepper()
        stepper.engine.ask(lambda turn: stepper.engine.writer.ask_projection())
        stepper.settle()

    def _next_us(self) -> int | None:
        assert self.stepper is not None
        assert self.loop is not None
        found = [at_us for at_us in (self.loop.next_us(),) if at_us is not None]
        wake_us = self.stepper.next_wake_us()
        if wake_us is not None:
            found.append(self.time.elapsed_us + wake_us)
        return min(found, default=None)

    def _pass(self, by_us: int) -> None:
        self.time.advance(by_us)
        self._act()

    def _enter(self) -> Any:
        """The queue's resources, entered when the first handler of an engine starts."""
        factory = self.queue.settings.resources
        if factory is None:
            return None
        if self._resources is None:
            assert self.loop is not None
            manager = factory()
            self._resources = (manager, self.loop.complete(manager.__aenter__()))
        return self._resources[1]

    def _leave_resources(self) -> None:
        resources, self._resources = self._resources, None
        if resources is not None:
            assert self.loop is not None
            self.loop.complete(resources[0].__aexit__(None, None, None))
