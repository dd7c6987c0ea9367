"""Bad days of the disk and of the files (issue line 6; section 5, numbers 13, 14 and 18).

Each is one clear error with a code; nothing that was acknowledged is dropped in silence; and when the cause is gone,
the work goes on.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from actionqueue import (
    ActionQueue,
    ActionQueueError,
    NotAStore,
    StoreReadOnly,
    StoreTooNew,
    StoreUnavailable,
    TaskHandle,
)
from actionqueue.store.codec import chain
from actionqueue.store.port import Batch, Commit
from actionqueue.store.sqlite import SQLiteStore
from actionqueue.verify import verify
from tests.process.programs.jobs import make_queue
from tests.process.support import PATIENCE_S, error_of, eventually, inspect, leftovers

DRAIN_S = 1.0


def mount(*arguments: str) -> bool:
    return os.geteuid() == 0 and subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three megabytes of its own."""
    point = tmp_path / "disk"
    point.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=3m", "tmpfs", str(point)):
        pytest.skip("mounting needs root")
    yield point
    subprocess.run(["umount", "-l", str(point)], check=True)


def fill(disk: Path) -> Path:
    """Take all the room there is."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


class Waiting(threading.Thread):
    """A call that may take long, in a thread; its result or error afterwards."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.result: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._call()
        except ActionQueueError as error:
            self.result = error


# --- full disk ---------------------------------------------------------------------------------------------------


def keeper(store: Path) -> tuple[ActionQueue, Any, Any, threading.Event]:
    """A queue whose handlers take large arguments, or wait until they are let go."""
    queue = ActionQueue(store, drain_timeout=DRAIN_S)
    let_go = threading.Event()

    @queue.task(name="measure")
    def measure(text: str) -> int:
        return len(text)

    @queue.task(name="held")
    def held() -> str:
        let_go.wait(PATIENCE_S)
        return "held"

    return queue, measure, held, let_go


def test_a_full_disk_refuses_what_is_new_and_keeps_what_was_acknowledged(disk: Path) -> None:
    """S5-13: the batch that met it is held, handlers run on and their results wait; then all goes on by itself."""
    store = disk / "jobs.db"
    queue, measure, held, let_go = keeper(store)
    text = "x" * 100_000
    with queue.running():
        assert queue.session is not None
        engine = queue.session.engine
        assert engine is not None
        kept: list[TaskHandle[int]] = [measure.submit(text) for _ in range(3)]
        running = held.submit()
        ballast = fill(disk)
        waiting: list[Waiting] = []
        while engine.trouble is None:
            waiting.append(Waiting(lambda: measure.submit(text)))
            waiting[-1].join(0.3)
        refused = error_of(lambda: measure.submit(text))
        assert isinstance(refused, StoreUnavailable)
        assert refused.code == "store_unavailable"
        assert "disk full" in refused.message
        let_go.set()
        client = make_queue(store, role="client")
        assert isinstance(error_of(lambda: client.handlers["echo"].submit(1)), StoreUnavailable)
        assert len(client.runs(limit=1)) <= 1  # reading works; how much was projected in time nobody knows
        ballast.unlink()
        for each in waiting:
            each.join(PATIENCE_S)
        accepted = [each.result for each in waiting if not isinstance(each.result, ActionQueueError)]
        assert all(isinstance(each, TaskHandle) for each in accepted)
        assert running.result(timeout=PATIENCE_S) == "held"
        for job in [*kept, *accepted]:
            assert job.result(timeout=PATIENCE_S) == len(text)
        assert engine.trouble is None
        client.close()
        assert inspect(queue, leftovers) == []
        assert queue.stats().tasks == len(kept) + len(accepted) + 1
    assert verify(store).ok


def test_no_store_is_made_on_a_full_disk_and_one_is_when_there_is_room(disk: Path) -> None:
    """S5-13: the refusal leaves nothing in the way."""
    store = disk / "jobs.db"
    ballast = fill(disk)
    queue = make_queue(store)
    for act in (lambda: queue.running().__enter__(), lambda: queue.handlers["echo"].submit(1)):
        refused = error_of(act)
        assert isinstance(refused, StoreUnavailable)
        assert "disk" in refused.message
    queue.close()
    ballast.unlink()
    with queue.running():
        assert queue.handlers["echo"].submit(1).result(timeout=PATIENCE_S) == 1
    assert verify(store).ok


def test_an_engine_ends_in_time_on_a_full_disk(disk: Path) -> None:
    """Nothing to wait for: what could not be recorded is found by the next opening."""
    store = disk / "jobs.db"
    queue, measure, held, let_go = keeper(store)
    text = "x" * 100_000
    with queue.running():
        assert queue.session is not None
        engine = queue.session.engine
        assert engine is not None
        done = measure.submit(text)
        done.result(timeout=PATIENCE_S)
        running = held.submit()
        eventually(lambda: running.state() == "running", "it runs")
        ballast = fill(disk)
        while engine.trouble is None:
            Waiting(lambda: measure.submit(text)).join(0.3)
        let_go.set()
        began = time.monotonic()
    assert time.monotonic() - began < DRAIN_S + 2
    ballast.unlink()
    with queue.running():
        assert done.state() == "completed"
        assert running.result(timeout=PATIENCE_S) == "held"


# --- read-only ---------------------------------------------------------------------------------------------------


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Callable[[bool], Path]]:
    """A directory that can be made read-only, and writable again: for root by a mount, which alone stops it."""
    folder = tmp_path / "locked"
    folder.mkdir()
    is_mounted = mount("-t", "tmpfs", "tmpfs", str(folder))
    if not is_mounted and os.geteuid() == 0:
        pytest.skip("root writes everywhere, and cannot mount here")

    def set_read_only(read_only: bool) -> Path:
        if is_mounted:
            assert mount("-o", f"remount,{'ro' if read_only else 'rw'}", str(folder))
        else:
            folder.chmod(0o555 if read_only else 0o755)
        return folder

    yield set_read_only
    set_read_only(False)
    if is_mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_in_a_read_only_directory_an_engine_is_refused_and_reading_works(locked: Callable[[bool], Path]) -> None:
    """S5-14."""
    store = locked(False) / "jobs.db"
    queue = make_queue(store)
    with queue.running():
        job = queue.handlers["echo"].submit(1)
        job.result(timeout=PATIENCE_S)
    locked(True)
    for act in (
        lambda: queue.running().__enter__(),
        queue.run_forever,
        lambda: queue.handlers["echo"].submit(2),
    ):
        refused = error_of(act)
        assert isinstance(refused, StoreReadOnly), refused
        assert refused.code == "store_read_only"
    assert job.state() == "completed"
    assert job.result() == 1
    assert queue.stats().runs["completed"] == 1
    assert verify(store).ok
    queue.close()
    locked(False)
    with queue.running():
        assert queue.handlers["echo"].submit(3).result(timeout=PATIENCE_S) == 3


# --- other files -------------------------------------------------------------------------------------------------


def other_files(folder: Path) -> dict[str, Path]:
    """What somebody might name by mistake."""
    text = folder / "README.md"
    text.write_text("# Not a database\n" * 10)
    database = folder / "other.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE mine (x)")
    directory = folder / "folder.db"
    directory.mkdir()
    return {"text": text, "database": database, "directory": directory}


@pytest.mark.parametrize("kind", ["text", "database", "directory"])
def test_what_is_no_store_is_refused_and_left_as_it_is(tmp_path: Path, kind: str) -> None:
    path = other_files(tmp_path)[kind]
    before = sorted(each.name for each in tmp_path.iterdir())
    content = path.read_bytes() if path.is_file() else None
    queue = make_queue(path)
    for act in (
        lambda: queue.running().__enter__(),
        queue.stats,
        lambda: queue.handlers["echo"].submit(1),
    ):
        refused = error_of(act)
        assert isinstance(refused, NotAStore)
        assert refused.code == "not_a_store"
        assert str(path) in refused.message
        queue.close()
    assert sorted(each.name for each in tmp_path.iterdir()) == before
    assert content == (path.read_bytes() if path.is_file() else None)


def test_a_store_of_a_newer_version_is_refused_untouched(store: Path) -> None:
    queue = make_queue(store)
    with queue.running():
        queue.handlers["echo"].submit(1).result(timeout=PATIENCE_S)
    with closing(sqlite3.connect(store)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute("PRAGMA user_version = 999")
    content = store.read_bytes()
    for act in (lambda: queue.running().__enter__(), queue.stats, lambda: queue.handlers["echo"].submit(1)):
        refused = error_of(act)
        assert isinstance(refused, StoreTooNew)
        assert refused.code == "store_too_new"
        assert "Upgrade" in refused.message
        queue.close()
    assert store.read_bytes() == content
    with closing(sqlite3.connect(store)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    with queue.running():
        assert queue.stats().tasks == 1


def test_a_log_with_events_of_a_newer_version_is_refused_untouched(store: Path) -> None:
    """S5-18: its bytes are sound, and mean something that this release does not know."""
    queue = make_queue(store)
    with queue.running():
        queue.handlers["echo"].submit(1).result(timeout=PATIENCE_S)
    newer = SQLiteStore(store)
    opened = newer.open(pid=1, host="elsewhere")
    body = b"\x91\x91\xcd\x03\xe7"
    commit = Commit(opened.last_seq + 1, opened.last_seq + 1, 1, opened.epoch, 99, body, chain(opened.last_hash, body))
    newer.commit(Batch(commit, opened.last_seq, opened.epoch, []))
    newer.close()
    for _ in range(2):
        refused = error_of(lambda: queue.running().__enter__())
        assert isinstance(refused, StoreTooNew)
    queue.close()
