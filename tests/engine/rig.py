"""The engine's parts, driven by hand.

``WriterRig`` is a writer on a store in memory whose turns the test takes, commits and releases, in whatever order and
as late as it likes: what the threads of an engine do once in a million times is written down here as a sequence.

``engine_on`` is a whole engine, with its threads, whose attempts a ``Hand`` holds; ``Rows`` and ``Bell`` stand in for
the inbox. Every wait has a deadline, none sleeps.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Any

from actionqueue.core.attempts import Finish
from actionqueue.core.check import check
from actionqueue.core.epochs import Prune
from actionqueue.core.ids import IdSource, fresh_id_bytes
from actionqueue.core.machine import Command, Machine
from actionqueue.core.retry import AttemptTerms
from actionqueue.core.rows import Row
from actionqueue.core.spec import Submission
from actionqueue.core.state import Outcome, Output, State
from actionqueue.core.submission import Submit
from actionqueue.engine import lookups
from actionqueue.engine.engine import Engine
from actionqueue.engine.inbox import InboxReader
from actionqueue.engine.tickets import ThreadTicket
from actionqueue.engine.work import Ended, Post, Turn
from actionqueue.engine.writer import Writer
from actionqueue.executors.port import Assignment, Executor
from actionqueue.store.codec import EVENTS_VERSION, chain, digest, encode_command, encode_events, encode_reply
from actionqueue.store.memory import MemoryStore
from actionqueue.store.port import Batch, Commit, Opened, Reader, Store
from actionqueue.verify import verify
from tests.executors.handlers import FakeRunnable
from tests.process.support import PATIENCE_S
from tests.scenarios.world import SECOND, START, Hand, ManualClock

DAY = 86_400 * SECOND
HANDLER = "h"
UNSETTLED = object()

_serial = itertools.count()


def submission(key: str | None = None, **fields: Any) -> Submission:
    """One task for the handler, with a body of its own (so that a mix-up shows)."""
    body = fields.pop("body", None) or b'{"n":%d}' % next(_serial)
    content = digest(b"the same") if key is not None or fields.get("task_id_given") else None
    task_id = fields.pop("task_id", None) or fresh_id_bytes()
    return Submission(
        task_id, fresh_id_bytes(), fields.pop("handler", HANDLER), body, digest(body), key=key,
        content=fields.pop("content", content), **fields,
    )  # fmt: skip


def finished(assignment: Assignment, outcome: Outcome, **facts: Any) -> Finish:
    """The report of an attempt's end."""
    if outcome is Outcome.COMPLETED and "body" in facts:
        facts["output"] = Output(digest(facts["body"]), len(facts["body"]))
    return Finish(assignment.run_id, assignment.attempt_id, assignment.fence, outcome, **facts)


def prune_of(rows: Sequence[Row], as_of: int) -> Prune:
    """What housekeeping sends for rows that it has read."""
    completed, failed, canceled = (sum(row[n] for row in rows) for n in (9, 10, 11))
    return Prune(len(rows), completed, failed, canceled, 0, [row[0] for row in rows], as_of)


class Told:
    """A ticket that keeps what it was told, once."""

    def __init__(self) -> None:
        self.reply: Any = UNSETTLED

    def settle(self, reply: Any) -> None:
        assert self.reply is UNSETTLED, "told twice"
        self.reply = reply


class WriterRig:
    """See the module's head. ``run`` is what an engine with a quick disk does."""

    def __init__(self, slots: int = 10, store: Store | None = None, seed: int = 7) -> None:
        self.store = MemoryStore() if store is None else store
        self.opened = self.store.open(pid=1, host="rig")
        self.machine = recovered(self.store, self.opened)
        self.now = max(START, self.machine.state.last_at)
        self.writer = Writer(self.machine, IdSource(random.Random(seed).randbytes).next, stop_grace_us=60 * SECOND)
        self.writer.runnables = {HANDLER: (FakeRunnable(_nothing, name=HANDLER), "x", AttemptTerms())}
        self.recent: dict[bytes, Ended] = self.writer.recent
        self.started: list[Assignment] = []
        self.looked_up = 0
        self._hash, self._seq = self.opened.last_hash, self.opened.last_seq
        self.machine.state.places.set_executor("x", slots)
        self.register()
        self.writer.turn.events += self.machine.open(self.now, self.opened.epoch, 1, "rig", "0", 0.5)
        self.writer.ask_projection()
        self.run()

    @property
    def state(self) -> State:
        return self.machine.state

    @property
    def reader(self) -> Reader:
        return self.store.reader()

    def register(self) -> None:
        """The handler, anew."""
        self.state.places.register(HANDLER, "x", AttemptTerms())

    # --- the threads of an engine, one move at a time ---------------------------------------------------------------

    def step(self) -> None:
        self.writer.step(self.now)

    def take(self) -> Turn:
        """What was decided, on its way to the disk."""
        turn = self.writer.take_turn(self.now)
        assert turn is not None, "nothing was decided"
        return turn

    def commit(self, turn: Turn) -> None:
        commit = None
        if turn.events:
            body = encode_events(turn.events)
            last_seq = self._seq + len(turn.events)
            hashed = chain(self._hash, body)
            commit = Commit(
                self._seq + 1, last_seq, turn.events[-1].at, self.opened.epoch, EVENTS_VERSION, body, hashed
            )
        replies = [(command_id, encode_reply(reply), self.now + DAY) for command_id, reply in turn.replies]
        self.store.commit(
            Batch(commit, self._seq, self.opened.epoch, turn.blobs, turn.projection, replies, turn.pruned_tasks)
        )
        if commit is not None:
            self._seq, self._hash = commit.last_seq, commit.hash

    def release(self, turn: Turn, *, look_up: bool = True) -> list[Post]:
        """Let out what it implies; the look-ups it asks for are made, or returned."""
        self.recent |= dict(turn.ended)
        for assignments in turn.starts.values():
            self.started += assignments
        for ticket, reply in turn.settled:
            ticket.settle(reply)
        for task_id, ticket in turn.awaiting:
            ticket.settle(lookups.ended(self.reader, task_id))
        if look_up:
            for post in turn.lookups:
                self.look_up(post)
        return turn.lookups

    def read_facts(self, post: Post) -> None:
        """The first half of a look-up."""
        self.looked_up += 1
        reader = self.reader
        post.as_of, post.failure = reader.projected_seq(), None
        lookups.attach(reader, post.command)

    def look_up(self, post: Post) -> None:
        """The look-up of what a command needs."""
        self.read_facts(post)
        self.writer.post(post)

    def move(self) -> Turn:
        """One step, one commit, and its effects."""
        self.step()
        turn = self.take()
        self.commit(turn)
        self.release(turn)
        return turn

    def run(self) -> None:
        """Until there is nothing left to do at this instant."""
        for _ in range(100):
            self.step()
            turn = self.writer.take_turn(self.now)
            if turn is not None:
                self.commit(turn)
                self.release(turn)
            elif not self.writer.has_work():
                return
        raise AssertionError("it does not come to rest")

    # --- what callers and executors do ------------------------------------------------------------------------------

    def post(self, command: Command, command_id: bytes | None = None) -> Told:
        told = Told()
        self.writer.post(Post(command, told, None, command_id))
        return told

    def await_task(self, task_id: bytes) -> Told:
        told = Told()
        self.writer.await_task(task_id, told)
        return told

    def submit(self, item: Submission) -> Assignment | None:
        """Submitted and, where it may start, started: its attempt."""
        before = len(self.started)
        told = self.post(Submit([item]))
        self.run()
        assert told.reply == [(item.task_id, item.run_id, True)]
        return self.started[-1] if len(self.started) > before else None

    def finish(self, outcome: Outcome, **facts: Any) -> None:
        """The attempt that was started last has ended."""
        self.writer.mailbox.append(finished(self.started[-1], outcome, **facts))

    def end(self, outcome: Outcome = Outcome.COMPLETED, **facts: Any) -> None:
        """The same, and everybody knows."""
        self.finish(outcome, **facts)
        self.run()

    def choose(self) -> tuple[int, list[Row]]:
        """What housekeeping finds to prune: the sequence it is as of, and the rows."""
        self.writer.count_lookup(1)
        reader = self.reader
        return reader.projected_seq(), reader.finished_before(self.now, 500)

    def post_prune(self, chosen: tuple[int, list[Row]]) -> Told:
        told = Told()
        as_of, rows = chosen
        self.writer.post(Post(prune_of(rows, as_of), told, as_of))
        return told

    def check(self) -> None:
        """What was written is what was decided, and the state is sound."""
        self.writer.ask_projection()
        self.run()
        assert check(self.state) == []
        report = verify(self.reader, name="the rig's")
        assert report.problems == (), str(report)
        assert self.writer._looking_up == 0, "a look-up that nobody makes would keep everything in memory"


def recovered(store: Store, opened: Opened) -> Machine:
    """What an engine that opens the store recovers: the live rows, then the log's tail; nothing is written."""
    return Engine(store, [], fresh_id)._load(opened)


def fresh_id(now: int) -> bytes:
    """One that comes from no seed."""
    return fresh_id_bytes()


def _nothing(control: object, argument: object) -> None:
    return None


# --- a whole engine ---------------------------------------------------------------------------------------------------


@contextmanager
def engine_on(
    store: MemoryStore, hand: Executor | None = None, clock: ManualClock | None = None, **facts: Any
) -> Iterator[Engine]:
    """An engine on a store in memory, with one handler; closed at the end, without waiting for what runs."""
    hand = hand or Hand()
    runnable = FakeRunnable(_nothing, name=HANDLER)
    shown = clock or ManualClock()
    engine = Engine(
        store, [hand], IdSource(random.Random(7).randbytes).next, clock=lambda not_before_us: shown, **facts
    )
    engine.register(runnable, hand.name, AttemptTerms())
    engine.open()
    try:
        yield engine
    finally:
        engine.close(0.0)


def send(engine: Engine, command: Command) -> ThreadTicket:
    """A command on its way."""
    ticket = ThreadTicket()
    engine.post(command, ticket)
    return ticket


def reply_of(ticket: ThreadTicket) -> Any:
    """What the ticket was told; errors as values."""
    assert ticket.wait(PATIENCE_S), "nobody answers"
    return ticket.reply


def submit(engine: Engine, item: Submission | None = None) -> Submission:
    """A task, durable."""
    item = item or submission()
    assert reply_of(send(engine, Submit([item]))) == [(item.task_id, item.run_id, True)]
    return item


def ask(engine: Engine, question: Callable[[State], Any]) -> Any:
    """What is found in the state, on the writer's thread, when everything decided before is durable and let out."""
    found: list[Any] = []
    ticket = ThreadTicket()

    def look(turn: Turn) -> None:
        found.append(question(engine.writer.machine.state))
        engine.writer.ask_projection()
        turn.settled.append((ticket, None))

    engine.ask(look)
    assert reply_of(ticket) is None
    return found[0]


def advance(engine: Engine, clock: ManualClock, duration: str) -> None:
    """Time passes, and the engine has done what that implies."""
    clock.move(duration)
    for _ in range(2):  # what the first look starts is handed out before the second is answered
        ask(engine, lambda state: None)


def commands_in(inbox: Rows) -> set[bytes]:
    """The commands that wait there."""
    return {row[1] for row in inbox.rows(1_000_000)}


class Rows:
    """An inbox in memory: ``engine.inbox.Rows``, and the senders' side."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[int, bytes, int, int, bytes]] = {}
        self._serial = itertools.count(1)
        self._lock = threading.Lock()

    def put(self, command: Command, at: int = START) -> bytes:
        """Acknowledged when it returns: the id of the command."""
        return self.put_body(encode_command(command), at)

    def put_body(self, body: bytes, at: int = START) -> bytes:
        """The same, of what may be no command."""
        command_id, row_id = fresh_id_bytes(), next(self._serial)
        with self._lock:
            self._rows[row_id] = (row_id, command_id, at, 1, body)
        return command_id

    def rows(self, limit: int, known: AbstractSet[bytes] = frozenset()) -> list[Any]:
        with self._lock:
            oldest = sorted(self._rows.values())[:limit]
        return [row for row in oldest if row[1] not in known]

    def delete(self, rows: list[tuple[int, bytes]]) -> None:
        with self._lock:
            for row_id, _ in rows:
                self._rows.pop(row_id, None)

    def close(self) -> None:
        """It outlives its reader."""


class Bell:
    """Rings when it is told to; else at each of the reader's polls."""

    def __init__(self) -> None:
        self._rung = threading.Event()

    def ring(self) -> None:
        self._rung.set()

    def wait(self, timeout_s: float) -> None:
        self._rung.wait(min(timeout_s, 0.01))
        self._rung.clear()

    def close(self) -> None:
        """Nothing to let go of."""


@contextmanager
def reading(engine: Engine, inbox: Rows) -> Iterator[InboxReader]:
    """The thread that moves commands from the inbox to the engine."""
    reader = InboxReader(engine, inbox, Bell())
    reader.start()
    try:
        yield reader
    finally:
        reader.stop()
