"""The real engine, one move at a time on one thread.

What an engine's threads do in a loop is here a call each: decide (``tick``), make durable (``commit``), let out
(``release``), look up, look into the inbox. Whoever calls them chooses the order, so everything that threads can do to
each other can be written down, and a crash can be put between any two moves. Nothing sleeps. Must not know: what the
moves are for.

Housekeeping waits for the writer on tickets; while ``pumping``, each ring of the engine makes all moves at once, so such
a ticket is settled before anybody waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from actionqueue.core.machine import Machine
from actionqueue.core.state import State
from actionqueue.engine.draining import Waited, script
from actionqueue.engine.engine import Engine
from actionqueue.engine.inbox import InboxReader
from actionqueue.engine.wake import Wake
from actionqueue.engine.work import Turn
from actionqueue.executors.port import Executor
from actionqueue.store.port import Opened, Store
from actionqueue.testing.clock import VirtualTime
from actionqueue.testing.faults import Died, Disk, InboxRows

PROCESS = (1, "simulated")
MOVES_MAX = 2_000
"""Moves at one instant after which something is taken to go round in circles."""


class Ring(Wake):
    """Wakes nobody, since nobody waits; calls ``on_ring`` instead."""

    __slots__ = ("on_ring",)

    def __init__(self) -> None:
        super().__init__()
        self.on_ring: Callable[[], None] | None = None

    def set(self) -> None:
        """Ring."""
        if self.on_ring is not None:
            self.on_ring()


class SteppedEngine(Engine):
    """An engine without threads that shows what it loaded before it decides anything."""

    def __init__(
        self, store: Store, executors: Sequence[Executor], next_id: Callable[[int], bytes], **facts: Any
    ) -> None:
        super().__init__(store, executors, next_id, **facts)
        self.on_loaded: Callable[[State], None] | None = None

    def _load(self, opened: Opened) -> Machine:
        machine = super()._load(opened)
        if self.on_loaded is not None:
            self.on_loaded(machine.state)
        return machine


class Stepper:
    """Makes an engine's moves. ``inbox`` is what other processes send it."""

    def __init__(
        self,
        disk: Disk,
        time: VirtualTime,
        executors: Sequence[Executor],
        next_id: Callable[[int], bytes],
        *,
        draw: Callable[[], float],
        inbox: InboxRows | None = None,
        store: Store | None = None,
        **facts: Any,
    ) -> None:
        self.ring = Ring()
        self.time = time
        self.engine = SteppedEngine(
            store or disk.store(),
            executors,
            next_id,
            clock=time.clock,
            wake=self.ring,
            draw=draw,
            process=PROCESS,
            **facts,
        )
        self.inbox = None if inbox is None else InboxReader(self.engine, inbox, inbox)
        self.after_commit: Callable[[], None] = _nothing
        """Called after each try to commit, before anything of it can be let out."""
        self._disk = disk
        self._handed: Turn | None = None
        self._durable: Turn | None = None

    @property
    def state(self) -> State:
        """What the writer has decided."""
        return self.engine.writer.machine.state

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing is on its way to the disk or out of it, and nothing keeps the engine from going on."""
        return self._handed is None and self._durable is None and self.engine.refusal() is None

    @property
    def is_dead(self) -> bool:
        """Whether the process died in a commit; no further move may be made."""
        return self._disk.has_died

    # --- moves -----------------------------------------------------------------------------------------------------

    def tick(self) -> bool:
        """The writer decides and hands over; whether there is more to decide at once."""
        if self.engine.fenced is not None:
            self.engine.refuse_the_rest()
            return False
        return self.engine.tick()

    def commit(self) -> bool:
        """The committer tries to make durable what was handed over; whether there was anything to try."""
        if self._durable is not None:
            return False
        if self._handed is None:
            self._handed = self.engine.committer.next_turn()
        if self._handed is None:
            return False
        if not self._disk.takes_longer():
            if self.engine.committer.commit(self._handed):
                self._handed, self._durable = None, self._handed
            self.after_commit()
        return True

    def release(self) -> bool:
        """What is durable is let out; whether there was anything."""
        turn, self._durable = self._durable, None
        if turn is None or self.is_dead:
            return False
        self.engine.committer.release(turn)
        return True

    def look_up(self) -> bool:
        """One look-up is made; whether there was one to make."""
        return self.engine.effects.look_up()

    def read_inbox(self) -> bool:
        """A look into the inbox."""
        return self.inbox is not None and self.inbox.look()

    def settle(self) -> None:
        """All moves, until there is nothing left to do at this instant (or the process has died)."""
        for _ in range(MOVES_MAX):
            if self.is_dead:
                return
            has_more = self.tick()
            is_moving = self.commit()
            is_moving |= self.release()
            is_moving |= self.look_up()
            if not (
                has_more or is_moving or self._durable or (self.engine.writer.has_work() and not self.engine.fenced)
            ):
                return
        raise AssertionError("it does not come to rest")

    @contextmanager
    def pumping(self) -> Generator[None]:
        """While it lasts, each ring makes all moves; see the module's head."""
        is_moving = False

        def pump() -> None:
            nonlocal is_moving
            if not is_moving:
                is_moving = True
                try:
                    self.settle()
                finally:
                    is_moving = False
                if self.is_dead:
                    raise Died  # or else someone would wait for an answer

        self.ring.on_ring = pump
        try:
            yield
        finally:
            self.ring.on_ring = None

    # --- time ------------------------------------------------------------------------------------------------------

    def next_wake_us(self) -> int | None:
        """How long until the writer has something to do by itself; None when it has not."""
        if self.engine.fenced is not None:
            return None
        at_us = self.engine.next_wake()
        return None if at_us is None else max(0, at_us - self.engine.clock.now_us())

    # --- the end ---------------------------------------------------------------------------------------------------

    def drain(self, timeout_s: float, pass_time: Callable[[int], None], waits_max: int = 10_000) -> bool:
        """Drain and close; ``pass_time`` lets so many microseconds pass. False when it took more than so many waits."""
        engine, time = self.engine, self.time
        steps = script(engine, timeout_s)
        try:
            wait = next(steps)
            for _ in range(waits_max):
                began_us = time.elapsed_us
                self.settle()
                if self.is_dead:
                    return False
                is_settled = wait.ticket is not None and wait.ticket.wait(0)
                if not is_settled:
                    pass_time(int(wait.timeout_s * 1e6) + 1)
                    self.settle()
                    is_settled = wait.ticket is not None and wait.ticket.wait(0)
                wait = steps.send(Waited(is_settled, (time.elapsed_us - began_us) / 1e6))
        except StopIteration:
            self.close()
            return True
        return False

    def close(self) -> None:
        """Let the store go, as after a drain."""
        self.settle()
        if not self.is_dead:
            self.engine.let_go()

    def drop(self) -> None:
        """The process is gone; nothing of it may run any more. Frees what the garbage collector does not see."""
        for executor in self.engine.executors.values():
            executor.close(0.0)
        self.engine.writer.machine.state.dispose()


def _nothing() -> None:
    """Nobody wants to know."""
