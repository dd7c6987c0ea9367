"""The committer: one turn after the other, each in one transaction and one sync, on a thread of its own.

While the store is *unavailable* the same turn is held and tried again. When a commit's outcome is *unknown*, or another
engine has taken over, the engine is fenced, and this and every later turn is refused.

``commit`` and ``release`` are the two halves of a turn's way out; a crash can come before, in and between them.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from actionqueue.core.errors import ActionQueueError, CommitUnknown, StoreUnavailable
from actionqueue.engine.tickets import Ticket
from actionqueue.engine.work import Turn
from actionqueue.store.codec import EVENTS_VERSION, chain, encode_events, encode_reply
from actionqueue.store.port import Batch, Commit, Opened

if TYPE_CHECKING:
    from actionqueue.engine.engine import Engine

logger = logging.getLogger("actionqueue")

REPLY_LIFETIME_US = 24 * 3600 * 1_000_000
RETRY_S_FIRST, RETRY_S_MAX = 0.05, 1.0


class Committer:
    """Writes turns, in order. ``take`` and ``stop`` are for the writer's thread and for closing; ``run`` is the thread."""

    def __init__(self, engine: Engine) -> None:
        self.projected_seq = 0
        """The sequence the store's tables are exact as of."""
        self._engine = engine
        self._handed: SimpleQueue[Turn | None] = SimpleQueue()
        self._epoch = 0
        self._last_seq = 0
        self._last_hash = b""
        self._failure: ActionQueueError | None = None
        """Why nothing is written any more, if it is so."""

    def continue_after(self, opened: Opened) -> None:
        """The log goes on after what opening found."""
        self._epoch, self._last_seq, self._last_hash = opened.epoch, opened.last_seq, opened.last_hash
        self.projected_seq = opened.projected_seq

    def take(self, turn: Turn) -> None:
        """Commit ``turn`` after the ones before it."""
        self._handed.put(turn)

    def stop(self) -> None:
        """End after what was taken before."""
        self._handed.put(None)

    def run(self) -> None:
        """The thread."""
        while (turn := self._handed.get()) is not None:
            delay_s = RETRY_S_FIRST
            while not self.commit(turn):
                self._engine.quiet.wait(delay_s * (0.5 + random.random() / 2))
                delay_s = min(delay_s * 2, RETRY_S_MAX)
            self.release(turn)
        self._engine.effects.end()

    def next_turn(self) -> Turn | None:
        """What was handed over, where no thread takes it."""
        return None if self._handed.empty() else self._handed.get()

    def commit(self, turn: Turn) -> bool:
        """Make a turn durable, or find that no more can be. False while the store is unavailable: to be tried again."""
        failure = self._failure or self._engine.fenced
        if failure is None and turn.writes():
            try:
                if not self._write(turn):
                    return False
            except ActionQueueError as error:
                failure = self._fenced_by(error)
            except BaseException as error:
                logger.exception("a commit failed in an unforeseen way")
                failure = self._fenced_by(CommitUnknown(f"the commit failed: {type(error).__name__}: {error}"))
        self._failure = failure
        return True

    def release(self, turn: Turn) -> None:
        """Let out what a committed turn implies; where it could not be committed, refuse whoever waits for it."""
        engine = self._engine
        if self._failure is None:
            jobs, turn.store_jobs = turn.store_jobs, []
            for job, ticket in jobs:
                self._do_job(job, ticket)
            engine.committed()
            try:
                engine.effects.release(turn)
            except BaseException as error:  # what is durable stays; but nobody knows who was told and what was started
                logger.exception("what a commit implies could not be carried out; the engine stops")
                self._failure = self._fenced_by(ActionQueueError(f"the engine failed: {type(error).__name__}: {error}"))
        if self._failure is not None:
            engine.effects.refuse(turn, self._failure)

    def _fenced_by(self, error: ActionQueueError) -> ActionQueueError:
        self._engine.fence(error)
        return error

    def _do_job(self, job: Callable[[], object], ticket: Ticket) -> None:
        reply: Any = None
        try:
            job()
        except ActionQueueError as error:
            reply = error
        except Exception as error:
            logger.exception("a job on the store failed")
            reply = ActionQueueError(f"{type(error).__name__}: {error}")
        ticket.settle(reply)

    def _write(self, turn: Turn) -> bool:
        engine, batch = self._engine, self._batch(turn)
        try:
            engine.store.commit(batch)
        except StoreUnavailable as error:
            if engine.trouble is None:
                logger.warning("the store cannot be written: %s; holding what is undecided and trying again", error)
            engine.trouble = error
            if engine.is_closed:
                raise StoreUnavailable(
                    f"the engine was closed while the store could not be written: {error.message}", **error.facts
                ) from error
            return False
        if engine.trouble is not None:
            logger.warning("the store can be written again")
            engine.trouble = None
        if batch.projection is not None:
            self.projected_seq = batch.projection.seq
        if batch.commit is not None:
            self._last_hash, self._last_seq = batch.commit.hash, batch.commit.last_seq
        return True

    def _batch(self, turn: Turn) -> Batch:
        commit = None
        events = turn.events
        if events:
            body = encode_events(events)
            commit = Commit(
                self._last_seq + 1,
                self._last_seq + len(events),
                events[-1].at,
                self._epoch,
                EVENTS_VERSION,
                body,
                chain(self._last_hash, body),
            )
        expires_at = self._engine.clock.now_us() + REPLY_LIFETIME_US
        seq = self._last_seq + len(events)
        replies = [(command_id, encode_reply(reply, seq), expires_at) for command_id, reply in turn.replies]
        return Batch(
            commit, self._last_seq, self._epoch, turn.blobs, turn.projection, replies, turn.pruned_tasks,
            turn.steps, turn.dropped_steps,
        )  # fmt: skip
