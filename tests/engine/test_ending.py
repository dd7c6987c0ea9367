"""The end of an engine, in order or not: nobody who waits is left without an answer, nothing acknowledged is forgotten."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from actionqueue import ActionQueue, ActionQueueError
from actionqueue.core.control import Pause
from actionqueue.core.epochs import ConfirmClock, PruneHistory
from actionqueue.core.errors import CommitUnknown, NotRunning, StoreDamaged, StoreUnavailable
from actionqueue.core.state import COMPLETED, FAILED, State
from actionqueue.core.submission import Submit
from actionqueue.engine.effects import Effects
from actionqueue.engine.engine import Engine
from actionqueue.engine.housekeeping import Housekeeping
from actionqueue.engine.tickets import ThreadTicket
from actionqueue.engine.work import Ended, Turn
from actionqueue.store.memory import MemoryStore
from actionqueue.store.port import Reader
from tests.engine.rig import (
    UNSETTLED,
    Rows,
    Told,
    advance,
    ask,
    commands_in,
    engine_on,
    reading,
    reply_of,
    send,
    submission,
    submit,
)
from tests.process.support import PATIENCE_S, eventually
from tests.scenarios.world import Hand, ManualClock, engine_of

DAY_US = 86_400_000_000


class Armed:
    """A store's fault: raises from the moment it is armed."""

    def __init__(self, point: str = "after_write") -> None:
        self.point = point
        self.error: ActionQueueError | None = None

    def __call__(self, point: str) -> None:
        if self.error is not None and point == self.point:
            raise self.error


@contextmanager
def no_thread_dies() -> Iterator[None]:
    """An engine's thread that dies of an exception leaves everybody waiting."""
    died: list[str] = []
    before = threading.excepthook
    threading.excepthook = lambda args: died.append(f"{args.thread and args.thread.name}: {args.exc_value!r}")
    try:
        yield
    finally:
        threading.excepthook = before
    assert died == []


def is_error(reply: object) -> bool:
    return isinstance(reply, ActionQueueError)


def ended_of(engine: Engine, task_id: bytes) -> Any:
    ticket = ThreadTicket()
    engine.await_task(task_id, ticket)
    return reply_of(ticket)


def counts_of(engine: Engine) -> list[int]:
    found: list[int] = ask(engine, lambda state: list(state.counts))
    return found


# --- commands that were acknowledged ----------------------------------------------------------------------------------


class Stuck:
    """Takes the place of ``Effects.release``: holds the commit thread, and then fails."""

    def __init__(self, effects: Effects) -> None:
        self.arrived, self.opened = threading.Event(), threading.Event()
        self._release, self.armed = effects.release, False

    def __call__(self, turn: Turn) -> None:
        if not self.armed:
            self._release(turn)
            return
        self.arrived.set()
        assert self.opened.wait(PATIENCE_S)
        raise StoreUnavailable("input/output error while reading", cause="input/output error")


def test_an_engine_that_cannot_carry_out_a_commit_keeps_every_undecided_command_of_the_inbox(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What another process was told is durable is done by the next engine, exactly once."""
    store, inbox, hand = MemoryStore(), Rows(), Hand(slots=500)
    sent: dict[bytes, bytes] = {}
    with engine_on(store, hand) as engine, reading(engine, inbox) as reader:
        stuck = Stuck(engine.effects)
        monkeypatch.setattr(engine.effects, "release", stuck)
        ask(engine, lambda state: None)
        stuck.armed = True
        mine = submission()
        told = send(engine, Submit([mine]))
        assert stuck.arrived.wait(PATIENCE_S)
        for n in range(300):
            item = submission(f"key {n}" if n % 3 == 0 else None)
            sent[inbox.put(Submit([item]))] = item.task_id
        eventually(lambda: len(reader._in_flight) == len(sent), "they are in the mailbox")
        waiting = [send(engine, Submit([submission()])) for _ in range(5)]
        stuck.opened.set()

        assert is_error(reply_of(told)), "its commit is durable, but nobody knows what followed from it"
        assert all(is_error(reply_of(each)) for each in waiting)
        eventually(lambda: engine.fenced is not None, "the engine stops")
    decided = {command_id for command_id in sent if store.reader().reply(command_id) is not None}
    assert decided == set()
    assert commands_in(inbox) == set(sent)

    hand, clock = Hand(slots=500), ManualClock()
    with engine_on(store, hand, clock) as engine, reading(engine, inbox):
        expected = {mine.task_id, *sent.values()}
        advance(engine, clock, "10m")  # the one that was started is lost, and backs off
        done = []
        for _ in expected:
            attempt = hand.take()
            done.append(attempt.task_id)
            hand.returns(attempt)
        assert sorted(done) == sorted(expected)
        eventually(lambda: not commands_in(inbox), "what was decided is deleted")
        eventually(lambda: counts_of(engine)[COMPLETED] == len(expected), "all have completed")
        assert hand.handed_over == 0


def test_commands_whose_decision_is_durable_are_not_decided_again_by_the_next_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The commit that holds the decision is there; what follows from it failed, so its rows were not deleted."""
    store, inbox = MemoryStore(), Rows()
    with engine_on(store) as engine, reading(engine, inbox) as reader:
        ask(engine, lambda state: None)  # what opening commits has been let out: the next is the command's
        stuck = Stuck(engine.effects)
        stuck.opened.set()
        stuck.armed = True
        monkeypatch.setattr(engine.effects, "release", stuck)
        command_id = inbox.put(Submit([submission()]))
        eventually(lambda: engine.fenced is not None, "the engine stops")
        assert reader._in_flight == {command_id}
    assert store.reader().reply(command_id) is not None
    assert commands_in(inbox) == {command_id}

    hand, clock = Hand(), ManualClock()
    with engine_on(store, hand, clock) as engine, reading(engine, inbox):
        advance(engine, clock, "10m")  # it was started, and is lost
        hand.returns(hand.take())
        eventually(lambda: not commands_in(inbox), "it is deleted")
        assert counts_of(engine)[COMPLETED] == 1
        assert hand.handed_over == 0


def test_what_clients_were_acknowledged_runs_although_the_engine_was_fenced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same on files, through the public surface."""
    ran: list[int] = []
    path = tmp_path / "jobs.db"

    def make(role: Any) -> tuple[ActionQueue, Any]:
        queue = ActionQueue(path, role=role)

        @queue.task(name="work")
        async def work(n: int) -> int:
            ran.append(n)
            return n

        return queue, work

    queue, _ = make("engine")
    client, work = make("client")
    with queue.running():
        engine = engine_of(queue)
        stuck = Stuck(engine.effects)
        ask(engine, lambda state: None)
        monkeypatch.setattr(engine.effects, "release", stuck)
        stuck.armed = True
        for n in range(20):
            work.submit(n)
        assert stuck.arrived.wait(PATIENCE_S)
        for n in range(20, 40):
            work.submit(n)
        stuck.opened.set()
        eventually(lambda: engine.fenced is not None, "the engine stops")

    again, _ = make("engine")
    with again.running():
        assert again.run_until_idle(timeout=PATIENCE_S).runs["completed"] == 40
    client.close()
    assert sorted(ran) == list(range(40))
    assert again.verify().ok


def test_who_was_told_before_something_else_failed_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one commit, some of what follows has happened and some has not."""
    hand = Hand()
    with no_thread_dies(), engine_on(MemoryStore(), hand) as engine:
        item = submit(engine, submission(max_attempts=1))
        waiting, idle = Told(), Told()
        engine.await_task(item.task_id, waiting)
        engine.await_idle(idle)
        ask(engine, lambda state: None)

        def log(unfinished: Any) -> None:
            raise RuntimeError("a defect")

        monkeypatch.setattr(engine.effects, "_log", log)
        hand.raises(hand.take(), ValueError("it failed"))
        eventually(lambda: engine.fenced is not None, "the engine stops")
        eventually(lambda: idle.reply is not UNSETTLED, "everybody is told")
    assert isinstance(waiting.reply, Ended)
    assert waiting.reply.state == FAILED


# --- fences, from any thread ------------------------------------------------------------------------------------------


@contextmanager
def eager_threads() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("busy", range(8))
def test_whoever_sends_while_the_engine_is_fenced_is_answered(busy: int) -> None:
    """The commit thread fences while senders fill the mailbox, and others begin to wait for results."""
    fault = Armed()
    store = MemoryStore(fault=fault)
    told: list[ActionQueueError] = []
    tickets: list[ThreadTicket] = []
    posted = threading.Semaphore(0)

    def post(engine: Engine, n: int) -> None:
        while True:
            ticket = ThreadTicket()
            try:
                if n == 0:
                    engine.read(lambda reader: reader.projected_seq(), ticket)
                elif n == 1:
                    if engine.fenced is not None:
                        return
                    engine.await_task(waited_for.task_id, ticket)
                else:
                    item = submission(f"{n} {len(tickets)}" if n == 2 else None, handler="nobody's")
                    engine.post(Submit([item]), ticket)
            except ActionQueueError:
                return
            tickets.append(ticket)
            posted.release()
            if n < 2 and not ticket.wait(0.0):  # not faster than it is answered
                engine._wake.set()

    with no_thread_dies(), eager_threads(), engine_on(store) as engine:
        engine.on_fenced = told.append
        waited_for = submit(engine, submission(delay_us=DAY_US))
        idle = ThreadTicket()
        submit(engine)  # it runs, so the engine is not idle
        engine.await_idle(idle)
        tickets.append(idle)
        threads = [threading.Thread(target=post, args=(engine, n)) for n in range(5)]
        for thread in threads:
            thread.start()
        for _ in range(20 + 10 * busy):
            assert posted.acquire(timeout=PATIENCE_S)
        fault.error = CommitUnknown("fsync failed")
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        unanswered = sum(not ticket._is_settled and not ticket.wait(PATIENCE_S) for ticket in tickets)
        assert unanswered == 0, f"of {len(tickets)}"
        assert told == [fault.error]
        assert idle.reply is fault.error


def test_coroutines_that_wait_when_the_engine_is_fenced_are_answered() -> None:
    fault = Armed()
    queue, plain = make_queue(fault=fault)

    async def call(n: int) -> object:
        if n == 25:
            fault.error = CommitUnknown("fsync failed")
        match n % 3:
            case 0:
                return await plain.options(delay="1h", idempotency_key=f"{n}").asubmit(n)
            case 1:
                return await queue.astats()
            case _:
                return await (await plain.options(delay="1h").asubmit(n)).aresult()

    async def main() -> list[object]:
        async with queue:
            calls = asyncio.gather(*(call(n) for n in range(60)), return_exceptions=True)
            return await asyncio.wait_for(calls, PATIENCE_S)

    with no_thread_dies():
        answers = asyncio.run(main())
    assert all(is_error(answer) for answer in answers[2::3]), "each that waits for a result"


class Troublesome(Hand):
    """An executor that raises when it is asked about what runs, or to stop it."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.raises_in = method
        self.armed = False

    def running(self) -> list[bytes]:
        if self.armed and self.raises_in == "running":
            raise RuntimeError("no idea")
        return super().running()

    def stop(self, attempt_id: bytes, reason: str, *, force: bool) -> None:
        if self.armed and self.raises_in == "stop":
            raise RuntimeError("Event loop is closed")
        super().stop(attempt_id, reason, force=force)


@pytest.mark.parametrize("method", ["running", "stop"])
def test_an_executor_that_fails_while_the_engine_is_fenced_leaves_nobody_waiting(method: str) -> None:
    fault, hand = Armed(), Troublesome(method)
    told: list[ActionQueueError] = []
    with no_thread_dies(), engine_on(MemoryStore(fault=fault), hand) as engine:
        engine.on_fenced = told.append
        item = submit(engine)
        hand.take()
        waiting = ThreadTicket()
        engine.await_task(item.task_id, waiting)
        ask(engine, lambda state: None)
        hand.armed = True
        fault.error = CommitUnknown("fsync failed")
        tickets = [send(engine, Submit([submission(delay_us=DAY_US)]))]
        with suppress(ActionQueueError):
            tickets += [send(engine, Submit([submission(delay_us=DAY_US)])) for _ in range(200)]

        assert all(reply_of(ticket) is fault.error for ticket in tickets)
        assert reply_of(waiting) is fault.error
        assert told == [fault.error], "so that the store is let go"
        hand.armed = False


# --- the writer fails ---------------------------------------------------------------------------------------------------


@contextmanager
def held_up(engine: Engine) -> Iterator[None]:
    """What is sent inside is found by the writer in one step."""
    arrived, opened = threading.Event(), threading.Event()

    def wait(turn: Turn) -> None:
        arrived.set()
        assert opened.wait(PATIENCE_S)

    engine.ask(wait)
    assert arrived.wait(PATIENCE_S)
    try:
        yield
    finally:
        opened.set()


def break_decide(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    real = type(engine.writer.machine).decide

    def decide(self: Any, command: Any, now: int) -> Any:
        assert not isinstance(command, Pause), "a defect"
        return real(self, command, now)

    monkeypatch.setattr(type(engine.writer.machine), "decide", decide)


def break_question(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def question(turn: Turn) -> None:
        raise RuntimeError("a defect")

    engine.ask(question)


def break_hand_over(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def take_turn(now: int) -> Turn:
        raise RuntimeError("a defect")

    monkeypatch.setattr(engine.writer, "take_turn", take_turn)


def break_dispatch(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def start_ready(self: Any, *args: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(type(engine.writer.machine), "start_ready", start_ready)


@pytest.mark.parametrize("break_it", [break_decide, break_question, break_hand_over, break_dispatch])
def test_when_the_writer_fails_everybody_is_told(
    break_it: Callable[[Engine, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the one whose command was in hand, those before it in the same step, and those after it."""
    told: list[ActionQueueError] = []
    with no_thread_dies(), engine_on(MemoryStore()) as engine:
        engine.on_fenced = told.append
        item = submit(engine)
        tickets = [ThreadTicket() for _ in range(4)]
        engine.await_task(item.task_id, tickets[0])
        engine.await_idle(tickets[1])
        ask(engine, lambda state: None)
        with held_up(engine):
            break_it(engine, monkeypatch)
            engine.await_task(item.task_id, tickets[2])
            tickets += [send(engine, Submit([submission(key)])) for key in (None, "k")]
            tickets.append(send(engine, Pause("engine", "", "me")))
            tickets += [send(engine, Submit([submission(key)])) for key in (None, "l")]
            engine.read(lambda reader: reader.projected_seq(), tickets[3])
        for ticket in tickets:
            assert isinstance(reply_of(ticket), StoreDamaged)
        (error,) = told
        assert "a defect" in error.message
        with pytest.raises(StoreDamaged):
            send(engine, Submit([submission()]))
        monkeypatch.undo()


def test_what_raises_among_the_last_questions_keeps_nobody_from_an_answer() -> None:
    with no_thread_dies(), engine_on(MemoryStore()) as engine:

        def question(turn: Turn) -> None:
            raise RuntimeError("a defect")

        tickets = [ThreadTicket() for _ in range(3)]
        with held_up(engine):
            for ticket in tickets:
                engine.ask(question)
                engine.flush(ticket)
        for ticket in tickets:
            assert is_error(reply_of(ticket))


# --- reading that fails -------------------------------------------------------------------------------------------------


class Refusing(MemoryStore):
    """No reader can be opened while ``refuses``."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses = False

    def reader(self) -> Any:
        if self.refuses:
            raise StoreUnavailable("too many open files", cause="EMFILE")
        return super().reader()


def test_while_no_reader_can_be_opened_whoever_asks_is_told_so_and_later_it_works_again() -> None:
    store, hand = Refusing(), Hand()
    with no_thread_dies(), engine_on(store, hand) as engine:
        done = submit(engine)
        hand.returns(hand.take())
        eventually(lambda: engine.effects.recent, "it has ended")
        engine.effects.recent.clear()
        replies: list[Any] = []
        for refuses in (True, False):
            store.refuses = refuses
            tickets = [ThreadTicket() for _ in range(2)]
            engine.read(lambda reader: reader.projected_seq(), tickets[0])
            engine.await_task(done.task_id, tickets[1])
            tickets.append(send(engine, Submit([submission("k", delay_us=DAY_US)])))
            replies = [reply_of(ticket) for ticket in tickets]
            assert [isinstance(reply, StoreUnavailable) for reply in replies] == [refuses] * 3
        assert isinstance(replies[1], Ended)
        assert engine.fenced is None


def test_a_question_that_raises_is_answered_with_an_error_and_the_next_one_is_answered() -> None:
    def question(reader: Reader) -> None:
        raise ZeroDivisionError

    with no_thread_dies(), engine_on(MemoryStore()) as engine:
        tickets = [ThreadTicket() for _ in range(2)]
        engine.read(question, tickets[0])
        engine.read(lambda reader: 7, tickets[1])
        assert "ZeroDivisionError" in reply_of(tickets[0]).message
        assert reply_of(tickets[1]) == 7


# --- closing ------------------------------------------------------------------------------------------------------------


def send_read(engine: Engine, ticket: ThreadTicket, task_id: bytes) -> None:
    engine.read(lambda reader: reader.projected_seq(), ticket)


def send_await(engine: Engine, ticket: ThreadTicket, task_id: bytes) -> None:
    engine.await_task(task_id, ticket)


def send_await_idle(engine: Engine, ticket: ThreadTicket, task_id: bytes) -> None:
    engine.await_idle(ticket)


def send_submit(engine: Engine, ticket: ThreadTicket, task_id: bytes) -> None:
    engine.post(Submit([submission()]), ticket)


def send_with_key(engine: Engine, ticket: ThreadTicket, task_id: bytes) -> None:
    engine.post(Submit([submission("k")]), ticket)


def send_look_up(engine: Engine, ticket: ThreadTicket, task_id: bytes) -> None:
    try:
        engine.begin_lookup()
    finally:
        ticket.settle(None)


SENDERS = [send_read, send_await, send_await_idle, send_submit, send_with_key, send_look_up]
STAGES = ["writer begins", "writer ended", "commit begins", "commit ended", "lookups begins", "lookups ended", "closed"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("sender", SENDERS)
def test_whoever_was_let_in_before_the_engine_closed_is_answered_whenever_it_goes_on(
    sender: Callable[[Engine, ThreadTicket, bytes], None], stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread passes the check that the engine is open, and loses the processor before it puts its question."""
    ticket = ThreadTicket()
    arrived, opened = threading.Event(), threading.Event()

    def act() -> None:
        try:
            sender(engine, ticket, item.task_id)
        except ActionQueueError as error:
            ticket.settle(error)

    asker = threading.Thread(target=act)

    def late(put: Callable[[Any], None], what: Any) -> None:
        if threading.current_thread() is asker:
            arrived.set()
            assert opened.wait(PATIENCE_S)
        put(what)

    def go_on() -> None:
        opened.set()
        if stage in ("writer begins", "closed"):  # else it may be answered as late as at the end of closing
            return
        eventually(lambda: not asker.is_alive() or sender is send_look_up, "it has asked")

    with no_thread_dies(), engine_on(MemoryStore()) as engine:
        item = submit(engine, submission(delay_us=DAY_US))
        real_ask, real_post, real_join = engine.writer.ask, engine.writer.post, engine._join
        monkeypatch.setattr(engine.writer, "ask", lambda question: late(real_ask, question))
        monkeypatch.setattr(engine.writer, "post", lambda post: late(real_post, post))

        def join(thread: threading.Thread) -> None:
            name = thread.name.removeprefix("actionqueue-")
            if stage == f"{name} begins":
                go_on()
            real_join(thread)
            if stage == f"{name} ended":
                go_on()

        monkeypatch.setattr(engine, "_join", join)
        asker.start()
        assert arrived.wait(PATIENCE_S)
        engine.close(0.0)
        if stage == "closed":
            go_on()
        asker.join(PATIENCE_S)
        assert not asker.is_alive()
        reply_of(ticket)


@pytest.mark.parametrize("command", [ConfirmClock("me"), PruneHistory(0, None, "me")])
def test_what_housekeeping_is_asked_for_during_a_drain_is_refused(command: Any) -> None:
    """Housekeeping ends first; the engine still takes what comes."""
    with engine_on(MemoryStore()) as engine:
        housekeeping = Housekeeping(engine, DAY_US, DAY_US)
        engine.on_served = housekeeping.serve
        housekeeping.start()
        ticket = send(engine, ConfirmClock("me"))
        assert reply_of(ticket) is None
        housekeeping.stop()

        late = send(engine, command)

        assert isinstance(reply_of(late), NotRunning)


def test_what_housekeeping_was_doing_when_the_engine_was_fenced_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    arrived, opened = threading.Event(), threading.Event()
    fault = Armed("before_write")
    with no_thread_dies(), engine_on(MemoryStore(fault=fault)) as engine:
        housekeeping = Housekeeping(engine, DAY_US, DAY_US)
        engine.on_served = housekeeping.serve
        housekeeping.start()

        def finished(before: int) -> Any:
            arrived.set()
            assert opened.wait(PATIENCE_S)
            raise StoreUnavailable("busy", cause="busy")

        monkeypatch.setattr(housekeeping, "_finished", finished)
        ticket = send(engine, PruneHistory(engine.clock.now_us(), None, "me"))
        assert arrived.wait(PATIENCE_S)
        engine.fence(CommitUnknown("fsync failed"))
        opened.set()
        assert is_error(reply_of(ticket))
        housekeeping.stop()


def make_queue(store: str | Path = ":memory:", fault: Armed | None = None) -> tuple[ActionQueue, Any]:
    queue = ActionQueue(store, drain_timeout="0s")
    if fault is not None:
        queue.memory = MemoryStore(fault=fault)

    @queue.task(name="plain")
    def plain(n: int) -> int:
        return n

    return queue, plain


def in_thread(act: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """What it returns, or raises."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(act())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, found


def test_a_line_that_was_taken_before_the_queue_closed_gives_an_answer_afterwards() -> None:
    queue, plain = make_queue()
    with queue.running():
        handle = plain.options(delay="1h").submit(1)
        line = queue.line()
    sends: list[Callable[[ThreadTicket], None]] = [
        lambda ticket: line.await_task(handle.id.bytes, ticket),
        lambda ticket: line.read(lambda reader: None, ticket),
        lambda ticket: line.post(ConfirmClock("me"), ticket),
        lambda ticket: line.submit(Submit([submission()]), ticket),
    ]
    for send_late in sends:
        ticket = ThreadTicket()
        try:
            send_late(ticket)
        except NotRunning:
            continue
        assert isinstance(reply_of(ticket), NotRunning)


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hand]:
    """Runs plain handlers, that is, has the test end them."""
    from tests.scenarios.world import in_hand

    with in_hand(monkeypatch) as made:
        yield made


def idle_tickets(engine: Engine) -> int:
    def look(state: State) -> int:
        return len(engine._idle_tickets)

    found: int = ask(engine, look)
    return found


def test_run_until_idle_says_so_when_the_engine_is_fenced_meanwhile(hand: Hand) -> None:
    fault = Armed()
    queue, plain = make_queue(fault=fault)
    with queue.running():
        engine = engine_of(queue)
        plain.submit(1)
        hand.take()
        thread, found = in_thread(queue.run_until_idle)
        eventually(lambda: idle_tickets(engine) == 1, "it waits")
        fault.error = CommitUnknown("fsync failed")
        with pytest.raises(CommitUnknown):
            plain.submit(2)
        thread.join(PATIENCE_S)
        assert found == [fault.error]


def test_run_until_idle_says_so_when_the_engine_is_fenced_before_the_inbox_was_read(
    tmp_path: Path, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, plain = make_queue(tmp_path / "jobs.db")
    with queue.running():
        engine = engine_of(queue)
        assert queue.session is not None
        reader = queue.session._inbox_reader
        assert reader is not None
        plain.submit(1)
        hand.take()
        monkeypatch.setattr(engine, "trouble", StoreUnavailable("disk full", cause="full"))  # so nothing is read
        thread, found = in_thread(queue.run_until_idle)
        eventually(lambda: reader._asked, "it waits for the inbox")
        error = CommitUnknown("fsync failed")
        engine.fence(error)
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        assert isinstance(found[0], CommitUnknown | NotRunning)


def test_reading_the_inbox_to_its_end_is_over_when_the_reader_is() -> None:
    with engine_on(MemoryStore()) as engine:
        engine.trouble = StoreUnavailable("disk full", cause="full")
        with reading(engine, Rows()) as reader:
            thread, found = in_thread(lambda: reader.catch_up(threading.TIMEOUT_MAX))
            eventually(lambda: reader._asked, "it waits")
        thread.join(PATIENCE_S)
        assert found == [True]
        assert reader.catch_up(PATIENCE_S), "also when it has ended before"
        engine.trouble = None


def test_closing_a_queue_answers_everybody_who_reads_from_it() -> None:
    """Threads read as fast as they can while it closes; the many interleavings are in the tests above."""
    for _ in range(5):
        queue, _ = make_queue()
        queue.open_session()
        line = queue.line()
        begun = threading.Semaphore(0)
        states: list[str] = []

        def read() -> None:
            while True:
                ticket = ThreadTicket()
                try:
                    line.read(lambda reader: 1, ticket)  # noqa: B023 - joined below
                except NotRunning:
                    states.append("refused")  # noqa: B023
                    return
                begun.release()  # noqa: B023
                if not ticket.wait(PATIENCE_S):
                    states.append("waits for ever")  # noqa: B023
                    return

        with no_thread_dies(), eager_threads():
            threads = [threading.Thread(target=read, daemon=True) for _ in range(6)]
            for thread in threads:
                thread.start()
            for _ in range(30):
                assert begun.acquire(timeout=PATIENCE_S)
            queue.close()
            for thread in threads:
                thread.join(PATIENCE_S)
        assert states == ["refused"] * 6


def test_a_clock_and_a_hand_are_all_an_engine_needs() -> None:
    """The rig itself: one task, from its submission to its end."""
    clock, hand, store = ManualClock(), Hand(), MemoryStore()
    with engine_on(store, hand, clock) as engine:
        item = submit(engine)
        hand.returns(hand.take())
        assert ended_of(engine, item.task_id).state == COMPLETED
