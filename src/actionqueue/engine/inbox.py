"""Reading the inbox into the mailbox: each command once, its reply recorded in the commit that holds its events.

Rows in flight are remembered as a set of command ids. A row leaves the set when it is deleted, which happens after its
reply is durable; rows found at opening whose reply is recorded already were decided before a crash and only deleted.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from actionqueue.core.control import CancelRun, CancelTask, Pause, Reprioritize, Reschedule, Resume
from actionqueue.core.dependencies import AddDependencies
from actionqueue.core.epochs import ConfirmClock, PruneHistory
from actionqueue.core.errors import ActionQueueError, InvalidSubmission, NotRunning
from actionqueue.core.explain import Explain
from actionqueue.core.foreign import admit
from actionqueue.core.schedules import AskBackfill, PutSchedule, Retire, Trigger
from actionqueue.core.signals import SendSignal
from actionqueue.core.submission import RetryRun, Submit
from actionqueue.core.usage import ListLimits
from actionqueue.engine.tickets import CallTicket
from actionqueue.engine.work import Post, Turn
from actionqueue.store.codec import decode_command

if TYPE_CHECKING:
    from actionqueue.engine.engine import Engine

logger = logging.getLogger("actionqueue")

SENDABLE = (
    Submit,
    RetryRun,
    CancelRun,
    CancelTask,
    Reschedule,
    Reprioritize,
    Pause,
    Resume,
    PutSchedule,
    Trigger,
    AskBackfill,
    Retire,
    AddDependencies,
    ConfirmClock,
    PruneHistory,
    Explain,
    ListLimits,
    SendSignal,
)
"""What other processes may send; the rest is said by the engine and its executors only."""

POLL_S = 0.1
ROWS_PER_READ = 1_000
IN_FLIGHT_MAX = 5_000
"""Rows that may be undecided, or decided and not deleted, at a time: each reading passes over them again."""
PAUSE_S = 0.2


class Rows(Protocol):
    """Where commands wait."""

    def rows(self, limit: int, known: AbstractSet[bytes] = frozenset()) -> list[Any]:
        """Of the oldest those not known: (row id, command id, at, version, body or None when damaged)."""
        ...

    def delete(self, rows: list[tuple[int, bytes]]) -> None:
        """Forget these, by row id and command id."""
        ...

    def close(self) -> None:
        """Let go."""
        ...


class Bell(Protocol):
    """What rings when something was put in."""

    def wait(self, timeout_s: float) -> None:
        """Until rung or timed out."""
        ...

    def close(self) -> None:
        """Stop listening."""
        ...


class InboxReader:
    """A thread that moves commands from the inbox to the writer."""

    def __init__(self, engine: Engine, inbox: Rows, bell: Bell) -> None:
        self._engine = engine
        self._inbox = inbox
        self._bell = bell
        self._in_flight: set[bytes] = set()
        self._done: deque[tuple[int, bytes]] = deque()
        self._asked: deque[Callable[[], object]] = deque()
        """Called when a reading that began after they were put here is over."""
        self._stopped = threading.Event()
        self._ended = threading.Event()
        self._checked_old = False
        self._trouble: str | None = None
        self._thread = threading.Thread(target=self._run, name="actionqueue-inbox", daemon=True)

    def start(self) -> None:
        """Begin reading."""
        self._thread.start()

    def stop(self) -> None:
        """Stop reading; what is in flight is decided all the same, or read again by the next engine."""
        self._stopped.set()
        self._thread.join(5.0)

    def catch_up(self, timeout_s: float) -> bool:
        """Wait until every command that is in the inbox now is in the mailbox; False when that took too long.

        When the reader ends meanwhile there is nothing to wait for: the engine tells whoever asks it why.
        """
        asked = threading.Event()
        self.when_caught_up(asked.set)
        return asked.wait(timeout_s)

    def when_caught_up(self, call: Callable[[], object]) -> None:
        """The same without waiting: ``call`` is called then, on the reader's thread (or now, if that has ended)."""
        self._asked.append(call)
        if self._ended.is_set():
            self._call_asked(len(self._asked))

    def _call_asked(self, count: int) -> None:
        with suppress(IndexError):  # somebody else called them
            for _ in range(count):
                self._asked.popleft()()

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                if self.look():
                    self._bell.wait(POLL_S if not self._done else 0.005)
                else:
                    self._stopped.wait(PAUSE_S)
        finally:
            self._ended.set()
            self._call_asked(len(self._asked))
            with suppress(ActionQueueError):  # or else the next engine does it
                self._delete_done()
            self._bell.close()
            self._inbox.close()

    def look(self) -> bool:
        """Delete what was decided and take what is there; False when the inbox cannot be read now."""
        asked = len(self._asked)
        try:
            self._delete_done()
            if self._read():
                self._call_asked(asked)
        except ActionQueueError as error:
            self._note_trouble(error.message)
            return False
        except Exception as error:
            self._note_trouble(f"{type(error).__name__}: {error}")
            return False
        self._note_trouble(None)
        return True

    def _note_trouble(self, trouble: str | None) -> None:
        """Said once, not five times a second: what was wrong then is usually wrong for a while."""
        if trouble == self._trouble:
            return
        if trouble is None:
            logger.warning("the inbox can be read again")
        else:
            logger.warning("the inbox cannot be read, so what other processes send waits: %s", trouble)
        self._trouble = trouble

    def _delete_done(self) -> None:
        done = list(self._done)
        if done:
            self._inbox.delete(done)
            for _, command_id in done:
                self._done.popleft()
                self._in_flight.discard(command_id)

    def _read(self) -> bool:
        """Take what is there; False when it could not be all of it."""
        while not self._stopped.is_set():
            if self._engine.refusal() is not None or len(self._in_flight) >= IN_FLIGHT_MAX:
                return False
            fresh = self._inbox.rows(len(self._in_flight) + ROWS_PER_READ, self._in_flight)
            is_all = len(fresh) < ROWS_PER_READ
            if fresh and not self._checked_old:
                fresh = self._without_decided(fresh)
            for row in fresh:
                self._in_flight.add(row[1])
                self._post(*row)
            if is_all:
                self._checked_old = True
                return True
        return False

    def _without_decided(self, rows: list[Any]) -> list[Any]:
        reader = self._engine.store.reader()
        try:
            fresh = []
            for row in rows:
                if reader.reply(row[1]) is None:
                    fresh.append(row)
                else:
                    self._in_flight.add(row[1])
                    self._done.append((row[0], row[1]))
            return fresh
        finally:
            reader.close()

    def _post(self, row_id: int, command_id: bytes, at: int, version: int, body: bytes | None) -> None:
        ticket = CallTicket(lambda reply: self._settled(row_id, command_id, reply))
        problem = "its bytes changed on disk"
        if body is not None:
            try:
                command = decode_command(body)
            except (msgspec.DecodeError, ValueError) as error:
                problem = f"this release cannot read it ({error})"
            else:
                refused = admit(command)
                if not isinstance(command, SENDABLE):
                    problem = f"{type(command).__name__} is the engine's own"
                elif refused is not None:
                    problem = refused.message
                else:
                    if isinstance(command, Submit | PutSchedule):
                        command.at = self._engine_instant(at)
                    self._engine.repost(Post(command, ticket, None, command_id))
                    return
        refusal = InvalidSubmission(f"a command in the inbox was refused: {problem}", problems={"command": problem})
        logger.error("%s (sent at %d, version %d)", refusal, at, version)
        self._engine.ask(_refuse(command_id, refusal, ticket))

    def _engine_instant(self, at: int) -> int:
        """The engine's instant of when a row was written, by how long ago that was: the sender had only a wall clock.

        At least 1: the row may say anything, and an ``at`` of 0 is of what was submitted here.
        """
        clock = self._engine.clock
        return max(1, clock.now_us() - max(0, clock.wall_us() - at))

    def _settled(self, row_id: int, command_id: bytes, reply: Any) -> None:
        """It was decided, durably; or the engine ended before that, and the row must stay for the next one.

        Keeping a row too long does no harm (its recorded reply is found before it is decided again), forgetting it does.
        """
        if self._engine.fenced is None and not isinstance(reply, NotRunning):
            self._done.append((row_id, command_id))


def _refuse(command_id: bytes, refusal: ActionQueueError, ticket: CallTicket) -> Callable[[Turn], None]:
    def question(turn: Turn) -> None:
        turn.replies.append((command_id, refusal))
        turn.settled.append((ticket, refusal))

    return question
