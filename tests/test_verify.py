"""``verify``: a store as it was written passes, and no damage does (SEMANTICS.md section 12)."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actionqueue import ActionQueue, Retry, RunFailed, Snooze, StoreError, StoreUnavailable, fixed
from actionqueue.core import rows
from actionqueue.core.rows import (
    RUN_COLUMNS,
    TASK_COLUMNS,
    check_row,
    open_run,
    open_task,
    sealed,
    stored_run,
    stored_task,
)
from actionqueue.core.state import COMPLETED, FAILED, READY
from actionqueue.store.codec import chain, encode_events
from actionqueue.store.sqlite import SQLiteStore
from actionqueue.store.sqlite_log import ANCHOR_COLUMNS
from actionqueue.store.sqlite_rows import COLUMNS
from actionqueue.verify import VerifyReport, verify
from tests.engine.rig import WriterRig, submission

Connection = sqlite3.Connection


def make_queue(store: Path | str) -> ActionQueue:
    queue = ActionQueue(store, concurrency=20, threads=4, drain_timeout="5s")
    snoozed: set[int] = set()

    @queue.task(tags=["mail", "eu"])
    def hello(name: str) -> str:
        return f"hello {name}"

    @queue.task(retry=Retry(max_attempts=2, backoff=fixed("1ms")))
    async def flaky(n: int) -> int:
        if n % 3 == 0:
            raise ValueError(f"bad {n}")
        return n

    @queue.task
    def snoozes(n: int) -> int:
        if n not in snoozed:
            snoozed.add(n)
            raise Snooze("1ms")
        return n

    return queue


def work(queue: ActionQueue) -> None:
    """A bit of everything: completed, failed, retried, canceled, expired, waiting, paused, prioritised, tagged."""
    hello, flaky, snoozes = (queue.handlers[f"make_queue.<locals>.{name}"] for name in ("hello", "flaky", "snoozes"))
    with queue.running():
        handles = [hello.submit(str(n)) for n in range(12)]
        handles += [flaky.submit(n) for n in range(12)]
        handles += [snoozes.submit(n) for n in range(3)]
        waiting = [
            hello.options(delay="1h", priority=n, idempotency_key=f"key {n} {time.time()}", metadata={"n": n}).submit(
                "x"
            )
            for n in range(6)
        ]
        hello.options(expires="1ms", delay="1h").submit("never")
        for handle in handles:
            try:
                handle.result(timeout=20)
            except RunFailed:
                continue
        queue.cancel_run(waiting[0].run_id)
        queue.cancel_task(waiting[1].id)
        queue.reprioritize(waiting[2].run_id, 9)
        queue.pause(queue="mail")
        assert queue.retry_runs(state="failed") >= 4
        queue.run_until_idle()


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that two engines, one after the other, have worked on."""
    path = tmp_path_factory.mktemp("worked") / "jobs.db"
    for _ in range(2):
        work(make_queue(path))
    return path


@pytest.fixture
def store(worked: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    path = tmp_path / "jobs.db"
    shutil.copyfile(worked, path)
    return path


def damage(path: Path, change: Callable[[Connection], object]) -> VerifyReport:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        change(connection)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return verify(path)


def kinds(report: VerifyReport) -> set[str]:
    return {problem.kind for problem in report.problems}


def said(report: VerifyReport) -> str:
    return "\n".join(f"{problem.kind} {problem.place}: {problem.message}" for problem in report.problems)


# --- stores as they were written --------------------------------------------------------------------------------


def test_a_store_after_a_mixed_workload_and_a_restart_is_clean(worked: Path) -> None:
    report = verify(worked)

    assert report.ok, said(report)
    assert (report.replay, report.from_seq) == ("whole", 1)
    assert report.to_seq == report.projected_seq == report.counts["events"]
    assert report.counts["tasks"] == 68
    assert report.counts["runs"] == 80
    assert report.counts["blobs"] == 68 + ActionQueue(worked).stats().runs["completed"]
    assert report.problem_count == 0
    assert "everything is as it was written" in str(report)


def test_the_report_is_json_too(worked: Path) -> None:
    report = verify(worked)

    plain = msgspec.json.decode(msgspec.json.encode(report))

    assert plain["ok"] is True
    assert plain["problems"] == []
    assert plain["counts"]["commits"] > 10


def test_verify_runs_beside_a_live_engine(tmp_path: Path) -> None:
    queue = make_queue(tmp_path / "jobs.db")
    hello = queue.handlers["make_queue.<locals>.hello"]
    with queue.running():
        for n in range(5):
            for m in range(20):
                hello.submit(f"{n} {m}")
            report = queue.verify()
            assert report.ok, said(report)
            assert report.replay == "whole"


async def verified(queue: ActionQueue) -> VerifyReport:
    return await queue.averify()


def test_the_twin_to_await_gives_the_same(worked: Path) -> None:
    queue = ActionQueue(worked)

    assert asyncio.run(verified(queue)).counts == queue.verify().counts


def test_a_store_in_memory_is_verified_through_its_reader() -> None:
    queue = make_queue(":memory:")
    work(queue)

    report = queue.verify()

    assert report.ok, said(report)
    assert (report.store, report.replay) == (":memory:", "whole")


def killed(path: Path) -> None:
    """An engine worked on the store and ended without a word."""
    child = os.fork()
    if child == 0:
        queue = make_queue(path)
        queue.open_session(must_be_engine=True)
        for n in range(200):
            queue.handlers["make_queue.<locals>.hello"].submit(str(n))
        os._exit(0)
    os.waitpid(child, 0)


def test_a_store_whose_engine_was_killed_is_clean_and_its_tail_counts(tmp_path: Path) -> None:
    """Whatever of the log the tables have not reached is replayed onto them, and its payloads are no orphans."""
    path = tmp_path / "jobs.db"
    killed(path)

    report = verify(path)

    assert report.ok, said(report)
    assert report.to_seq >= report.projected_seq


@pytest.mark.parametrize("damaged", [True, False])
def test_payloads_and_results_that_the_tables_have_not_reached_are_checked_too(tmp_path: Path, damaged: bool) -> None:
    """Their digests are in the events of the log's tail only."""
    path = tmp_path / "jobs.db"
    rig = WriterRig(store=SQLiteStore(path))
    rig.submit(submission())
    rig.end(body=b"a result")
    rig.submit(submission())
    rig.store.close()

    def change(connection: Connection) -> None:
        connection.execute("UPDATE blobs SET body = CAST('something else' AS BLOB)" if damaged else "SELECT 1")

    report = damage(path, change)

    assert report.to_seq > report.projected_seq
    assert [problem.kind for problem in report.problems] == (["digest"] * 3 if damaged else []), said(report)


def test_a_damaged_wal_is_found_although_sqlite_would_drop_what_is_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    killed(path)
    wal = path.with_name("jobs.db-wal")
    flip(wal, wal.stat().st_size // 2)

    report = verify(path)

    assert kinds(report) == {"structure"}
    assert "is damaged at byte" in said(report)


def test_nothing_is_verified_where_there_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="there is no store"):
        verify(tmp_path / "none.db")


def test_progress_is_told(worked: Path) -> None:
    seen: list[str] = []

    verify(worked, progress=lambda phase, done, total: seen.append(phase))

    assert {"log", "tables", "structure"} <= set(seen)


# --- a pruned log -----------------------------------------------------------------------------------------------


def prune_log(path: Path, commits: int) -> int:
    store = SQLiteStore(path)
    store.open(pid=os.getpid(), host="test")
    try:
        return store.prune_log(1 << 60, 1 << 60, commits)
    finally:
        store.close()


def test_a_pruned_log_is_checked_from_where_it_begins(store: Path) -> None:
    assert prune_log(store, 20) == 20
    work(make_queue(store))

    report = verify(store)

    assert report.ok, said(report)
    assert report.replay == "partial"
    assert report.from_seq > 1
    assert f"from sequence {report.from_seq}, where the log begins after pruning" in report.replay_note


def test_behind_a_pruned_log_a_changed_run_is_still_found(store: Path) -> None:
    prune_log(store, 20)
    work(make_queue(store))

    report = damage(store, lambda connection: change_run(connection, state=COMPLETED, reason="completed"))

    assert {"replay", "accounting"} <= kinds(report)


def test_pruned_tasks_are_no_loss(store: Path) -> None:
    queue = make_queue(store)
    with queue.running():
        summary = queue.prune(before="0s")
        assert summary.tasks > 20
        report = queue.verify()

    assert report.ok, said(report)
    assert report.replay == "whole"
    assert verify(store).ok


def test_a_wrong_anchor_is_found(store: Path) -> None:
    prune_log(store, 20)

    def change(connection: Connection) -> None:
        row = connection.execute(f"SELECT {', '.join(ANCHOR_COLUMNS)} FROM anchors").fetchone()
        connection.execute("UPDATE anchors SET hash = ?, crc = ?", (bytes(32), sealed((row[0], bytes(32), row[2]))[-1]))

    assert "chain" in kinds(damage(store, change))


# --- damage to the log ------------------------------------------------------------------------------------------


def middle(connection: Connection) -> int:
    seqs = connection.execute("SELECT last_seq FROM commits ORDER BY last_seq").fetchall()
    found: int = seqs[len(seqs) // 2][0]
    return found


def test_a_flipped_bit_in_a_commit_is_found(store: Path) -> None:
    def change(connection: Connection) -> None:
        seq = middle(connection)
        (body,) = connection.execute("SELECT events FROM commits WHERE last_seq = ?", (seq,)).fetchone()
        changed = body[:-1] + bytes([body[-1] ^ 1])
        connection.execute("UPDATE commits SET events = ? WHERE last_seq = ?", (changed, seq))

    report = damage(store, change)

    assert [problem.kind for problem in report.problems] == ["chain"]
    assert report.replay == "none"
    assert "the log is damaged" in report.replay_note


def test_a_changed_column_of_a_commit_is_found(store: Path) -> None:
    report = damage(store, lambda c: c.execute("UPDATE commits SET at = at + 1 WHERE last_seq = ?", (middle(c),)))

    assert kinds(report) == {"checksum"}


def test_a_deleted_commit_is_found(store: Path) -> None:
    report = damage(store, lambda c: c.execute("DELETE FROM commits WHERE last_seq = ?", (middle(c),)))

    assert kinds(report) == {"sequence"}
    assert "are missing before it" in said(report)


def test_deleted_commits_at_the_end_are_found(store: Path) -> None:
    report = damage(store, lambda c: c.execute("DELETE FROM commits WHERE last_seq >= ?", (middle(c),)))

    assert "the log ends at" in said(report)


def test_deleted_commits_at_the_start_are_found(store: Path) -> None:
    report = damage(store, lambda c: c.execute("DELETE FROM commits WHERE last_seq <= ?", (middle(c),)))

    assert "no anchor says that what was before it was pruned" in said(report)


def test_a_commit_with_another_number_of_events_is_found(store: Path) -> None:
    """Bytes that fit their hash, but not the sequences they claim: a mistake of ours, not of the disk."""

    def change(connection: Connection) -> None:
        row = connection.execute(
            "SELECT last_seq, first_seq, at, epoch, version, hash, events FROM commits ORDER BY last_seq DESC LIMIT 1"
        ).fetchone()
        before = connection.execute(
            "SELECT hash FROM commits WHERE last_seq < ? ORDER BY last_seq DESC LIMIT 1", (row[0],)
        ).fetchone()[0]
        body = encode_events([])
        head = (*row[:5], chain(before, body))
        connection.execute(
            "UPDATE commits SET hash = ?, crc = ?, events = ? WHERE last_seq = ?",
            (head[5], sealed(head)[-1], body, row[0]),
        )

    assert "holds 0 events" in said(damage(store, change))


# --- damage to rows ---------------------------------------------------------------------------------------------


def change_run(connection: Connection, *, where: str = "finished_at IS NULL", **values: object) -> None:
    """Give one run other values, with a checksum that fits: what an edit by hand, or a mistake of ours, would do."""
    columns = COLUMNS["runs"]
    stored = connection.execute(f"SELECT {', '.join(columns)} FROM runs WHERE {where} ORDER BY id LIMIT 1").fetchone()
    new = list(open_run(stored))
    for name, value in values.items():
        new[RUN_COLUMNS.index(name)] = value
    write_stored(connection, "runs", stored_run(resealed("runs", tuple(new))))


def change_task(connection: Connection, *, where: str = "1", **values: object) -> None:
    columns = COLUMNS["tasks"]
    stored = connection.execute(f"SELECT {', '.join(columns)} FROM tasks WHERE {where} ORDER BY id LIMIT 1").fetchone()
    new = list(open_task(stored))
    for name, value in values.items():
        new[TASK_COLUMNS.index(name)] = value
    write_stored(connection, "tasks", stored_task(resealed("tasks", tuple(new))))


def resealed(table: str, row: tuple[object, ...]) -> tuple[object, ...]:
    """With the checksum that fits."""
    if table == "runs":
        crc = rows._crc(rows._pack(row[4:28]), row[0], row[1], rows.named(row[2], row[3]))  # type: ignore[arg-type]
    else:
        crc = rows._crc(rows._pack(row[3:16]), row[0], rows.named(row[1], row[2]))  # type: ignore[arg-type]
    whole = (*row[:-1], crc)
    check_row(whole, table)
    return whole


def write_stored(connection: Connection, table: str, stored: tuple[object, ...]) -> None:
    marks = ", ".join("?" * len(stored))
    connection.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", stored)


@pytest.mark.parametrize("table", ["tasks", "runs"])
def test_a_flipped_bit_in_a_row_is_found_and_the_row_named(store: Path, table: str) -> None:
    def change(connection: Connection) -> None:
        id, body = connection.execute(f"SELECT id, body FROM {table} ORDER BY id LIMIT 1 OFFSET 7").fetchone()
        connection.execute(f"UPDATE {table} SET body = ? WHERE id = ?", (body[:-1] + bytes([body[-1] ^ 4]), id))

    report = damage(store, change)

    assert "checksum" in kinds(report)
    assert all(problem.place.startswith(f"{table} ") for problem in report.problems if problem.kind == "checksum")


@pytest.mark.parametrize(("table", "column"), [("attempts", "reason"), ("facts", "body"), ("meta", "value")])
def test_a_changed_value_is_found(store: Path, table: str, column: str) -> None:
    first = {"attempts": "run_id", "facts": "name", "meta": "name"}[table]
    where = f"{first} = (SELECT min({first}) FROM {table})"

    report = damage(store, lambda c: c.execute(f"UPDATE {table} SET {column} = 'changed' WHERE {where}"))

    assert "checksum" in kinds(report), said(report)


def test_a_row_whose_body_is_no_row_any_more_is_found(store: Path) -> None:
    report = damage(store, lambda c: c.execute("UPDATE runs SET body = x'c1c1' WHERE id = (SELECT min(id) FROM runs)"))

    assert "checksum" in kinds(report)
    assert "cannot be made out" not in said(report)


def test_an_edited_state_is_found_and_its_column_named(store: Path) -> None:
    def change(connection: Connection) -> None:
        change_run(connection, where=f"state = {FAILED}", state=COMPLETED, reason="completed")

    report = damage(store, change)

    assert not report.ok
    assert "state is completed, the log leads to failed" in said(report)
    assert {"replay", "accounting"} <= kinds(report)


def test_an_edited_live_run_is_found_as_an_invariant_too(store: Path) -> None:
    report = damage(store, lambda connection: change_run(connection, state=READY, reason="due"))

    assert {"replay", "structure"} & kinds(report)


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("run_count", 5, "it counts 5 runs, and has 1"),
        ("completed", 3, "it counts 3 runs completed, and has 1"),
        ("finished_at", None, "open runs and no instant of finishing"),
        ("max_attempts", 0, ""),
    ],
)
def test_wrong_counts_of_a_task_are_found(store: Path, column: str, value: object, expected: str) -> None:
    where = "finished_at IS NOT NULL AND handler LIKE '%hello' AND idempotency_key IS NULL"

    report = damage(store, lambda connection: change_task(connection, where=where, **{column: value}))

    assert "replay" in kinds(report)
    assert expected in said(report)


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("attempt_count", 7, "it counts 7 attempts"),
        ("failure_count", 9, "9 counted failures of at most"),
        ("lost_count", 1, "it counts 1 losses"),
    ],
)
def test_wrong_counts_of_a_run_are_found(store: Path, column: str, value: int, expected: str) -> None:
    """snapshot_model_parity#7: attempts counted and not there."""
    report = damage(store, lambda c: change_run(c, where=f"state = {FAILED}", **{column: value}))

    assert expected in said(report)


def test_a_run_completed_twice_is_found(store: Path) -> None:
    """A retry of a run that was completed: promise 2 of SEMANTICS.md section 2."""

    def change(connection: Connection) -> None:
        columns = ", ".join(COLUMNS["runs"])
        stored = connection.execute(f"SELECT {columns} FROM runs WHERE state = {COMPLETED} LIMIT 1").fetchone()
        row = list(open_run(stored))
        first = row[0]
        row[0], row[19], row[20] = os.urandom(16), first, first
        write_stored(connection, "runs", stored_run(resealed("runs", tuple(row))))

    assert "was completed 2 times, counting retries" in said(damage(store, change))


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("DELETE FROM tasks WHERE id = (SELECT min(id) FROM tasks)", "is missing"),
        ("DELETE FROM runs WHERE id = (SELECT min(id) FROM runs)", "it counts 1 runs, and has 0"),
        ("DELETE FROM attempts WHERE run_id = (SELECT min(run_id) FROM attempts)", "it counts 2 attempts, and has 1"),
        ("DELETE FROM blobs WHERE id = (SELECT min(id) FROM tasks)", "its payload is missing"),
        (f"DELETE FROM blobs WHERE id = (SELECT min(id) FROM runs WHERE state = {COMPLETED})", "its result is missing"),
        ("DELETE FROM run_tags WHERE run_id = (SELECT min(run_id) FROM run_tags)", "its task ["),
        ("DELETE FROM facts WHERE name = 'facts'", "the counters are missing"),
        ("DELETE FROM meta WHERE name = 'projected_seq'", "projected_seq"),
        ("INSERT INTO run_tags VALUES ('extra', (SELECT max(id) FROM runs))", "tags of runs"),
        ("INSERT INTO blobs VALUES (x'00112233445566778899aabbccddeeff', x'00')", "it belongs to no task"),
    ],
)
def test_what_is_missing_or_too_much_is_found(store: Path, statement: str, expected: str) -> None:
    report = damage(store, lambda connection: connection.execute(statement))

    assert not report.ok
    assert expected in said(report), said(report)


@pytest.mark.parametrize("owner", ["tasks", "runs"])
def test_a_flipped_bit_in_a_payload_or_result_is_found(store: Path, owner: str) -> None:
    def change(connection: Connection) -> None:
        id, body = connection.execute(
            f"SELECT id, body FROM blobs WHERE id IN (SELECT id FROM {owner}) ORDER BY id LIMIT 1"
        ).fetchone()
        connection.execute("UPDATE blobs SET body = ? WHERE id = ?", (bytes([body[0] ^ 1]) + body[1:], id))

    report = damage(store, change)

    assert [problem.kind for problem in report.problems] == ["digest"]


def test_wrong_counters_are_found(store: Path) -> None:
    def change(connection: Connection) -> None:
        (body,) = connection.execute("SELECT body FROM facts WHERE name = 'facts'").fetchone()
        facts = msgspec.msgpack.decode(body)
        facts[4] += 1
        new = msgspec.msgpack.encode(facts)
        connection.execute("UPDATE facts SET body = ?, crc = ? WHERE name = 'facts'", (new, sealed(("facts", new))[-1]))

    report = damage(store, change)

    assert "69 tasks are counted, 68 are there" in said(report)


def test_a_report_keeps_a_thousand_problems_and_counts_all(store: Path) -> None:
    def change(connection: Connection) -> None:
        connection.executemany("INSERT INTO blobs VALUES (?, ?)", [(os.urandom(16), b"x") for _ in range(1_500)])

    report = damage(store, change)

    assert (report.problem_count, len(report.problems)) == (1_500, 1_000)
    assert "… and 1450 more" in str(report)
    assert "Copy the store and its -wal file aside" in str(report)


# --- damage to the file -----------------------------------------------------------------------------------------


def test_a_file_that_sqlite_cannot_read_is_reported_not_raised(store: Path) -> None:
    with store.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(4096)
        file.write(os.urandom(size - 4096))

    report = verify(store)

    assert not report.ok
    assert "structure" in kinds(report)


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ 0x10]))


@pytest.mark.slow
@settings(max_examples=60)
@given(place=st.floats(0, 1, exclude_max=True))
def test_a_flipped_bit_in_a_used_part_of_the_file_never_goes_unseen_as_a_wrong_answer(
    worked: Path, place: float
) -> None:
    """Anything but the file's header, counters and unused bytes is noticed; and a report is made of whatever it is."""
    path = worked.with_name("flipped.db")
    shutil.copyfile(worked, path)
    before = contents(path)
    at = 100 + int(place * (path.stat().st_size - 100))
    flip(path, at)

    try:
        report = verify(path)
    except StoreError:  # it cannot be opened, or is taken for a file of another program
        return

    if report.ok:
        assert contents(path) == before, f"byte {at} changed what the store holds, and was not noticed"


def contents(path: Path) -> object:
    """All rows of all tables, by their keys; None when they cannot be read."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            tables = [
                row[0]
                for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
            ]
            return [
                (table, sorted(connection.execute(f"SELECT * FROM {table}").fetchall(), key=repr)) for table in tables
            ]
    except sqlite3.Error:
        return None
