"""One engine per store: who holds it, who is refused, and when it is free again."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from actionqueue.core.errors import StoreError, StoreHeld, StoreReadOnly, StoreUnavailable, UsedAfterFork
from actionqueue.store import lock as lock_module
from actionqueue.store.lock import POLL_MAX_S, HolderInfo, StoreLock, read_holder, wait_acquire

posix = pytest.mark.skipif(sys.platform == "win32", reason="forks")

NEVER: Callable[[], bool] = lambda: False  # noqa: E731 (a word in the calls below)


class Process:
    """Another Python process that does as its program says, and talks over its pipes, a line at a time."""

    def __init__(self, program: str, *arguments: object) -> None:
        prelude = "import os, sys\nfrom pathlib import Path\nfrom actionqueue.store.lock import *\n"
        self._process = subprocess.Popen(
            [sys.executable, "-c", prelude + program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.pid = self._process.pid

    def hears(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self.kill()


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    with contextlib.ExitStack() as stack:

        def start(program: str, *arguments: object) -> Process:
            process = Process(program, *arguments)
            stack.callback(process.close)
            return process

        yield start


HOLD = """
lock = StoreLock.acquire(Path(sys.argv[1]), role="engine")
print("held", flush=True)
for line in sys.stdin:
    lock.release()
    print("released", flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


# --- one process -------------------------------------------------------------------------------------------------


def test_a_free_store_is_taken_and_given_back(store: Path) -> None:
    assert read_holder(store) is None

    with StoreLock.acquire(store) as lock:
        assert (lock.is_held, read_holder(store)) == (True, lock.holder)
    assert not lock.is_held
    assert read_holder(store) is None

    StoreLock.acquire(store).release()
    assert not store.exists()  # the lock is no reason for a store to exist


def test_the_holder_is_told_to_whoever_asks(store: Path) -> None:
    with StoreLock.acquire(store, role="standby") as lock:
        told = HolderInfo(
            pid=os.getpid(),
            host=socket.gethostname(),
            since=lock.holder.since,
            incarnation=lock.holder.incarnation,
            role="standby",
        )

        assert lock.holder == told
        assert lock.owner_pid == os.getpid()
        assert abs(datetime.now(UTC) - datetime.fromisoformat(told.since)).total_seconds() < 60
        assert len(told.incarnation) == 32


def test_each_holding_has_an_incarnation_of_its_own(store: Path) -> None:
    with StoreLock.acquire(store) as first:
        pass
    with StoreLock.acquire(store) as second:
        assert first.holder.incarnation != second.holder.incarnation


def test_a_second_engine_in_one_process_is_refused_and_the_first_keeps_the_lock(
    store: Path, start: Callable[..., Process]
) -> None:
    """Scenario 21. Record locks do not bind the process that has them, so this one must refuse by itself."""
    with StoreLock.acquire(store):
        with pytest.raises(StoreHeld, match="this process"):
            StoreLock.acquire(store)
        read_holder(store)

        assert who_is_seen_by(start, store) == str(os.getpid())


def test_releasing_twice_harms_nobody(store: Path) -> None:
    first = StoreLock.acquire(store)
    first.release()
    with StoreLock.acquire(store) as second:
        first.release()

        assert second.is_held
        assert read_holder(store) == second.holder


def test_two_stores_do_not_hinder_each_other(store: Path) -> None:
    with StoreLock.acquire(store), StoreLock.acquire(store.with_name("other.db")) as other:
        assert read_holder(other.store_path) == other.holder


def linked_file(store: Path) -> Path:
    link = store.with_name("link.db")
    link.symlink_to(store.name)
    return link


def linked_directory(store: Path) -> Path:
    link = store.parent / "link"
    link.symlink_to(store.parent, target_is_directory=True)
    return link / store.name


def dotted_path(store: Path) -> Path:
    (store.parent / "sub").mkdir()
    return store.parent / "sub" / ".." / store.name


def relative_path(store: Path) -> Path:
    return Path(os.path.relpath(store))


@posix
@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("other_name", [linked_file, linked_directory, dotted_path, relative_path])
def test_every_name_of_a_store_meets_the_same_lock(
    store: Path, start: Callable[..., Process], other_name: Callable[[Path], Path], exists: bool
) -> None:
    if exists:
        store.touch()
    other = other_name(store)

    with StoreLock.acquire(other) as lock:
        assert lock.store_path == Path(os.path.realpath(store))
        with pytest.raises(StoreHeld):
            StoreLock.acquire(store)
        assert read_holder(store) == lock.holder
        assert who_is_seen_by(start, store) == str(os.getpid())
    with StoreLock.acquire(store), pytest.raises(StoreHeld):
        StoreLock.acquire(other)


@posix
def test_a_hard_link_is_refused_in_the_same_process(store: Path) -> None:
    store.touch()
    other = store.with_name("same.db")
    other.hardlink_to(store)

    with StoreLock.acquire(store), pytest.raises(StoreHeld):
        StoreLock.acquire(other)


@posix
def test_deleting_the_lock_file_does_not_let_the_same_process_in_twice(store: Path) -> None:
    with StoreLock.acquire(store):
        Path(f"{store}.lock").unlink()

        with pytest.raises(StoreHeld):
            StoreLock.acquire(store)


def test_what_stands_in_the_file_does_not_make_a_holder(store: Path) -> None:
    """Scenario 21, second half: the lock of a process that died is free, whatever it left."""
    left = (
        b'{"pid": 1, "host": "elsewhere", "since": "2020-01-01T00:00:00+00:00", "incarnation": "x", "role": "engine"}\n'
    )
    for text in (left, b"", b"{", b"\xff\xfe not json", b'{"pid": "x"}'):
        Path(f"{store}.lock").write_bytes(text)

        assert read_holder(store) is None
        with StoreLock.acquire(store) as lock:
            assert read_holder(store) == lock.holder


def test_a_missing_directory_is_named(store: Path) -> None:
    nowhere = store.parent / "missing" / "jobs.db"

    assert read_holder(nowhere) is None
    with pytest.raises(StoreUnavailable, match="missing"):
        StoreLock.acquire(nowhere)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, StoreReadOnly),
        (errno.EROFS, StoreReadOnly),
        (errno.ENOSPC, StoreUnavailable),
        (errno.EIO, StoreUnavailable),
    ],
)
def test_a_lock_file_that_cannot_be_opened_is_named_with_the_cause(
    store: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StoreError]
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)

    for call in (StoreLock.acquire, read_holder):
        with pytest.raises(kind, match=rf"jobs\.db\.lock .*{os.strerror(number)}"):
            call(store)


def test_of_many_threads_one_gets_the_store(store: Path) -> None:
    """Scenario 21 again: the check and the opening are one step."""
    barrier = threading.Barrier(8)
    got: list[StoreLock] = []
    refused: list[StoreHeld] = []

    def try_it() -> None:
        barrier.wait()
        try:
            got.append(StoreLock.acquire(store))
        except StoreHeld as refusal:
            refused.append(refusal)

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(got), len(refused)) == (1, 7)
    got[0].release()


# --- several processes -------------------------------------------------------------------------------------------


def who_is_seen_by(start: Callable[..., Process], store: Path) -> str:
    """The holder's pid as another process sees it: by asking, and by trying."""
    look = """
asked = read_holder(Path(sys.argv[1]))
try:
    StoreLock.acquire(Path(sys.argv[1]))
    tried = None
except Exception as refusal:
    tried = refusal.pid
print(asked.pid if asked and asked.pid == tried else f"asked: {asked}, tried: {tried}", flush=True)
"""
    return start(look, store).hears()


def test_another_process_is_refused_and_told_who_holds_the_store(store: Path, start: Callable[..., Process]) -> None:
    """Scenario 21: pid, host and since are facts of the refusal, and the message says what to do."""
    holder = start(HOLD, store)
    assert holder.hears() == "held"

    with pytest.raises(StoreHeld) as refusal:
        StoreLock.acquire(store)

    facts = refusal.value.facts
    assert (facts["pid"], facts["host"]) == (holder.pid, socket.gethostname())
    assert facts["path"] == os.path.realpath(store)
    told = read_holder(store)
    assert told is not None
    assert (told.pid, told.since) == (holder.pid, facts["since"])
    assert f"process {holder.pid}" in str(refusal.value)
    assert "wait_for_store" in str(refusal.value)
    assert pickle.loads(pickle.dumps(refusal.value)).facts == facts


def test_a_released_store_is_free_while_its_process_lives_on(store: Path, start: Callable[..., Process]) -> None:
    holder = start(HOLD, store)
    assert holder.hears() == "held"
    holder.say("release")
    assert holder.hears() == "released"

    assert read_holder(store) is None
    StoreLock.acquire(store).release()


def test_a_killed_process_leaves_the_store_free(store: Path, start: Callable[..., Process]) -> None:
    """Scenario 21: nothing to clean up after a crash."""
    holder = start(HOLD, store)
    assert holder.hears() == "held"

    holder.kill()

    assert Path(f"{store}.lock").stat().st_size > 0
    assert read_holder(store) is None
    StoreLock.acquire(store).release()


def test_a_holder_that_has_not_told_about_itself_yet_is_known_by_its_pid(
    store: Path, start: Callable[..., Process]
) -> None:
    holder = start(HOLD, store)
    assert holder.hears() == "held"
    with Path(f"{store}.lock").open("r+b") as file:  # safe: this process holds no lock on it
        file.truncate(0)

    with pytest.raises(StoreHeld, match="since unknown") as refusal:
        StoreLock.acquire(store)

    assert refusal.value.facts["pid"] == holder.pid


@posix
def test_the_line_of_an_earlier_holder_is_not_taken_for_the_present_one(
    store: Path, start: Callable[..., Process]
) -> None:
    holder = start(HOLD, store)
    assert holder.hears() == "held"
    with StoreLock.acquire(store.with_name("other.db")):
        Path(f"{store}.lock").write_bytes(store.with_name("other.db.lock").read_bytes())

    told = read_holder(store)

    assert told is not None
    assert (told.pid, told.incarnation) == (holder.pid, "unknown")


@posix
def test_where_the_system_is_not_asked_for_the_holder_it_is_found_by_trying(
    store: Path, start: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "_FLOCK_LAYOUTS", {})
    holder = start(HOLD, store)
    assert holder.hears() == "held"

    told = read_holder(store)
    assert told is not None
    assert told.pid == holder.pid
    with pytest.raises(StoreHeld):
        StoreLock.acquire(store)

    holder.kill()
    assert read_holder(store) is None
    StoreLock.acquire(store).release()


@posix
def test_starting_programs_does_not_loosen_the_lock(store: Path, start: Callable[..., Process]) -> None:
    with StoreLock.acquire(store):
        subprocess.run([sys.executable, "-c", ""], check=True, close_fds=False)

        assert who_is_seen_by(start, store) == str(os.getpid())


# --- forks -------------------------------------------------------------------------------------------------------

FORK = """
import pickle

def refusal_of(call):
    try:
        call()
    except Exception as refusal:
        return pickle.dumps(refusal).hex()

store = Path(sys.argv[1])
lock = StoreLock.acquire(store)
if os.fork() == 0:
    print(f"child {os.getpid()}", flush=True)
    for line in sys.stdin:
        print(eval(line), flush=True)
    os._exit(0)
os.wait()
"""


@posix
def test_the_lock_dies_with_its_process_although_a_forked_child_lives(
    store: Path, start: Callable[..., Process]
) -> None:
    """Scenario 21: an engine's handler may have forked; its child does not keep the store from the next engine."""
    parent = start(FORK, store)
    child = int(parent.hears().removeprefix("child "))
    with pytest.raises(StoreHeld) as refusal:
        StoreLock.acquire(store)
    assert refusal.value.facts["pid"] == parent.pid

    parent.kill()

    parent.say("os.getpid()")
    assert parent.hears() == str(child)  # it lives, with what it inherited
    StoreLock.acquire(store).release()


@posix
@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ("lock.is_held", "False"),
        ("lock.release()", "None"),
        ("read_holder(store).pid == os.getppid()", "True"),
        ("(lock.release(), read_holder(store).pid == os.getppid())[1]", "True"),
    ],
)
def test_a_forked_child_holds_nothing_and_takes_nothing_away(
    store: Path, start: Callable[..., Process], call: str, answer: str
) -> None:
    parent = start(FORK, store)
    parent.hears()

    parent.say(call)

    assert parent.hears() == answer
    assert who_is_seen_by(start, store) == str(parent.pid)


@posix
def test_a_lock_used_in_a_forked_child_says_so(store: Path, start: Callable[..., Process]) -> None:
    parent = start(FORK, store)
    child = int(parent.hears().removeprefix("child "))

    parent.say("refusal_of(lock.check_process)")
    refusal = pickle.loads(bytes.fromhex(parent.hears()))

    assert isinstance(refusal, UsedAfterFork)
    assert (refusal.facts["owner_pid"], refusal.facts["pid"]) == (parent.pid, child)
    assert "again in the child" in refusal.message


def test_a_lock_used_where_it_was_taken_is_fine(store: Path) -> None:
    with StoreLock.acquire(store) as lock:
        lock.check_process()


@posix
def test_a_forked_child_may_hold_the_store_once_its_parent_has_ended(
    store: Path, start: Callable[..., Process]
) -> None:
    parent = start(FORK, store)
    child = int(parent.hears().removeprefix("child "))

    parent.kill()
    parent.say("[mine := StoreLock.acquire(store), lock.release(), mine.is_held][2]")

    assert parent.hears() == "True"
    assert who_is_seen_by(start, store) == str(child)


# --- waiting -----------------------------------------------------------------------------------------------------


class Waiter:
    """Stands in for the clock of a waiter: pauses take no time but are counted, and something may happen in one."""

    def __init__(self, in_pause: dict[int, Callable[[], object]] | None = None) -> None:
        self.now_s = 100.0
        self.pauses_s: list[float] = []
        self._in_pause = in_pause or {}

    def clock(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        self.now_s += seconds
        self._in_pause.get(len(self.pauses_s), lambda: None)()


def test_a_free_store_is_not_waited_for(store: Path) -> None:
    waiter = Waiter()

    lock = wait_acquire(store, None, NEVER, role="standby", pause=waiter.pause, clock=waiter.clock)

    assert lock is not None
    assert lock.holder.role == "standby"
    assert waiter.pauses_s == []
    lock.release()


def test_a_standby_takes_over_at_its_next_look(store: Path, start: Callable[..., Process]) -> None:
    holder = start(HOLD, store)
    assert holder.hears() == "held"
    waiter = Waiter({5: holder.kill})

    lock = wait_acquire(store, None, NEVER, pause=waiter.pause, clock=waiter.clock)

    assert lock is not None
    assert len(waiter.pauses_s) == 5
    assert all(0 < pause_s <= POLL_MAX_S <= 0.2 for pause_s in waiter.pauses_s)
    assert len(set(waiter.pauses_s)) > 1
    lock.release()


def test_a_wait_that_runs_out_is_refused_with_the_holder(store: Path) -> None:
    waiter = Waiter()

    with StoreLock.acquire(store), pytest.raises(StoreHeld) as refusal:
        wait_acquire(store, 1.0, NEVER, pause=waiter.pause, clock=waiter.clock)

    assert refusal.value.facts["pid"] == os.getpid()
    assert sum(waiter.pauses_s) == pytest.approx(1.0)


def test_no_time_to_wait_means_one_look(store: Path) -> None:
    waiter = Waiter()

    with StoreLock.acquire(store), pytest.raises(StoreHeld):
        wait_acquire(store, 0, NEVER, pause=waiter.pause, clock=waiter.clock)

    assert waiter.pauses_s == []


def test_a_waiter_that_shall_stop_stops_with_nothing(store: Path) -> None:
    waiter = Waiter()

    with StoreLock.acquire(store):
        got = wait_acquire(store, None, lambda: len(waiter.pauses_s) == 3, pause=waiter.pause, clock=waiter.clock)

    assert got is None
    assert len(waiter.pauses_s) == 3


def test_waiting_does_not_hide_other_errors(store: Path) -> None:
    with pytest.raises(StoreUnavailable):
        wait_acquire(store.parent / "missing" / "jobs.db", None, NEVER)
