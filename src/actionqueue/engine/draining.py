"""A graceful end: start nothing more, let what runs finish, stop what does not, lose what cannot be stopped.

Attempts whose code is confirmed stopped are *interrupted* (uncounted, due again at once); those that do not end within
the drain are *lost*. So a deploy burns no attempts.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

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


def drain(engine: Engine, timeout_s: float) -> None:
    """Drain ``engine`` within about ``timeout_s`` + ``CONFIRM_S`` seconds, and commit its end."""
    writer = engine.writer

    def begin(turn: Turn) -> None:
        writer.draining = True

    def stop_all(*, force: bool) -> None:
        engine.ask(lambda turn: writer.stop_all("interrupted", engine.clock.now_us(), force=force))

    engine.ask(begin)
    if not _wait_until_nothing_runs(engine, timeout_s):
        stop_all(force=False)
        if not _wait_until_nothing_runs(engine, CONFIRM_S / 2):
            stop_all(force=True)
            if not _wait_until_nothing_runs(engine, CONFIRM_S / 2):
                _give_up(engine)
    engine.stop_taking()
    closing = ThreadTicket()
    writer.post(Post(Close(), closing))
    engine.flush(ThreadTicket())
    _wait_for_commit(engine, closing)
    done = ThreadTicket()
    engine.flush(done)
    _wait_for_commit(engine, done)


def _give_up(engine: Engine) -> None:
    ticket = ThreadTicket()

    def give_up(turn: Turn) -> None:
        lost = engine.writer.give_up_all(engine.clock.now_us())
        logger.warning("%d attempts did not stop within the drain and are lost", lost)
        turn.settled.append((ticket, None))

    engine.ask(give_up)
    _wait_for_commit(engine, ticket)


def _wait_for_commit(engine: Engine, ticket: ThreadTicket) -> None:
    deadline = time.monotonic() + FINAL_COMMIT_S
    while not ticket.wait(FINAL_COMMIT_IN_TROUBLE_S):
        if engine.trouble is not None or engine.fenced is not None or time.monotonic() >= deadline:
            return


def _wait_until_nothing_runs(engine: Engine, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while True:
        ticket = ThreadTicket()
        running = 0

        def look(turn: Turn, ticket: ThreadTicket = ticket) -> None:
            nonlocal running
            running = engine.writer.machine.state.counts[RUNNING]
            turn.settled.append((ticket, None))

        engine.ask(look)
        while not ticket.wait(LOOK_S):
            if engine.fenced is not None:
                return True
            if time.monotonic() >= deadline:
                return False
        if running == 0 or engine.fenced is not None:
            return True
        if time.monotonic() >= deadline:
            return False
        engine.quiet.wait(min(LOOK_S, max(0.0, deadline - time.monotonic())))
