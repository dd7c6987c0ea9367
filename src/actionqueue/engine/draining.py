"""A graceful end: start nothing more, let what runs finish, stop what does not, lose what cannot be stopped.

Attempts whose code is confirmed stopped are *interrupted* (uncounted, due again at once); those that do not end within
the drain are *lost*. So a deploy burns no attempts.

What happens is written as a script that yields what it waits for and is told how that went, so that it needs no thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from actionqueue.core.epochs import Close
from actionqueue.core.state import RUNNING
from actionqueue.engine.tickets import ThreadTicket
from actionqueue.engine.work import Post, Turn

if TYPE_CHECKING:
    from actionqueue.engine.engine import Engine

logger = logging.getLogger("actionqueue")

CONFIRM_S = 0.6
"""How long code has to end after it was asked to, once the drain has run out, in seconds; by force after half of it."""
FINAL_COMMIT_S, FINAL_COMMIT_IN_TROUBLE_S = 5.0, 0.1
"""How long the end waits for its commits; shortly where the store cannot be written and nobody knows for how long."""
LOOK_S = 0.05


T = TypeVar("T")


class Wait(NamedTuple):
    """Until ``ticket`` is settled (None: nothing settles it), for at most so many seconds."""

    ticket: ThreadTicket | None
    timeout_s: float


class Waited(NamedTuple):
    """Whether it was settled, and the seconds that took."""

    is_settled: bool
    seconds: float


Script = Generator[Wait, Waited, T]


def drain(engine: Engine, timeout_s: float) -> None:
    """Drain ``engine`` within about ``timeout_s`` + ``CONFIRM_S`` seconds, and commit its end."""
    steps = script(engine, timeout_s)
    try:
        wait = next(steps)
        while True:
            began = time.monotonic()
            if wait.ticket is None:
                is_settled = engine.quiet.wait(wait.timeout_s)
            else:
                is_settled = wait.ticket.wait(wait.timeout_s)
            wait = steps.send(Waited(is_settled, time.monotonic() - began))
    except StopIteration:
        return


def script(engine: Engine, timeout_s: float) -> Script[None]:
    """What a drain does, and waits for."""
    writer = engine.writer

    def begin(turn: Turn) -> None:
        writer.draining = True

    def stop_all(*, force: bool) -> None:
        engine.ask(lambda turn: writer.stop_all("interrupted", engine.clock.now_us(), force=force))

    engine.ask(begin)
    if not (yield from _until_nothing_runs(engine, timeout_s)):
        stop_all(force=False)
        if not (yield from _until_nothing_runs(engine, CONFIRM_S / 2)):
            stop_all(force=True)
            if not (yield from _until_nothing_runs(engine, CONFIRM_S / 2)):
                yield from _give_up(engine)
    engine.stop_taking()
    closing = ThreadTicket()
    writer.post(Post(Close(), closing))
    engine.flush(ThreadTicket())
    yield from _until_committed(engine, closing)
    done = ThreadTicket()
    engine.flush(done)
    yield from _until_committed(engine, done)


def _give_up(engine: Engine) -> Script[None]:
    ticket = ThreadTicket()

    def give_up(turn: Turn) -> None:
        lost = engine.writer.give_up_all(engine.clock.now_us())
        logger.warning("%d attempts did not stop within the drain and are lost", lost)
        turn.settled.append((ticket, None))

    engine.ask(give_up)
    yield from _until_committed(engine, ticket)


def _until_committed(engine: Engine, ticket: ThreadTicket) -> Script[None]:
    waited_s = 0.0
    while True:
        waited = yield Wait(ticket, FINAL_COMMIT_IN_TROUBLE_S)
        waited_s += waited.seconds
        if waited.is_settled or engine.trouble is not None or engine.fenced is not None or waited_s >= FINAL_COMMIT_S:
            return


def _until_nothing_runs(engine: Engine, timeout_s: float) -> Script[bool]:
    waited_s = 0.0
    while True:
        ticket = ThreadTicket()
        running = 0

        def look(turn: Turn, ticket: ThreadTicket = ticket) -> None:
            nonlocal running
            running = engine.writer.machine.state.counts[RUNNING]
            turn.settled.append((ticket, None))

        engine.ask(look)
        while True:
            waited = yield Wait(ticket, LOOK_S)
            waited_s += waited.seconds
            if waited.is_settled:
                break
            if engine.fenced is not None:
                return True
            if waited_s >= timeout_s:
                return False
        if running == 0 or engine.fenced is not None:
            return True
        if waited_s >= timeout_s:
            return False
        waited = yield Wait(None, min(LOOK_S, timeout_s - waited_s))
        waited_s += waited.seconds
