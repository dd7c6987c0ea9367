"""An opening that fails leaves nothing behind, nor does a closing: no lock, no thread, no executor that works."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest

from actionqueue import ActionQueue
from actionqueue.core.ids import IdSource
from actionqueue.engine.engine import Engine
from actionqueue.executors.port import Sink
from actionqueue.store.memory import MemoryStore
from tests.engine.rig import DAY, ask, engine_on, submission, submit
from tests.process.support import PATIENCE_S
from tests.scenarios.world import Hand, ManualClock


class Defective(Hand):
    """Cannot begin, and notes whether it was closed."""

    def __init__(self, *, begins: bool, closes: bool = True) -> None:
        super().__init__()
        self.begins, self.closes = begins, closes
        self.closed = 0

    def begin(self, sink: Sink) -> None:
        if not self.begins:
            raise RuntimeError("no loop to run on")
        super().begin(sink)

    def close(self, timeout_s: float) -> None:
        self.closed += 1
        if not self.closes:
            raise RuntimeError("no loop to end")


def our_threads() -> list[str]:
    return sorted(each.name for each in threading.enumerate() if each.name.startswith("actionqueue-"))


def open_fails(store: MemoryStore, hand: Hand, kind: type[BaseException]) -> None:
    engine = Engine(store, [hand], IdSource(random.Random(7).randbytes).next, clock=lambda not_before: ManualClock())
    with pytest.raises(kind):
        engine.open()
    engine.close(0.0)  # which has nothing left to do
    assert our_threads() == []


@pytest.mark.parametrize("closes", [True, False])
def test_when_an_executor_cannot_begin_the_store_is_let_go(closes: bool) -> None:
    store, hand = MemoryStore(), Defective(begins=False, closes=closes)
    open_fails(store, hand, RuntimeError)
    assert hand.closed == 1
    with engine_on(store) as engine:
        submit(engine, submission(delay_us=DAY))
        assert ask(engine, lambda state: state.epoch.number) == 2


def test_an_executor_that_cannot_be_closed_does_not_hold_the_store() -> None:
    store = MemoryStore()
    with engine_on(store, Defective(begins=True, closes=False)) as engine:
        submit(engine, submission(delay_us=DAY))
    with engine_on(store) as engine:
        submit(engine, submission(delay_us=DAY))


@pytest.mark.parametrize("name", ["lookups", "commit", "writer"])
def test_when_a_thread_cannot_be_started_the_others_end_and_nothing_was_written(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, hand = MemoryStore(), Defective(begins=True)
    start = threading.Thread.start

    def failing(self: threading.Thread) -> None:
        if self.name == f"actionqueue-{name}":
            raise RuntimeError("can't start new thread")
        start(self)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", failing)
        open_fails(store, hand, RuntimeError)
    assert hand.closed == 1
    assert list(store.reader().commits(0)) == []
    with engine_on(store) as engine:
        submit(engine, submission(delay_us=DAY))


def test_a_queue_whose_opening_failed_can_be_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from actionqueue.executors.threads import ThreadExecutor

    queue = ActionQueue(tmp_path / "jobs.db")

    @queue.task
    async def double(n: int) -> int:
        return 2 * n

    def begin(self: Any, sink: Sink) -> None:
        raise RuntimeError("no threads here")

    with monkeypatch.context() as patched:
        patched.setattr(ThreadExecutor, "begin", begin)
        with pytest.raises(RuntimeError), queue.running():
            raise AssertionError("it is open")
    with queue.running():
        assert double.submit(2).result(timeout=PATIENCE_S) == 4
