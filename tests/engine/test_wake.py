"""The wake-up of the writer: nothing published before a ring is missed, whatever happens to the ringer."""

from __future__ import annotations

import threading
import time

import pytest

from actionqueue.core.submission import Submit
from actionqueue.engine import engine as engines
from actionqueue.engine import wake as wakes
from actionqueue.engine.wake import Wake
from actionqueue.store.memory import MemoryStore
from tests.engine.rig import engine_on, reply_of, send, submission
from tests.process.support import PATIENCE_S


def test_a_ring_before_the_wait_ends_it_at_once_and_only_one_wait() -> None:
    wake = Wake()
    for _ in range(3):
        wake.set()
    began = time.monotonic()
    wake.wait(PATIENCE_S)
    assert time.monotonic() - began < PATIENCE_S

    wake.wait(0.0)
    assert not wake._lock.acquire(blocking=False), "the second wait was not rung for"


def test_a_ring_during_the_wait_ends_it() -> None:
    wake = Wake()
    woken = threading.Event()

    def wait() -> None:
        wake.wait(PATIENCE_S)
        woken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    wake.set()
    assert woken.wait(PATIENCE_S / 2)
    thread.join(PATIENCE_S)


def interrupt(monkeypatch: pytest.MonkeyPatch, wake: Wake) -> None:
    """A KeyboardInterrupt comes between a ringer's note that it rang and the ring."""

    class Interrupting:
        @staticmethod
        def suppress(*errors: type[BaseException]) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(wakes, "contextlib", Interrupting)
        with pytest.raises(KeyboardInterrupt):
            wake.set()


def test_after_a_ringer_was_interrupted_the_next_wait_ends_by_its_timeout_and_rings_count_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wake = Wake()
    interrupt(monkeypatch, wake)
    wake.set()  # taken for rung already
    wake.wait(0.0)

    wake.set()

    assert wake._lock.acquire(blocking=False), "it rang"


class Recording(Wake):
    """Notes how long the writer means to wait, and waits at most a hundredth of a second."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float | None] = []

    def wait(self, timeout_s: float | None = None) -> None:
        self.waits.append(timeout_s)
        super().wait(timeout_s if timeout_s is None else min(timeout_s, 0.01))


def test_the_writer_never_waits_longer_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing is due, where something is due in a year, and when it has been fenced."""
    monkeypatch.setattr(engines, "Wake", Recording)
    with engine_on(MemoryStore()) as engine:
        reply_of(send(engine, Submit([submission(delay_us=365 * 86_400_000_000)])))
        wake = engine._wake
        assert isinstance(wake, Recording)
    assert wake.waits
    assert all(wait is not None and 0 <= wait <= engines.WAIT_S_MAX for wait in wake.waits), wake.waits


def test_a_command_whose_sender_was_interrupted_while_it_rang_is_decided_within_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines, "WAIT_S_MAX", 0.01)
    with engine_on(MemoryStore()) as engine:
        for _ in range(20):
            item = submission(delay_us=3_600_000_000)
            engine._wake._rung = True  # as an interrupted ringer leaves it: no ring gets through
            assert reply_of(send(engine, Submit([item])))[0][0] == item.task_id
