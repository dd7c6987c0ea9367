"""Handing attempts over: what cannot be started now is started later, uncounted; what never can be fails for good."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actionqueue import ActionQueue
from actionqueue.core.control import CancelRun
from actionqueue.core.errors import StoreDamaged, StoreUnavailable
from actionqueue.core.run import RunState
from actionqueue.core.spec import Submission, TaskOptions
from actionqueue.core.state import CANCELED, COMPLETED, FAILED, State
from actionqueue.core.submission import Submit
from actionqueue.engine import writer as writers
from actionqueue.engine.effects import RECENT_ENDED_MAX, Effects
from actionqueue.engine.engine import Engine
from actionqueue.engine.tickets import ThreadTicket
from actionqueue.engine.work import Ended
from actionqueue.executors.endings import TerminalFailure
from actionqueue.executors.port import Assignment
from actionqueue.store.memory import MemoryReader, MemoryStore
from actionqueue.verify import verify
from tests.engine.rig import WriterRig, advance, ask, engine_on, reply_of, send, submission
from tests.process.support import PATIENCE_S, eventually
from tests.scenarios.world import Hand, ManualClock

HOUR_US = 3_600_000_000


class Balking(Hand):
    """Raises when attempts are handed to it, ``times`` times, after it has taken so many of them."""

    def __init__(self, times: int, takes: int = 0) -> None:
        super().__init__(slots=10)
        self.times = times
        self.takes = takes
        self.handed: list[bytes] = []

    def start(self, assignments: Sequence[Assignment]) -> None:
        self.handed += [each.attempt_id for each in assignments]
        if self.times == 0:
            super().start(assignments)
            return
        self.times -= 1
        super().start(assignments[: self.takes])
        raise RuntimeError("can't start new thread")


class Counting(Hand):
    """Remembers the most attempts it had at once."""

    most = 0

    def start(self, assignments: Sequence[Assignment]) -> None:
        try:
            super().start(assignments)
        finally:
            self.most = max(self.most, len(self.running()))


def submit_all(engine: Engine, *items: Submission) -> None:
    """In one command, so that they start in one turn."""
    reply_of(send(engine, Submit(list(items))))


def look_at(engine: Engine, item: Submission) -> tuple[RunState, str, int, int]:
    """State, reason, attempts, counted failures."""

    def look(state: State) -> Any:
        run = state.runs[item.run_id]
        return run.state, run.reason, run.attempt_count, run.failure_count

    found: tuple[RunState, str, int, int] = ask(engine, look)
    return found


def ended(engine: Engine, item: Submission) -> Ended:
    ticket = ThreadTicket()
    engine.await_task(item.task_id, ticket)
    reply = reply_of(ticket)
    assert isinstance(reply, Ended)
    return reply


def check_sound(store: MemoryStore) -> None:
    report = verify(store.reader(), name="memory")
    assert report.ok, str(report)


def complete(hand: Hand, *items: Submission) -> None:
    """Each of them is handed over once, with its own arguments, and completes."""
    wanted = {item.task_id: item.body for item in items}
    for _ in items:
        attempt = hand.take()
        assert attempt.payload == wanted.pop(attempt.task_id)
        assert attempt.failure_count == 0
        hand.returns(attempt)


# --- executors that cannot start ----------------------------------------------------------------------------------------


def test_what_an_executor_cannot_start_is_put_off_uncounted_and_runs_later() -> None:
    store, hand, clock = MemoryStore(), Balking(times=3), ManualClock()
    items = [submission(max_attempts=1) for _ in range(3)]
    with engine_on(store, hand, clock) as engine:
        submit_all(engine, *items)
        for n in (1, 2, 3):
            eventually(lambda: hand.times == 3 - n, "it has been tried")  # noqa: B023
            eventually(lambda: look_at(engine, items[-1])[0] is RunState.RETRY_WAIT, "it is put off")
            assert [look_at(engine, item) for item in items] == [(RunState.RETRY_WAIT, "not_started", n, 0)] * 3
            assert hand.running() == []
            advance(engine, clock, "1s")
        complete(hand, *items)
        assert [ended(engine, item).state for item in items] == [COMPLETED] * 3
        assert engine.fenced is None
        assert ask(engine, lambda state: len(state.places.executors["thread"].running)) == 0
    check_sound(store)


def test_an_executor_never_has_more_attempts_than_slots_also_where_one_is_given_up() -> None:
    """The turn that gives one up starts the next in its slot."""
    hand = Counting(slots=1)
    first, second = submission(), submission()
    with engine_on(MemoryStore(), hand) as engine:
        submit_all(engine, first, second)
        hand.take()
        reply_of(send(engine, CancelRun(first.run_id, "abandon", "me")))
        assert hand.take().run_id == second.run_id
        assert look_at(engine, second)[0] is RunState.RUNNING
        assert hand.most == 1


def test_what_is_granted_and_given_up_in_one_turn_never_begins() -> None:
    rig = WriterRig()
    item = submission()
    rig.post(Submit([item]))
    rig.step()
    rig.post(CancelRun(item.run_id, "abandon", "me"))
    rig.step()
    turn = rig.take()
    hand = Hand(name="x")
    engine = SimpleNamespace(executors={"x": hand}, store=rig.store, report=rig.writer.mailbox.extend)
    Effects(engine).release(turn)  # type: ignore[arg-type]
    assert hand.handed_over == 0


def test_what_it_did_start_before_it_failed_is_left_to_run() -> None:
    store, hand, clock = MemoryStore(), Balking(times=1, takes=2), ManualClock()
    items = [submission(max_attempts=1) for _ in range(5)]
    with engine_on(store, hand, clock) as engine:
        submit_all(engine, *items)
        taken = [hand.take() for _ in range(2)]
        eventually(lambda: look_at(engine, items[-1])[0] is RunState.RETRY_WAIT, "the others are put off")
        for attempt in taken:
            hand.returns(attempt)
        advance(engine, clock, "1s")
        started = {attempt.task_id for attempt in taken}
        complete(hand, *(item for item in items if item.task_id not in started))
        assert [ended(engine, item).state for item in items] == [COMPLETED] * 5
        assert len(hand.handed) == 5 + 3
        assert hand.handed_over == 0
    check_sound(store)


def test_one_executor_that_fails_does_not_keep_another_from_starting() -> None:
    ran: list[str] = []
    queue = ActionQueue(":memory:")

    @queue.task(name="async", retry=None)
    async def in_loop() -> None:
        ran.append("async")

    @queue.task(name="thread")
    def in_thread() -> None:
        ran.append("thread")

    with queue.running():
        session = queue.session
        assert session is not None
        assert session.engine is not None
        threads = session.engine.executors["thread"]
        real, failed = threads.start, list[bool]()

        def start(assignments: Sequence[Assignment]) -> None:
            if not failed:
                failed.append(True)
                raise RuntimeError("can't start new thread")
            real(assignments)

        threads.start = start  # type: ignore[method-assign]
        first, second = queue.submit_many([queue.handlers["thread"].bind(), queue.handlers["async"].bind()])
        second.result(timeout=PATIENCE_S)
        assert ran == ["async"]
        assert first.state() == "retry_wait"
        queue.reschedule(first.run_id, first.runs()[0].created_at)  # rather than wait for its second
        first.result(timeout=PATIENCE_S)
        (run,) = first.runs()
        assert [(attempt.outcome, attempt.reason) for attempt in run.attempts] == [
            ("interrupted", "not_started"),
            ("completed", ""),
        ]


class Stubborn(Hand):
    """Raises in one of the port's methods."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.raises_in = method

    def stop(self, attempt_id: bytes, reason: str, *, force: bool) -> None:
        super().stop(attempt_id, reason, force=force)
        if self.raises_in == "stop":
            raise RuntimeError("Event loop is closed")

    def abandon(self, attempt_id: bytes) -> None:
        super().abandon(attempt_id)
        if self.raises_in == "abandon":
            raise RuntimeError("Event loop is closed")


@pytest.mark.parametrize("method", ["stop", "abandon"])
def test_an_executor_that_cannot_stop_an_attempt_keeps_nothing_else_from_happening(method: str) -> None:
    store, hand, clock = MemoryStore(), Stubborn(method), ManualClock()
    items = [submission(max_attempts=1) for _ in range(2)]
    with engine_on(store, hand, clock) as engine:
        submit_all(engine, *items)
        for _ in items:
            hand.take()
        for item in items:
            assert reply_of(send(engine, CancelRun(item.run_id))) is True
        advance(engine, clock, "61s")
        assert [ended(engine, item).state for item in items] == [CANCELED] * 2
        assert (len(hand.stops), len(hand.abandoned)) == (2, 2)
        later = submission()
        submit_all(engine, later)
        complete(hand, later)
        assert engine.fenced is None
    check_sound(store)


def test_an_attempt_that_is_given_up_before_it_is_durable_never_begins() -> None:
    """It was granted and abandoned while an earlier commit was under way: both are in the next one."""
    busy, go_on = threading.Event(), threading.Event()

    def wait(point: str) -> None:
        if point == "before_write" and busy.is_set():
            assert go_on.wait(PATIENCE_S)

    store, hand = MemoryStore(fault=wait), Hand()
    first, second = submission(), submission()
    with engine_on(store, hand) as engine:
        ask(engine, lambda state: None)  # what opening wrote is durable
        busy.set()
        tickets = [send(engine, Submit([first]))]
        eventually(lambda: not engine.writer.mailbox and not engine.writer.turn.events, "the first commit is under way")
        tickets.append(send(engine, Submit([second])))
        eventually(lambda: len(engine.writer.turn.events) == 2, "the second run was granted")
        tickets.append(send(engine, CancelRun(second.run_id, how="abandon")))
        eventually(lambda: len(engine.writer.turn.events) == 3, "the second run was granted and given up")
        go_on.set()
        for ticket in tickets:
            reply_of(ticket)
        assert hand.take().run_id == first.run_id
        assert hand.handed_over == 0
        assert ended(engine, second).state == CANCELED


# --- when the clock of a timeout starts ---------------------------------------------------------------------------------


class Telling(Hand):
    """Says when it calls a handler."""

    tells_calls = True


def test_where_getting_ready_takes_a_while_a_timeout_counts_from_the_call() -> None:
    store, hand, clock = MemoryStore(), Telling(), ManualClock()
    item = submission(max_attempts=1, options=TaskOptions(timeout_us=1_000_000))
    with engine_on(store, hand, clock) as engine:
        submit_all(engine, item)
        attempt = hand.take()
        advance(engine, clock, "1h")
        assert hand.stops == []

        hand.calls(attempt)
        ask(engine, lambda state: None)
        advance(engine, clock, "999999us")
        assert hand.stops == []
        advance(engine, clock, "1us")
        assert hand.stops == [(attempt.attempt_id, "timed_out")]
        hand.returns(attempt)
        assert ended(engine, item).reason == "timed_out"
        hand.calls(attempt)  # which nobody listens to any more
        advance(engine, clock, "1h")
        assert not engine.writer.stopping
    check_sound(store)


def test_elsewhere_it_counts_from_the_start_of_the_attempt() -> None:
    hand, clock = Hand(), ManualClock()
    with engine_on(MemoryStore(), hand, clock) as engine:
        submit_all(engine, submission(options=TaskOptions(timeout_us=1_000_000)))
        attempt = hand.take()
        advance(engine, clock, "1s")
        assert hand.stops == [(attempt.attempt_id, "timed_out")]
        hand.raises(attempt, TerminalFailure())


# --- arguments that have left memory ------------------------------------------------------------------------------------


@pytest.fixture
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """No arguments are kept in memory: each start reads them."""
    monkeypatch.setattr(writers, "PAYLOAD_CACHE_BYTES", 0)


def test_arguments_that_have_left_memory_are_read_when_the_attempt_starts(nothing_kept: None) -> None:
    store, hand = MemoryStore(), Hand()
    items = [submission() for _ in range(3)]
    with engine_on(store, hand) as engine:
        submit_all(engine, *items)
        complete(hand, *items)
    check_sound(store)


@pytest.mark.parametrize("failing", ["opening a reader", "reading"])
def test_attempts_whose_arguments_cannot_be_read_for_the_moment_are_put_off_uncounted(
    failing: str, nothing_kept: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [StoreUnavailable("locked by another process", cause="busy") for _ in range(2)]
    owner, name = (MemoryStore, "reader") if failing == "opening a reader" else (MemoryReader, "blobs")
    real = getattr(owner, name)

    def fail(self: Any, *args: Any) -> Any:
        if failures and armed:
            raise failures.pop()
        return real(self, *args)

    armed: list[bool] = []
    store, hand, clock = MemoryStore(), Hand(), ManualClock()
    items = [submission(max_attempts=1) for _ in range(3)]
    with engine_on(store, hand, clock) as engine:
        monkeypatch.setattr(owner, name, fail)
        armed.append(True)
        submit_all(engine, *items)
        for left in (1, 0):
            eventually(lambda: len(failures) == left, "it has been tried")  # noqa: B023
            eventually(lambda: look_at(engine, items[-1])[0] is RunState.RETRY_WAIT, "it is put off")
            assert [look_at(engine, item)[1:] for item in items] == [("not_started", 2 - left, 0)] * 3
            assert hand.handed_over == 0
            advance(engine, clock, "1s")
        complete(hand, *items)
        assert [ended(engine, item).state for item in items] == [COMPLETED] * 3
        assert engine.fenced is None
    check_sound(store)


def test_after_a_reader_has_failed_arguments_are_read_by_another_one(
    nothing_kept: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it holds may be of a file that was moved away: it would fail for ever."""
    stale: list[MemoryReader] = []
    real = MemoryReader.blobs

    def blobs(self: MemoryReader, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        if not stale:
            stale.append(self)
        if self is stale[0]:
            raise StoreUnavailable("disk I/O error", cause="io")
        return real(self, ids)

    monkeypatch.setattr(MemoryReader, "blobs", blobs)
    hand, clock, item = Hand(), ManualClock(), submission(max_attempts=1)
    with engine_on(MemoryStore(), hand, clock) as engine:
        submit_all(engine, item)
        eventually(lambda: look_at(engine, item)[0] is RunState.RETRY_WAIT, "it is put off")
        advance(engine, clock, "1s")
        complete(hand, item)


@pytest.mark.parametrize("damage", [b"other bytes", None])
def test_an_attempt_whose_arguments_are_damaged_fails_for_good_and_the_others_start(
    damage: bytes | None, nothing_kept: None
) -> None:
    store, hand = MemoryStore(), Hand()
    bad, good = submission(max_attempts=5, delay_us=HOUR_US), submission(delay_us=HOUR_US)
    clock = ManualClock()
    with engine_on(store, hand, clock) as engine:
        submit_all(engine, bad, good)
        blobs = store._tables.blobs
        blobs.pop(bad.task_id)
        if damage is not None:
            blobs[bad.task_id] = damage
        advance(engine, clock, "1h")
        complete(hand, good)
        told = ended(engine, bad)
        assert (told.state, told.reason) == (FAILED, "payload_damaged")
        assert told.error is not None
        assert "digest" in told.error.message
        assert ended(engine, good).state == COMPLETED
        assert hand.handed_over == 0
        assert len(hand._controls) == 0
        assert engine.fenced is None
    row = store.reader().runs_by_id([bad.run_id])[bad.run_id]
    assert row[15] == 1, "one attempt, and no more"


@pytest.mark.parametrize("is_local", [True, False])
def test_arguments_on_a_damaged_page_fail_their_attempts_alone_while_the_rest_can_be_read(
    is_local: bool, nothing_kept: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be read, no run is to blame: the engine stops, and the attempts are only lost."""
    damage = StoreDamaged("database disk image is malformed", place="tables (SQLITE_CORRUPT)")
    store, hand, clock = MemoryStore(), Hand(), ManualClock()
    items = [submission(max_attempts=5, delay_us=HOUR_US) for _ in range(4)]
    bad = items[2].task_id
    blobs, projected_seq = MemoryReader.blobs, MemoryReader.projected_seq

    def read(self: MemoryReader, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        if bad in ids or not is_local:
            raise damage
        return blobs(self, ids)

    def look(self: MemoryReader) -> int:
        if not is_local:
            raise damage
        return projected_seq(self)

    with engine_on(store, hand, clock) as engine:
        submit_all(engine, *items)
        ask(engine, lambda state: None)
        monkeypatch.setattr(MemoryReader, "blobs", read)
        monkeypatch.setattr(MemoryReader, "projected_seq", look)
        clock.move("1h")
        engine._wake.set()
        if is_local:
            told = ended(engine, items[2])
            assert (told.state, told.reason) == (FAILED, "payload_damaged")
            complete(hand, *(item for item in items if item.task_id != bad))
            assert engine.fenced is None
        else:
            eventually(lambda: engine.fenced is not None, "it stops")
            assert hand.handed_over == 0
    monkeypatch.undo()
    check_sound(store)


def test_a_closed_engine_has_let_go_of_the_files_it_read_arguments_from(nothing_kept: None, tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    queue = ActionQueue(path)

    @queue.task
    async def double(n: int) -> int:
        return 2 * n

    with queue.running():
        assert double.submit(2).result(timeout=PATIENCE_S) == 4
        assert path in open_files()
    assert not [each for each in open_files() if each.name.startswith(path.name)]


def open_files() -> list[Path]:
    found = []
    for each in Path("/proc/self/fd").iterdir():
        try:
            found.append(each.readlink())
        except FileNotFoundError:
            continue
    return found


# --- what is remembered of ends -----------------------------------------------------------------------------------------


class Shared(dict[bytes, Ended]):
    """Another thread drops the oldest entry whenever somebody has begun to look which those are."""

    def __iter__(self) -> Any:
        keys = list(super().__iter__())
        self.pop(keys[0])
        return iter(keys)


def test_what_the_writer_forgets_meanwhile_does_not_stop_the_commit_thread() -> None:
    """A retry takes the end of its task off the list while the oldest of the list are dropped."""
    effects = Effects(SimpleNamespace(store=None))  # type: ignore[arg-type]  # of which remembering needs nothing
    effects.recent = Shared()
    ends = [(n.to_bytes(16, "big"), Ended(b"", COMPLETED, "", None, None)) for n in range(2 * RECENT_ENDED_MAX + 1)]
    for each in ends:
        effects._remember([each])
    assert len(effects.recent) <= RECENT_ENDED_MAX
    assert ends[-1][0] in effects.recent.keys()  # noqa: SIM118 - `in` a dict asks no iterator, and this says so
