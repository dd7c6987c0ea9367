"""What the command line's tests share: a queue with its engine here, and ``actionqueue`` called with words."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from actionqueue import CONTEXT, ActionQueue, Context, Retry, RunFailed, fixed
from actionqueue.cli import main
from tests.process.support import Programs


class Result(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its standard output, which must be one JSON document on one line."""
        assert self.out.endswith("\n")
        assert self.out.count("\n") == 1, f"more than one line: {self.out!r}"
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        """Its standard output, by lines."""
        return self.out.splitlines()


Call = Callable[..., Result]


class Gate:
    """What the handler ``waits`` waits for."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered = threading.Event()


def make_queue(path: Path, gate: Gate) -> ActionQueue:
    """A queue with a handler of each kind that the tests need."""
    queue = ActionQueue(path, threads=4, queues={"mail": 2}, drain_timeout="5s")

    @queue.task(name="send", queue="mail", tags=["eu"], priority=3)
    def send(to: str, subject: str = "hi") -> str:
        return f"sent {to}"

    @queue.task(name="bad", retry=Retry(max_attempts=2, backoff=fixed("1ms")))
    async def bad(n: int) -> int:
        raise ValueError(f"bad {n}\nand \x1b[31mred")

    @queue.task(name="waits")
    def waits(*, ctx: Context = CONTEXT) -> str:
        ctx.progress(1, 3, "waiting")
        gate.entered.set()
        while not gate.opened.wait(0.01):
            ctx.check_canceled()
        return "waited"

    return queue


@pytest.fixture(autouse=True)
def plain_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No store from the environment, a terminal of 80 columns, and no handler errors in the log."""
    monkeypatch.delenv("ACTIONQUEUE_STORE", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(logging.getLogger("actionqueue"), "disabled", True)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def queue(store: Path, gate: Gate) -> ActionQueue:
    """The queue, which nothing runs yet."""
    return make_queue(store, gate)


@pytest.fixture
def engine(queue: ActionQueue, gate: Gate) -> Iterator[ActionQueue]:
    """The queue, with its engine in this process."""
    with queue.running():
        yield queue
        gate.opened.set()


@pytest.fixture
def resting(queue: ActionQueue) -> ActionQueue:
    """The queue after some work, with no engine: 3 sent, 1 failed, 1 scheduled, 1 canceled."""
    send, bad = queue.handlers["send"], queue.handlers["bad"]
    with queue.running():
        handles: list[Any] = [send.submit(name) for name in ("ann", "bob")]
        handles.append(send.options(idempotency_key="order 7", queue="other").submit("cid"))
        handles.append(bad.submit(1))
        for handle in handles:
            try:
                handle.result(timeout=20)
            except RunFailed:
                continue
        send.options(delay="1h").submit("later")
        queue.cancel_task(send.options(delay="2h").submit("never").id)
    return queue


@pytest.fixture
def cli(store: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """``actionqueue`` in this process, with ``--store`` after the words unless they begin with ``store=None``."""

    def call(*words: object, at: Path | None = store) -> Result:
        capsys.readouterr()
        named = [] if at is None else ["--store", os.fspath(at)]
        code = main([*named, *map(str, words)])
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    started = Programs(tmp_path)
    yield started
    started.dispose()
