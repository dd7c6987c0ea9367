"""Pruning beside everything else that goes on: what has had a run meanwhile stays, and nothing is left in flight."""

from __future__ import annotations

from typing import Any

import pytest

from actionqueue.core.epochs import PruneHistory
from actionqueue.core.errors import CommitUnknown, StoreUnavailable
from actionqueue.core.ids import fresh_id_bytes
from actionqueue.core.state import COMPLETED
from actionqueue.core.submission import RetryRun
from actionqueue.engine.engine import Engine
from actionqueue.engine.housekeeping import Housekeeping
from actionqueue.store.memory import MemoryStore
from actionqueue.verify import verify
from tests.engine.rig import DAY, ask, engine_on, reply_of, send, submission, submit
from tests.process.support import error_of, eventually
from tests.scenarios.world import Hand, ManualClock


def kept_house(engine: Engine) -> Housekeeping:
    """Its duties are done by the test, on its own thread."""
    return Housekeeping(engine, 30 * DAY, 7 * DAY)


def fail_all(engine: Engine, hand: Hand, count: int) -> list[Any]:
    """Tasks whose only attempt has failed."""
    items = [submit(engine, submission(max_attempts=1)) for _ in range(count)]
    for _ in items:
        hand.raises(hand.take(), ValueError("it failed"))
    eventually(lambda: ask(engine, lambda state: len(state.runs)) == 0, "all have ended")
    return items


def in_flight(engine: Engine) -> int:
    found: int = ask(engine, lambda state: engine.writer._looking_up)
    return found


def retry_while_choosing(
    engine: Engine, housekeeping: Housekeeping, run_id: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between housekeeping's reading and its command, once."""
    real = housekeeping._finished
    retried: list[bytes] = []

    def finished(before: int) -> Any:
        found = real(before)
        if not retried:
            retried.append(fresh_id_bytes())
            assert reply_of(send(engine, RetryRun(run_id, retried[0])))[1] == retried[0]
        return found

    monkeypatch.setattr(housekeeping, "_finished", finished)


def test_a_task_that_is_retried_while_housekeeping_chooses_stays_and_the_others_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, hand, clock = MemoryStore(), Hand(), ManualClock()
    with engine_on(store, hand, clock) as engine:
        items = fail_all(engine, hand, 3)
        clock.at += 31 * DAY
        housekeeping = kept_house(engine)
        retry_while_choosing(engine, housekeeping, items[1].run_id, monkeypatch)

        assert housekeeping.prune_asked(PruneHistory(clock.at - DAY)) == (2, 0, False)

        assert in_flight(engine) == 0
        hand.returns(hand.take(), 7)
        eventually(lambda: ask(engine, lambda state: state.counts[COMPLETED]) == 1, "the retry has completed")
        kept = store.reader().tasks_by_id([item.task_id for item in items])
        assert list(kept) == [items[1].task_id]
        assert ask(engine, lambda state: state.tasks_total) == 1
    report = verify(store.reader(), name="memory")
    assert report.ok, str(report)


def test_housekeeping_itself_makes_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    store, hand, clock = MemoryStore(), Hand(), ManualClock()
    with engine_on(store, hand, clock) as engine:
        items = fail_all(engine, hand, 2)
        clock.at += 31 * DAY
        housekeeping = kept_house(engine)
        retry_while_choosing(engine, housekeeping, items[0].run_id, monkeypatch)
        housekeeping.prune()
        housekeeping.prune()
        assert list(store.reader().tasks_by_id([item.task_id for item in items])) == [items[0].task_id]
        hand.returns(hand.take())


def test_choosing_that_fails_leaves_no_look_up_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing that ended would be forgotten any more, and the engine would never be idle."""

    def finished(before: int) -> Any:
        raise StoreUnavailable("locked by another process", cause="busy")

    def damaged(before: int) -> Any:
        row = [b"t" * 16, *[0] * 14, b"\xc1 this is no msgpack"]
        return 0, [tuple(row)]

    with engine_on(MemoryStore()) as engine:
        housekeeping = kept_house(engine)
        for failing in (finished, damaged):
            monkeypatch.setattr(housekeeping, "_finished", failing)
            with pytest.raises(Exception, match=r"locked|malformed"):
                housekeeping.prune_tasks(engine.clock.now_us())
            assert in_flight(engine) == 0
        assert ask(engine, lambda state: engine.writer.is_idle())


def test_with_nothing_to_prune_nothing_is_written_and_nothing_is_left_in_flight() -> None:
    store = MemoryStore()
    with engine_on(store) as engine:
        housekeeping = kept_house(engine)
        ask(engine, lambda state: None)
        before = engine.projected_seq
        assert housekeeping.prune_tasks(engine.clock.now_us()) == (0, False)
        assert in_flight(engine) == 0
        assert engine.projected_seq == before


def test_pruning_an_engine_that_was_fenced_says_so() -> None:
    with engine_on(MemoryStore()) as engine:
        housekeeping = kept_house(engine)
        error = CommitUnknown("fsync failed")
        engine.fence(error)
        assert error_of(lambda: housekeeping.prune_tasks(engine.clock.now_us())) is error
