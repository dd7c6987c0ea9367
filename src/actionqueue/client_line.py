"""The line of a process that is not the engine: commands through the inbox, answers from the store.

A submission without an idempotency key returns as soon as its row is durable; with one it waits up to ``decide_wait``
for the decision. Decisions and results are waited for by one watcher thread that looks into the store.

The tables lag behind decisions by up to 100 ms. Each reply says as of which sequence what it speaks of is in the log, and
whatever this line reads afterwards waits until the tables have come so far: a caller finds what it was told.

Which command carried a task's submission is remembered (``SentTasks``): a task whose key named another one lives on
under that one's id, and a refusal decided later is found there. The queue keeps that from session to session, and an
engine's line leaves the waits for what this process once sent through the inbox to this one.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from actionqueue.core.errors import ActionQueueError, NoEngine, NotRunning, StoreDamaged, StoreError, StoreUnavailable
from actionqueue.core.ids import fresh_id_bytes
from actionqueue.core.machine import Command
from actionqueue.core.spec import validate
from actionqueue.core.submission import Submit
from actionqueue.engine import lookups
from actionqueue.engine.tickets import LoopTicket, Ticket
from actionqueue.line import Decision, Read, answer_inline
from actionqueue.store.codec import decode_reply, encode_command, seq_of_reply
from actionqueue.store.filesystem import check_is_store_or_absent
from actionqueue.store.inbox import Inbox
from actionqueue.store.lock import read_holder
from actionqueue.store.port import Reader
from actionqueue.store.sqlite_reader import SQLiteReader

WATCH_S_FIRST, WATCH_S_MAX = 0.002, 0.05
IDLE_S = 5.0
SENT_MAX = 10_000
CONTROL_WAIT_S = 30.0
CATCH_UP_S_MAX = 5.0
"""How long reads wait for the tables; an engine that ends between a commit and its projection leaves that to the next."""
CATCH_UP_LOOK_S = 0.002
NO_ENGINE_WAIT_S = 5.0
"""How long a control waits for an engine to come; one that stands by takes over within two seconds."""


class Sent(Struct):
    """A submission of this process: the command that carried it, where in it, and what was decided, once known."""

    command_id: bytes
    index: int
    decision: Decision | None = None


class SentTasks:
    """The submissions that this process sent through inboxes, by task id; the last 10,000."""

    def __init__(self) -> None:
        self._sent: OrderedDict[bytes, Sent] = OrderedDict()
        self.commands_count = 0
        """Commands that were put into inboxes, of whatever kind."""
        self._lock = threading.Lock()

    def __contains__(self, task_id: bytes) -> bool:
        return task_id in self._sent

    def count(self) -> None:
        """One more command is in an inbox."""
        with self._lock:
            self.commands_count += 1

    def note(self, command_id: bytes, task_ids: list[bytes]) -> None:
        """That command carries these."""
        with self._lock:
            for index, task_id in enumerate(task_ids):
                self._sent[task_id] = Sent(command_id, index)
            while len(self._sent) > SENT_MAX:
                self._sent.popitem(last=False)

    def decision(self, task_id: bytes) -> Decision | None:
        """What is known here of the decision: (task id, run id, created)."""
        sent = self._sent.get(task_id)
        return None if sent is None else sent.decision

    def identify(self, task_id: bytes, reader: Reader) -> bytes:
        """The id that a submission's task has in the store. Raises its refusal."""
        sent = self._sent.get(task_id)
        if sent is None:
            return task_id
        decision = sent.decision
        if decision is None:
            body = reader.reply(sent.command_id)
            if body is None:
                return task_id
            reply = decode_reply(body)
            if isinstance(reply, ActionQueueError):
                raise reply
            found: Decision = reply[sent.index]
            decision = sent.decision = found
        return decision[0]


class Deciding(Struct, eq=False):
    """Someone waits for a command's reply until ``deadline`` (monotonic seconds), and then gets ``otherwise``."""

    command_id: bytes
    ticket: Ticket
    deadline: float
    otherwise: Any


class ClientLine:
    """See the module's head."""

    is_engine = False

    def __init__(self, store_path: Path, sent: SentTasks, *, decide_wait_s: float) -> None:
        self._path = store_path
        self._decide_wait_s = decide_wait_s
        self._inbox: Inbox | None = None
        self._lock = threading.Lock()
        self._sent = sent
        self._watched: list[tuple[bytes, Ticket]] = []
        self._deciding: list[Deciding] = []
        self._thread: threading.Thread | None = None
        self._bell = threading.Event()
        self._closed = False
        self._decided = (0, 0.0)
        """The latest sequence that a reply spoke of, and until when (monotonic seconds) reads wait for it."""

    # --- sending -----------------------------------------------------------------------------------------------

    def post(self, command: Command, ticket: Ticket) -> None:
        """Through the inbox; the ticket gets the engine's reply, or ``NoEngine`` when none has decided it in time.

        While no engine is on the store that is soon, and with a ``decide_wait`` of 0 at once.
        """

        def send() -> None:
            command_id = fresh_id_bytes()
            self._put(command_id, command)
            if self.engine_present():
                self._watch_decision(command_id, ticket, CONTROL_WAIT_S, _late_control(self._path))
            elif self._decide_wait_s:
                wait_s = max(self._decide_wait_s, NO_ENGINE_WAIT_S)
                self._watch_decision(command_id, ticket, wait_s, _no_engine(self._path))
            else:
                ticket.settle(_no_engine(self._path))

        _off_loop(ticket, send)

    def submit(self, command: Submit, ticket: Ticket) -> None:
        """Through the inbox."""
        for item in command.items:
            validate(item)
        _off_loop(ticket, lambda: self._submit(command, ticket))

    def _submit(self, command: Submit, ticket: Ticket) -> None:
        command_id = fresh_id_bytes()
        self._put(command_id, command)
        is_open = any(item.key is not None or item.task_id_given for item in command.items)
        self._sent.note(command_id, [item.task_id for item in command.items])
        if is_open:
            undecided = [(item.task_id, item.run_id, None) for item in command.items]
            self._watch_decision(command_id, ticket, self._decide_wait_s, undecided)
        else:
            ticket.settle([(item.task_id, item.run_id, True) for item in command.items])

    def _put(self, command_id: bytes, command: Command) -> None:
        body = encode_command(command)
        with self._lock:
            if self._closed:
                raise _closed()
            if self._inbox is None:
                check_is_store_or_absent(self._path)  # an inbox beside somebody else's file would wait for ever
                self._inbox = Inbox(self._path)
            inbox = self._inbox
        inbox.put(command_id, body, time.time_ns() // 1000)
        self._sent.count()

    @property
    def commands_count(self) -> int:
        """How many commands this process has put into inboxes."""
        return self._sent.commands_count

    def has_sent(self, task_id: bytes) -> bool:
        """Whether this process sent that submission through the inbox."""
        return task_id in self._sent

    def identify(self, task_id: bytes, reader: Reader) -> bytes:
        """The id that a submission's task has in the store. Raises its refusal."""
        return self._sent.identify(task_id, reader)

    # --- waiting -----------------------------------------------------------------------------------------------

    def _watch_decision(self, command_id: bytes, ticket: Ticket, wait_s: float, otherwise: Any) -> None:
        deciding = Deciding(command_id, ticket, time.monotonic() + wait_s, otherwise)
        self._watch_too(lambda: self._deciding.append(deciding))

    def await_task(self, task_id: bytes, ticket: Ticket) -> None:
        """The watcher finds out."""
        self._watch_too(lambda: self._watched.append((task_id, ticket)))

    def forget_waiter(self, task_id: bytes, ticket: Ticket) -> None:
        """Watch for it no more."""
        with self._lock:
            self._watched = [each for each in self._watched if each[1] is not ticket]

    def _watch_too(self, add: Callable[[], None]) -> None:
        with self._lock:
            if self._closed:
                raise _closed()
            add()
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="actionqueue-client", daemon=True)
                self._thread.start()
        self._bell.set()

    def _watch(self) -> None:
        pause_s = WATCH_S_FIRST
        reader: Reader | None = None
        while not self._closed:
            self._bell.clear()
            with self._lock:
                deciding, watched = list(self._deciding), list(self._watched)
            if not deciding and not watched:
                if not self._bell.wait(IDLE_S) and self._may_end():
                    break
                pause_s = WATCH_S_FIRST
                continue
            reader = reader or self._try_reader()
            try:
                settled = self._look(reader, deciding, watched)
            except StoreError:  # it cannot be read at this moment; the reader may be of a file that was replaced
                settled = False
                if reader is not None:
                    reader.close()
                reader = None
            pause_s = WATCH_S_FIRST if settled else min(pause_s * 1.3, WATCH_S_MAX)
            if not settled:
                self._bell.wait(pause_s)
        if reader is not None:
            reader.close()

    def _may_end(self) -> bool:
        with self._lock:
            if self._deciding or self._watched:
                return False
            self._thread = None
            return True

    def _try_reader(self) -> Reader | None:
        try:
            return SQLiteReader(self._path)
        except StoreError:
            return None

    def _look(self, reader: Reader | None, deciding: list[Deciding], watched: list[tuple[bytes, Ticket]]) -> bool:
        settled = False
        now = time.monotonic()
        for each in deciding:
            body = _reply(reader, each.command_id)
            if body is None and now < each.deadline:
                continue
            with self._lock:
                if each not in self._deciding:  # the line was closed meanwhile
                    continue
                self._deciding.remove(each)
                if body is not None:
                    self._decided = max(self._decided, (seq_of_reply(body), now + CATCH_UP_S_MAX))
            each.ticket.settle(decode_reply(body) if body is not None else each.otherwise)
            settled = True
        if reader is None or not watched or self._lags(reader):
            return settled
        try:
            known = reader.tasks_by_id([task_id for task_id, _ in watched])
        except StoreDamaged:  # whose row it is shows when each is asked for
            known = {}
        for task_id, ticket in watched:
            row = known.get(task_id)
            if row is not None and row[12] is None:
                continue
            ended = self._ended(reader, task_id)
            if ended is not None and self._forget(task_id, ticket):
                ticket.settle(ended)
                settled = True
        return settled

    def _ended(self, reader: Reader, task_id: bytes) -> Any:
        """How it ended, or the error that is all there will be; None while it goes on."""
        try:
            return lookups.ended(reader, self.identify(task_id, reader))
        except StoreUnavailable:
            raise
        except ActionQueueError as error:
            return error

    def _forget(self, task_id: bytes, ticket: Ticket) -> bool:
        with self._lock:
            if (task_id, ticket) not in self._watched:
                return False
            self._watched.remove((task_id, ticket))
            return True

    # --- reading -----------------------------------------------------------------------------------------------

    def read(self, question: Read, ticket: Ticket, *, absent: Callable[[], Any] | None = None) -> None:
        """On a read connection of this process, at most 100 ms behind the engine, and not behind its replies."""
        answer_inline(question, self._reader, ticket, absent)

    def _reader(self) -> Reader:
        reader = SQLiteReader(self._path)
        try:
            while self._lags(reader):
                time.sleep(CATCH_UP_LOOK_S)
        except BaseException:
            reader.close()
            raise
        return reader

    def _lags(self, reader: Reader) -> bool:
        """Whether the tables are still without something that a reply spoke of."""
        seq, until_s = self._decided
        return seq > 0 and reader.projected_seq() < seq and time.monotonic() < until_s

    def engine_present(self) -> bool:
        """Whether some process holds the store."""
        return read_holder(self._path) is not None

    def now_us(self, wall_shift: int) -> int:
        """By the wall clock."""
        return time.time_ns() // 1000 - wall_shift

    def close(self) -> None:
        """Stop watching; whoever still waits is told so."""
        with self._lock:
            self._closed = True
            inbox, self._inbox = self._inbox, None
            waiting = [each.ticket for each in self._deciding] + [ticket for _, ticket in self._watched]
            self._deciding, self._watched = [], []
            thread = self._thread
        self._bell.set()
        for ticket in waiting:
            ticket.settle(_closed())
        if inbox is not None:
            inbox.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join(IDLE_S)


def _reply(reader: Reader | None, command_id: bytes) -> bytes | None:
    """The decision, if it can be read; whoever waits for it has a deadline."""
    try:
        return None if reader is None else reader.reply(command_id)
    except StoreError:
        return None


def _off_loop(ticket: Ticket, send: Callable[[], None]) -> None:
    """Write to the inbox in this thread, or, for a coroutine, in one that may wait for the disk."""
    if not isinstance(ticket, LoopTicket):
        send()
        return

    def guarded() -> None:
        try:
            send()
        except ActionQueueError as error:
            ticket.settle(error)

    _ = ticket.loop.run_in_executor(None, guarded)


def _closed() -> NotRunning:
    return NotRunning("the queue was closed; what was acknowledged is in the inbox or the store")


def _late_control(path: Path) -> ActionQueueError:
    return NoEngine(
        f"the engine on {path} has not decided the command within {CONTROL_WAIT_S:g} s; it waits in the inbox and "
        "will be decided all the same",
        queued=1,
    )


def _no_engine(path: Path) -> ActionQueueError:
    return NoEngine(
        f"no engine runs on {path}; the command waits in the inbox and will be decided when one does", queued=1
    )
