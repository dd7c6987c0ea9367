"""Damage to the files: noticed, named, never read over (issue line 6; section 5, numbers 8 and 17).

Flipped bits in the database, its WAL, a payload, a result, the inbox: nothing acknowledged is dropped in silence.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from actionqueue import NotAStore, RunFailed, StoreDamaged
from actionqueue.verify import verify
from tests.process.programs.jobs import make_queue
from tests.process.support import PATIENCE_S, Programs, error_of, eventually, inspect, leftovers


@pytest.fixture
def crashed(programs: Programs, store: Path) -> Path:
    """A store whose engine was killed: everything is in its WAL still."""
    engine = programs.start("engine", store)
    engine.line("engine")
    client = make_queue(store, role="client")
    for n in range(20):
        assert client.handlers["echo"].submit(n).result(timeout=PATIENCE_S) == n
    client.close()
    engine.kill()
    return store


def flip(path: Path, offset: int) -> None:
    """Change one bit."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def copy_of(store: Path, folder: Path) -> Path:
    """The store as it is, elsewhere."""
    folder.mkdir()
    for suffix in ("", "-wal"):
        if Path(f"{store}{suffix}").exists():
            shutil.copy(f"{store}{suffix}", folder / f"{store.name}{suffix}")
    return folder / store.name


def check_refused_as_damaged(path: Path) -> StoreDamaged:
    queue = make_queue(path)
    refused = error_of(lambda: queue.running().__enter__())
    assert isinstance(refused, StoreDamaged), refused
    assert refused.code == "store_damaged"
    assert refused.facts["place"]
    return refused


def check_all_there(path: Path, count: int) -> None:
    queue = make_queue(path)
    with queue.running():
        assert queue.stats().runs["completed"] == count
        assert queue.handlers["echo"].submit(99).result(timeout=PATIENCE_S) == 99
        assert inspect(queue, leftovers) == []
    assert verify(path).ok


def test_a_flipped_bit_in_the_wal_is_refused_with_its_place_and_the_good_copy_opens(
    crashed: Path, tmp_path: Path
) -> None:
    """S5-17: SQLite alone would drop every commit behind it without a word."""
    good = copy_of(crashed, tmp_path / "good")
    wal = Path(f"{crashed}-wal")
    before = crashed.read_bytes()
    flip(wal, wal.stat().st_size // 2)
    damaged = wal.read_bytes()
    refused = check_refused_as_damaged(crashed)
    assert str(refused.facts["place"]).startswith("wal")
    assert (crashed.read_bytes(), wal.read_bytes()) == (before, damaged)
    assert not verify(crashed).ok
    check_all_there(good, 20)


def test_a_torn_last_write_is_dropped_by_itself(crashed: Path) -> None:
    """S5-8: half a frame at the end was never acknowledged, whatever it was to be."""
    wal = Path(f"{crashed}-wal")
    with wal.open("ab") as file:
        file.write(wal.read_bytes()[32 : 32 + 2000])
    check_all_there(crashed, 20)


def test_a_flipped_bit_in_the_database_is_noticed(crashed: Path, tmp_path: Path) -> None:
    """Somewhere in a page of a table: the structure, a checksum or the chain tells; never is something else read."""
    check_all_there(crashed, 20)
    size = crashed.stat().st_size
    for number in range(1, 8):
        path = copy_of(crashed, tmp_path / f"copy{number}")
        flip(path, size * number // 8 + 1000)
        report = verify(path)
        if report.ok:  # it hit a byte that nothing uses
            check_opens_as(path, 21)
            continue
        assert report.problems
        with suppress(StoreDamaged), make_queue(path).running() as queue:
            for run in queue.iter_runs():
                queue.get_run(run.id)


def check_opens_as(path: Path, count: int) -> None:
    queue = make_queue(path)
    with queue.running():
        assert queue.stats().runs["completed"] == count


def change(store: Path, statement: str) -> None:
    """As a bad disk does, without the store's checksums."""
    with closing(sqlite3.connect(store, isolation_level=None)) as connection:
        assert connection.execute(statement).rowcount > 0


def test_a_changed_row_of_live_work_is_refused_at_opening(store: Path) -> None:
    queue = make_queue(store)
    with queue.running():
        job = queue.handlers["echo"].options(delay="1h").submit(1)
    change(store, "UPDATE runs SET created_at = created_at + 1")
    refused = check_refused_as_damaged(store)
    assert job.run_id.hex in str(refused.facts["place"]).replace("-", "")
    assert not verify(store).ok
    change(store, "UPDATE runs SET created_at = created_at - 1")
    with queue.running():
        assert job.state() == "scheduled"


def test_a_changed_event_is_found_by_verify(store: Path) -> None:
    queue = make_queue(store)
    with queue.running():
        queue.handlers["echo"].submit(1).result(timeout=PATIENCE_S)
    change(store, "UPDATE commits SET events = CAST(events || x'00' AS BLOB) WHERE first_seq = 1")
    report = verify(store)
    assert not report.ok
    assert "chain" in [problem.kind for problem in report.problems], report


def test_changed_arguments_fail_their_run_and_hold_up_nobody(store: Path) -> None:
    """A payload's digest is in the event: what is on the disk is not what was submitted, so it is not run."""
    queue = make_queue(store)
    with queue.running():
        bad = queue.handlers["echo"].options(delay="1h").submit(123_456)
    change(store, "UPDATE blobs SET body = CAST(replace(CAST(body AS TEXT), '123456', '123457') AS BLOB)")
    with queue.running():
        queue.reschedule(bad.run_id, datetime.now(UTC))
        with pytest.raises(RunFailed) as caught:
            bad.result(timeout=PATIENCE_S)
        assert caught.value.facts["reason"] == "payload_damaged"
        assert queue.handlers["echo"].submit(5).result(timeout=PATIENCE_S) == 5
        assert inspect(queue, leftovers) == []
    assert [problem.kind for problem in verify(store).problems] == ["digest"]


def test_arguments_on_a_page_that_cannot_be_read_fail_their_runs_and_hold_up_nobody(store: Path) -> None:
    """SQLite refuses the page itself; the engine goes on, and so does the next one."""
    queue = make_queue(store)
    echo = queue.handlers["echo"]
    with queue.running():
        jobs = queue.submit_many([echo.options(delay="1h").bind(10**200 + n) for n in range(300)])
    data = store.read_bytes()
    page_bytes = int.from_bytes(data[16:18], "big")
    place = data.index(b"1%0197d042" % 0) // page_bytes * page_bytes
    with store.open("r+b") as file:
        file.seek(place)
        file.write(b"\0")
    for bad, good in ((jobs[42], jobs[0]), (jobs[43], jobs[1])):
        with queue.running():
            for job in (bad, good):
                queue.reschedule(job.run_id, datetime.now(UTC))
            with pytest.raises(RunFailed) as caught:
                bad.result(timeout=PATIENCE_S)
            assert caught.value.facts["reason"] == "payload_damaged"
            assert good.result(timeout=PATIENCE_S) == 10**200 + jobs.index(good)


def test_a_changed_result_is_not_given_out(store: Path) -> None:
    queue = make_queue(store)
    with queue.running():
        job = queue.handlers["echo"].submit(123_456)
        job.result(timeout=PATIENCE_S)
    change(store, "UPDATE blobs SET body = CAST('123457' AS BLOB) WHERE CAST(body AS TEXT) = '123456'")
    with queue.running(), pytest.raises(StoreDamaged):
        job.result(timeout=PATIENCE_S)
    with pytest.raises(StoreDamaged):
        job.result(timeout=PATIENCE_S)
    queue.close()


def test_a_damaged_inbox_stops_nobody_but_those_who_send_through_it(store: Path) -> None:
    """The engine works on; once the file is moved away, the next engine takes commands again."""
    queue = make_queue(store)
    client = make_queue(store, role="client")
    with queue.running():
        assert client.handlers["echo"].submit(1).result(timeout=PATIENCE_S) == 1
        client.close()
        inbox = store.with_name(store.name + ".inbox")
        with closing(sqlite3.connect(inbox)) as connection:
            eventually(lambda: connection.execute("SELECT count(*) FROM inbox").fetchone() == (0,), "it is read")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with inbox.open("r+b") as file:
            file.seek(100)
            file.write(b"\xaa" * (inbox.stat().st_size - 100))
        refused = error_of(lambda: client.handlers["echo"].submit(2))
        assert isinstance(refused, NotAStore)
        assert queue.handlers["echo"].submit(3).result(timeout=PATIENCE_S) == 3
        client.close()
    for each in store.parent.glob("jobs.db.inbox*"):
        each.unlink()
    with queue.running():
        assert client.handlers["echo"].submit(4).result(timeout=PATIENCE_S) == 4
    client.close()
