"""What the disk does, and what callers see of it: failed writes, cut files, logs that contradict themselves."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from actionqueue import (
    ActionQueue,
    ActionQueueError,
    CommitUnknown,
    StoreDamaged,
    StoreTooNew,
    StoreUnavailable,
    TaskHandle,
)
from actionqueue.core.attempts import AttemptFinished, AttemptStarted, RunsPromoted
from actionqueue.core.control import Resumed, RunCanceled
from actionqueue.core.errors import NotRunning
from actionqueue.core.state import COMPLETED, Outcome
from actionqueue.core.submission import TaskSubmitted
from actionqueue.engine.effects import Effects
from actionqueue.engine.work import Turn
from actionqueue.store import codec, sqlite_log
from actionqueue.store.memory import MemoryStore
from actionqueue.store.port import Batch, Commit
from actionqueue.store.sqlite import SQLiteStore
from actionqueue.verify import verify
from tests.process.support import PATIENCE_S, eventually, inspect, leftovers
from tests.scenarios.world import ManualClock, engine_of, look, settle


class Faults:
    """Raises an error at a point of each write while it is armed."""

    def __init__(self) -> None:
        self.point = ""
        self.error: Callable[[], Exception] = lambda: AssertionError("not armed")
        self.count = 0

    def arm(self, point: str, error: Callable[[], Exception]) -> None:
        self.point, self.error = point, error

    def disarm(self) -> None:
        self.point = ""

    def __call__(self, point: str) -> None:
        if point == self.point:
            self.count += 1
            raise self.error()


def make(faults: Faults | None = None, store: str | Path = ":memory:") -> tuple[ActionQueue, Any]:
    queue = ActionQueue(store)
    if faults is not None:
        queue.memory = MemoryStore(fault=faults)

    @queue.task(name="echo")
    async def echo(value: int) -> int:
        return value

    return queue, queue.handlers["echo"]


# --- writes that fail ----------------------------------------------------------------------------------------------


def test_a_write_that_certainly_failed_is_held_and_tried_again_and_nobody_is_acknowledged_meanwhile() -> None:
    """mutation_authority#3, S5-13: the original gives up; here the batch waits, and what is new is refused."""
    faults = Faults()
    queue, echo = make(faults)
    with queue.running():
        engine = engine_of(queue)
        assert echo.submit(1).result(timeout=PATIENCE_S) == 1
        settle(queue)
        assert queue.memory is not None
        commits = len(list(queue.memory.reader().commits(0)))
        faults.arm("before_write", lambda: StoreUnavailable("made to fail"))
        held: list[TaskHandle[int]] = []
        waiting = threading.Thread(target=lambda: held.append(echo.submit(2)))
        waiting.start()
        eventually(lambda: engine.trouble is not None, "it is noticed")
        before = faults.count
        with pytest.raises(StoreUnavailable, match="try again later"):
            echo.submit(3)
        eventually(lambda: faults.count > before, "it is tried again")
        assert held == []
        assert len(list(queue.memory.reader().commits(0))) == commits
        faults.disarm()
        waiting.join(PATIENCE_S)
        assert held[0].result(timeout=PATIENCE_S) == 2
        assert echo.submit(4).result(timeout=PATIENCE_S) == 4
        assert inspect(queue, leftovers) == []
    assert queue.verify().ok


@pytest.mark.parametrize(("point", "is_kept"), [("before_write", False), ("after_write", True)])
def test_after_a_write_of_unknown_outcome_the_caller_is_told_and_the_next_opening_finds_out(
    point: str, is_kept: bool
) -> None:
    """S5-11, mutation_authority#4, #5, #21: never a silent success, never a wedge; memory and disk agree afterwards.

    What was applied in memory and did not reach the disk is gone; what reached it is there though nobody was told.
    """
    faults = Faults()
    queue, echo = make(faults)
    with queue.running():
        echo.submit(1).result(timeout=PATIENCE_S)
        settle(queue)
        faults.arm(point, lambda: CommitUnknown("made to fail"))
        with pytest.raises(CommitUnknown):
            echo.options(idempotency_key="two", delay="1h").submit(2)
        faults.disarm()
        for _ in range(3):  # CommitUnknown as long as the engine is there, then that it is closed
            with pytest.raises((CommitUnknown, NotRunning)):
                echo.submit(3)
    with queue.running():
        stats = queue.stats()
        assert stats.tasks == 1 + is_kept
        assert stats.runs["scheduled"] == int(is_kept)
        again = echo.options(idempotency_key="two", delay="1h").submit(2)
        assert again.created is not is_kept, "submitted again under its key it is there once"
        assert echo.submit(3).result(timeout=PATIENCE_S) == 3
        assert queue.stats().tasks == 3
        again.cancel()
        assert inspect(queue, leftovers) == []
    assert queue.verify().ok


def test_when_what_a_commit_implies_cannot_be_carried_out_the_log_alone_leads_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """mutation_authority#5: the event is in the log, its effect never came out; the next engine starts from it."""
    queue, echo = make()
    release = Effects.release

    def fail_to_start(self: Effects, turn: Turn) -> None:
        if turn.starts:
            raise MemoryError("made to fail")
        release(self, turn)

    with queue.running(), monkeypatch.context() as patched:
        patched.setattr(Effects, "release", fail_to_start)
        with pytest.raises(ActionQueueError):
            echo.submit(1).result(timeout=PATIENCE_S)
        eventually(lambda: engine_of(queue).fenced is not None, "it has stopped")
    with queue.running():
        (run,) = queue.runs()
        assert run.state in ("retry_wait", "running", "completed")
        assert queue.get_run(run.id).attempts[0].outcome == "lost"
        queue.cancel_run(run.id)
        settle(queue)
        assert inspect(queue, leftovers) == []
    assert queue.verify().ok


# --- files that are cut --------------------------------------------------------------------------------------------

WAL_HEADER_BYTES, FRAME_HEADER_BYTES = 32, 24


class Recording:
    """A life of a store, with the size of its WAL at each acknowledgement and what was true then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = b""
        self.wal = b""
        self.acknowledged: list[tuple[int, str, Any]] = []

    def frames_end(self) -> list[int]:
        size = FRAME_HEADER_BYTES + int.from_bytes(self.wal[8:12], "big")
        return list(range(WAL_HEADER_BYTES, len(self.wal) + 1, size))

    def cut(self, size: int) -> Path:
        """The store as a crash would leave it whose last ``len(wal) - size`` bytes never arrived."""
        path = self.folder / f"cut-{size}.db"
        path.write_bytes(self.database)
        Path(f"{path}-wal").write_bytes(self.wal[:size])
        return path


def record(folder: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> Recording:
    """Submissions, alone and many at once, retries, cancels, a pause: one step acknowledged after the other."""
    path = folder / "jobs.db"
    queue, echo = make(store=path)

    @queue.task(name="flaky")
    async def flaky() -> None:
        raise ValueError

    recording = Recording(folder)
    wal = Path(f"{path}-wal")

    def acknowledge(kind: str, fact: Any) -> None:
        recording.acknowledged.append((wal.stat().st_size, kind, fact))

    monkeypatch.setattr("actionqueue.engine.housekeeping.PERIOD_S", 3600)  # no checkpoint in the middle
    with queue.running():
        look(queue)
        engine_of(queue).between_commits(lambda: None)
        for value in range(3):
            job = echo.submit(value)
            acknowledge("task", job.id)
            assert job.result(timeout=PATIENCE_S) == value
            acknowledge("completed", job.run_id)
        acknowledge("batch", [job.id for job in echo.submit_many([(n,) for n in range(20)])])
        settle(queue)
        failing = flaky.submit()
        acknowledge("task", failing.id)
        settle(queue)
        queue.pause(queue="other")
        acknowledge("paused", "queue other")
        delayed = echo.options(delay="1h", idempotency_key="k").submit(7)
        acknowledge("task", delayed.id)
        assert delayed.cancel() == 1
        acknowledge("canceled", delayed.run_id)
        look(queue)
        recording.database, recording.wal = path.read_bytes(), wal.read_bytes()
    return recording


def check_everything_acknowledged(queue: ActionQueue, facts: list[tuple[str, Any]], batches: list[list[Any]]) -> None:
    for kind, fact in facts:
        match kind:
            case "task":
                assert queue.get_task(fact).run_count == 1
            case "completed" | "canceled":
                assert queue.get_run(fact).state == kind
            case "paused":
                assert fact in queue.stats().paused
    known = {task.id for task in queue.tasks(limit=1000)}
    for batch in batches:
        assert len(known & set(batch)) in (0, len(batch)), "all of a submission or nothing"


def test_cut_anywhere_the_log_opens_with_everything_that_was_acknowledged_and_goes_on(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S5-6, S5-5, S5-8, wal_corruption_recovery/06: cut at each frame's border, one byte beside it, and inside.

    A frame is SQLite's unit: a cut inside one leaves what a cut before it leaves (``store/test_wal_scan.py`` cuts at
    every offset). Each copy opens by itself, holds its invariants, has what was acknowledged before the cut, has whole
    submissions only, and works until idle.
    """
    recording = record(tmp_path, clock, monkeypatch)
    batches = [fact for _, kind, fact in recording.acknowledged if kind == "batch"]
    ends = recording.frames_end()
    assert ends[-1] == len(recording.wal)
    assert len(ends) > 50
    every = max(1, len(ends) // 12)
    at_commits = {size for size, _, _ in recording.acknowledged}
    chosen = sorted(
        {*ends[::every], *at_commits, *(size - 1 for size in sorted(at_commits)[::3]), ends[-1] - 2000, 0, 16}
    )
    counts = []
    for size in chosen:
        path = recording.cut(size)
        facts = [(kind, fact) for at, kind, fact in recording.acknowledged if at <= size]
        queue, echo = make(store=path)
        queue.task(name="flaky")(_flaky)
        with queue.running():
            settle(queue)
            check_everything_acknowledged(queue, facts, batches)
            counts.append(queue.stats().tasks)
            assert echo.submit(99).result(timeout=PATIENCE_S) == 99
            assert all(each.endswith(("is scheduled", "is retry_wait")) for each in inspect(queue, leftovers))
        assert verify(path).ok
        path.unlink()
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 25)


async def _flaky() -> None:
    raise ValueError


# --- logs that contradict themselves -------------------------------------------------------------------------------


@pytest.fixture
def resting(path: Path, clock: ManualClock) -> Iterator[tuple[Path, Any, Any]]:
    """A closed store with a completed and a scheduled run, which are projected."""
    queue, echo = make(store=path)
    with queue.running():
        done = echo.submit(1)
        done.result(timeout=PATIENCE_S)
        later = echo.options(delay="1h").submit(2)
    yield path, done, later
    queue.close()


def forge(path: Path, *events: Any, version: int = codec.EVENTS_VERSION, body: bytes | None = None) -> None:
    """Append a commit as an engine with a mistake in it would: its hash and its numbers are right."""
    store = SQLiteStore(path)
    opened = store.open(pid=1, host="elsewhere")
    body = codec.encode_events(list(events)) if body is None else body
    count = max(1, len(events))
    seq = opened.last_seq
    commit = Commit(seq + 1, seq + count, 1, opened.epoch, version, body, codec.chain(opened.last_hash, body))
    store.commit(Batch(commit, seq, opened.epoch, []))
    store.close()


def check_refused(path: Path, kind: type[ActionQueueError]) -> ActionQueueError:
    """An engine is refused, twice in the same way, and leaves the log as it is."""
    before = log_of(path)
    caught: list[ActionQueueError] = []
    for _ in range(2):
        queue, _ = make(store=path)
        with pytest.raises(kind) as error:
            queue.running().__enter__()
        caught.append(error.value)
        queue.close()
    assert caught[0].code == caught[1].code
    assert log_of(path) == before
    return caught[0]


def log_of(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT * FROM commits ORDER BY last_seq").fetchall()


def impossible(done: Any, later: Any) -> dict[str, Any]:
    """Events that no engine writes, each decodable and well-formed."""
    run, scheduled, other = done.run_id.bytes, later.run_id.bytes, b"n" * 16
    return {
        "a start after the end": AttemptStarted(1, run, other),
        "a start of nothing": AttemptStarted(1, other, other),
        "an end without a start": AttemptFinished(1, scheduled, other, Outcome.COMPLETED, COMPLETED),
        "an end after the end": AttemptFinished(1, run, other, Outcome.COMPLETED, COMPLETED),
        "a promotion of nothing": RunsPromoted(1, [other]),
        "a promotion after the end": RunsPromoted(1, [run]),
        "a cancellation after the end": RunCanceled(1, run, "canceled"),
        "a second submission": TaskSubmitted(1, later.id.bytes, scheduled, "echo", "default", 0, 3, 1, b"d" * 16, 9),
    }


IMPOSSIBLE = (
    "a start after the end",
    "a start of nothing",
    "an end without a start",
    "an end after the end",
    "a promotion of nothing",
    "a promotion after the end",
    "a cancellation after the end",
    "a second submission",
)


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_a_log_whose_bytes_are_sound_and_whose_story_is_impossible_is_refused(
    resting: tuple[Path, Any, Any], kind: str
) -> None:
    """S5-18, wal_replay#7, #9, #15, wal_partial_record#7: a typed error with its place; to `verify`, replay."""
    path, done, later = resting
    forge(path, impossible(done, later)[kind])

    refused = check_refused(path, StoreDamaged)

    assert str(refused.facts["place"]).startswith("commits")
    kinds = {problem.kind for problem in verify(path).problems}
    assert kinds == ({"invariant", "digest"} if kind == "a second submission" else {"replay"})


def append(path: Path, first: Callable[[int], int], last: Callable[[int], int]) -> None:
    """A commit of one event behind the log's end, sealed, with numbers of one's own."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        seq, hashed = sqlite_log.log_end(connection)
        body = codec.encode_events([Resumed(1, "engine", "", "")])
        commit = Commit(first(seq), last(seq), 1, 1, codec.EVENTS_VERSION, body, codec.chain(hashed, body))
        sqlite_log.append(connection, commit)


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (lambda seq: seq, lambda seq: seq + 1),
        (lambda seq: 1, lambda seq: seq + 1),
        (lambda seq: seq + 5, lambda seq: seq + 5),
    ],
    ids=["repeated", "decreasing", "with a gap"],
)
def test_a_log_whose_sequences_are_not_contiguous_is_refused(
    resting: tuple[Path, Any, Any], first: Callable[[int], int], last: Callable[[int], int]
) -> None:
    """S5-18, wal_replay#13, #14, concurrent_mutation_boundary/03: the original allowed gaps; here one is a loss."""
    path, _, _ = resting
    append(path, first, last)

    refused = check_refused(path, StoreDamaged)

    assert str(refused.facts["place"]).startswith("commits")
    assert "sequence" in {problem.kind for problem in verify(path).problems}


def test_a_log_of_a_later_release_is_refused_as_such(resting: tuple[Path, Any, Any]) -> None:
    """S5-18, S5-62: an unknown kind of event, and then an unknown version of them: neither is damage."""
    path, _, _ = resting
    aside = path.with_name("aside.db")
    shutil.copy(path, aside)

    forge(path, body=b"\x91\x92\xcd\x03\xe7\x01")
    forge(aside, version=codec.EVENTS_VERSION + 1, body=codec.encode_events([]))

    for each in (path, aside):
        assert "Upgrade" in check_refused(each, StoreTooNew).message


def test_a_log_shorter_than_what_was_projected_is_refused(resting: tuple[Path, Any, Any]) -> None:
    """S5-19, S5-9 in its form here: tables and log are in one file, and neither travels in time without the other."""
    path, _, _ = resting
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DELETE FROM commits WHERE last_seq = (SELECT max(last_seq) FROM commits)")

    refused = check_refused(path, StoreDamaged)

    assert "lacks the end of its log" in refused.message


def test_the_log_of_another_store_is_refused(
    resting: tuple[Path, Any, Any], tmp_path: Path, clock: ManualClock
) -> None:
    """S5-19: valid in itself, and of another directory: its chain does not lead on from these tables."""
    path, _, _ = resting
    other = tmp_path / "other.db"
    queue, echo = make(store=other)
    with queue.running():
        for value in range(9):
            echo.submit(value).result(timeout=PATIENCE_S)
    theirs = log_of(other)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        seq, _ = sqlite_log.log_end(connection)
        moved = [row for row in theirs if row[1] > seq]
        assert moved
        places = ", ".join("?" * len(moved[0]))
        connection.executemany(f"INSERT INTO commits VALUES ({places})", moved)

    check_refused(path, StoreDamaged)


@pytest.mark.parametrize("what", ["the writer", "a copy of it"])
def test_where_there_is_no_folder_the_error_names_it(tmp_path: Path, what: str) -> None:
    """wal_replay#18, #19: opening a store, and writing a backup, in a folder that is not there."""
    missing = tmp_path / "missing" / "jobs.db"
    if what == "the writer":
        queue, _ = make(store=missing)
        with pytest.raises(ActionQueueError) as caught:
            queue.running().__enter__()
    else:
        queue, echo = make(store=tmp_path / "jobs.db")
        with queue.running():
            echo.submit(1).result(timeout=PATIENCE_S)
            with pytest.raises(ActionQueueError) as caught:
                queue.backup(missing)
    queue.close()
    assert str(missing.parent) in caught.value.message
    assert not missing.parent.exists()
