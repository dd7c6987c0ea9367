"""Damage in a write-ahead log is told from a torn write: on logs that SQLite wrote, cut, torn and flipped in every way.

SQLite itself says what it keeps of each log (`kept_by_sqlite`), and a plain loop says what its checksums are.
"""

from __future__ import annotations

import sqlite3
import struct
import subprocess
import sys
from array import array
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from actionqueue.core.errors import StoreDamaged, StoreUnavailable
from actionqueue.store import wal_scan
from actionqueue.store.wal_scan import FRAME_HEADER_BYTES, HEADER_BYTES, WalReport, check_wal, scan_wal

SECTOR_BYTES = 512
PAGE_SIZES = [512, 1024, 4096, 65536]


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A database with its log, as a power failure leaves them on the disk."""

    database: bytes
    wal: bytes
    page_bytes: int
    ends: tuple[int, ...]
    """The last frame of each transaction of this generation, from 1."""
    beneath: bytes
    """What was in the log before its last transaction was written."""

    @property
    def frame_bytes(self) -> int:
        return FRAME_HEADER_BYTES + self.page_bytes

    def start_of(self, frame: int) -> int:
        return HEADER_BYTES + (frame - 1) * self.frame_bytes

    def end_of(self, frame: int) -> int:
        return self.start_of(frame + 1)

    def last_end_at_or_before(self, frame: int) -> int:
        return max((end for end in self.ends if end <= frame), default=0)


# --- logs that SQLite wrote --------------------------------------------------------------------------------------

SIZES = (1, 3, 1, 2, 5)
"""About how many pages each transaction writes; the last one is there to be torn."""


@cache
def written(page_bytes: int = 512, *, sizes: tuple[int, ...] = SIZES, story: str = "fresh") -> Log:
    """A log of transactions of these sizes, in one of the situations that SQLite gets into."""
    with TemporaryDirectory() as folder, closing(opened(Path(folder) / "jobs.db", page_bytes)) as connection:
        wal_path = Path(folder) / "jobs.db-wal"
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, page BLOB)")
        if story == "reused":  # the frames of an earlier generation lie behind those of this one
            for _ in range(3):
                write(connection, sum(sizes) // 2, page_bytes)
            assert connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0] == 0
        if story == "rolled back":  # so do frames of this one that never had a commit
            connection.execute("PRAGMA cache_size = 1")
            connection.execute("BEGIN")
            write(connection, 2 * sum(sizes), page_bytes)
            assert wal_path.stat().st_size > sum(sizes) * page_bytes
            connection.execute("ROLLBACK")
        ends: list[int] = [] if story == "reused" else [frames_in(wal_path)]
        beneath = b""
        for size in sizes:
            beneath = wal_path.read_bytes()
            write(connection, size, page_bytes)
            ends.append(frames_in(wal_path))
        assert len(set(ends)) == len(ends)
        return Log(
            database=(Path(folder) / "jobs.db").read_bytes(),
            wal=wal_path.read_bytes(),
            page_bytes=page_bytes,
            ends=tuple(ends),
            beneath=beneath,
        )


STORIES = ["fresh", "reused", "rolled back"]


def opened(path: Path, page_bytes: int = 4096) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in (f"page_size = {page_bytes}", "journal_mode = wal", "synchronous = full", "wal_autocheckpoint = 0"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def write(connection: sqlite3.Connection, pages: int, page_bytes: int) -> None:
    (last,) = connection.execute("SELECT coalesce(max(id), 0) FROM t").fetchone()
    rows = [(last + i, bytes([i % 251 + 1]) * (page_bytes * 3 // 5)) for i in range(1, pages + 1)]
    alone = not connection.in_transaction
    if alone:
        connection.execute("BEGIN")
    connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
    if alone:
        connection.execute("COMMIT")


def frames_in(wal_path: Path) -> int:
    """How many frames count now: ``mxFrame`` of the index that SQLite keeps of a log in use."""
    index = wal_path.with_name(wal_path.name.removesuffix("-wal") + "-shm").read_bytes()
    return int.from_bytes(index[16:20], sys.byteorder)


def kept_by_sqlite(log: Log, wal: bytes) -> int:
    """How many frames SQLite recovers from this log."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.db"
        path.write_bytes(log.database)
        Path(f"{path}-wal").write_bytes(wal)
        with closing(sqlite3.connect(path)) as connection:
            return max(0, int(connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]))


SCRATCH = TemporaryDirectory()
"""For tens of thousands of logs, one after the other under one name."""


@pytest.fixture(scope="module", autouse=True)
def scratch_is_removed() -> Iterator[None]:
    yield
    SCRATCH.cleanup()


def scanned(wal: bytes) -> WalReport:
    path = Path(SCRATCH.name) / "jobs.db-wal"
    path.write_bytes(wal)
    return scan_wal(path)


def flipped(wal: bytes, bit: int) -> bytes:
    changed = bytearray(wal)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def summed_anew(log: Log, order: str = "<") -> Log:
    """The same log with the checksums that its bytes should have, as a machine of that byte order writes them."""
    header = struct.pack(">I", 0x377F0682 if order == "<" else 0x377F0683) + log.wal[4:24]
    sums = plain_sums(header, (0, 0), order)
    wal = bytearray(header + struct.pack(">II", *sums))
    for offset in range(HEADER_BYTES, len(log.wal), log.frame_bytes):
        head, page = log.wal[offset : offset + 16], log.wal[offset + 24 : offset + log.frame_bytes]
        sums = plain_sums(head[:8] + page, sums, order)
        wal += head + struct.pack(">II", *sums) + page
    return replace(log, wal=bytes(wal))


def plain_sums(data: bytes, seed: tuple[int, int], order: str) -> tuple[int, int]:
    s1, s2 = seed
    for x1, x2 in struct.iter_unpack(f"{order}II", data):
        s1 = (s1 + x1 + s2) % 2**32
        s2 = (s2 + x2 + s1) % 2**32
    return s1, s2


# --- nothing is wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("page_bytes", PAGE_SIZES)
def test_a_clean_log_is_read_as_sqlite_reads_it(page_bytes: int, story: str) -> None:
    """wal_corruption_recovery/04: nothing to repair, nothing changed."""
    log = written(page_bytes, story=story)

    report = scanned(log.wal)

    assert report == WalReport(
        frames=log.ends[-1],
        commits=len(log.ends),
        valid_bytes=log.end_of(log.ends[-1]),
        total_bytes=len(log.wal),
        damage=None,
    )
    assert kept_by_sqlite(log, log.wal) == report.frames


def test_a_log_of_the_other_byte_order_is_read_too() -> None:
    log = summed_anew(written(), ">")

    report = scanned(log.wal)

    assert (report.frames, report.commits, report.damage) == (log.ends[-1], len(log.ends), None)
    assert kept_by_sqlite(log, log.wal) == report.frames


def test_a_frame_of_no_page_is_where_sqlite_stops() -> None:
    log = written()
    assert summed_anew(log) == log
    at = log.start_of(log.ends[-1])
    zeroed = summed_anew(replace(log, wal=log.wal[:at] + bytes(4) + log.wal[at + 4 :]))

    assert scanned(zeroed.wal).frames == log.ends[-2] == kept_by_sqlite(log, zeroed.wal)


def test_what_is_no_log_yet_is_fine(tmp_path: Path) -> None:
    nothing = WalReport(frames=0, commits=0, valid_bytes=0, total_bytes=0, damage=None)
    assert scan_wal(tmp_path / "missing-wal") == nothing
    assert scanned(b"") == nothing

    header = written().wal[:HEADER_BYTES]
    for wal in (header[:1], header[:31], bytes(32), bytes(100_000), b"\xff" * 100_000):
        assert scanned(wal) == replace(nothing, total_bytes=len(wal))
    assert scanned(header) == replace(nothing, valid_bytes=32, total_bytes=32)
    assert scanned(header + bytes(100_000)).damage is None


@pytest.mark.parametrize("tail", [b"\x00" * 6, b"\x07" * 24 + b"\x05" * 15, b"\xff" * 7, b"\xff" * 5000])
def test_stray_bytes_at_the_end_are_no_damage(tail: bytes) -> None:
    """wal_corruption_recovery/01, 02, 03; wal_partial_record#3, #4: a torn header, a torn record, garbage."""
    log = written()

    report = scanned(log.wal + tail)

    assert (report.frames, report.damage) == (log.ends[-1], None)
    assert report.valid_bytes == len(log.wal)
    assert report.total_bytes == len(log.wal) + len(tail)


# --- cut and torn ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("page_bytes", [512, 4096])
def test_a_cut_log_keeps_the_commits_before_the_cut(page_bytes: int, story: str) -> None:
    """Scenario 6 for this file: cut at every frame's border, just beside it, and inside."""
    log = written(page_bytes, story=story)

    for frame in range(1, log.ends[-1] + 2):
        for inside in (-1, 0, 1, 8, 16, 23, 24, 25, page_bytes // 2):
            cut = log.start_of(frame) + inside
            report = scanned(log.wal[:cut])

            whole = max(0, cut - HEADER_BYTES) // log.frame_bytes
            assert report.damage is None
            assert report.frames == log.last_end_at_or_before(whole)
            assert report.frames == kept_by_sqlite(log, log.wal[:cut])


def torn(log: Log, arrived: set[int], unit_bytes: int, *, cut: bool) -> bytes:
    """The log when only these units of its last transaction reached the disk, and those before it.

    Elsewhere is what was there before, or nothing (zeros). With ``cut`` the file's new length did not arrive either.
    """
    begin = log.start_of(log.ends[-2] + 1)
    end = log.end_of(log.ends[-1])
    image = bytearray(log.beneath.ljust(end, b"\0"))
    furthest = len(log.beneath)
    for number, offset in enumerate(range(begin, end, unit_bytes)):
        if number in arrived:
            upto = min(offset + unit_bytes, end)
            image[offset:upto] = log.wal[offset:upto]
            furthest = max(furthest, upto)
    return bytes(image[:furthest]) if cut else bytes(image)


def assert_passes_as_torn(log: Log, wal: bytes) -> None:
    report = scanned(wal)
    assert report.damage is None
    assert report.frames in log.ends[-2:]
    assert (report.frames == log.ends[-1]) == (wal[: log.end_of(log.ends[-1])] == log.wal[: log.end_of(log.ends[-1])])


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("page_bytes", [512, 4096])
def test_a_last_transaction_torn_by_whole_frames_is_no_damage(page_bytes: int, story: str, cut: bool) -> None:
    """Scenario 8: every subset of its frames, its commit frame among them or not."""
    log = written(page_bytes, story=story)
    frames = log.ends[-1] - log.ends[-2]
    assert frames >= 5

    for choice in product([False, True], repeat=frames):
        arrived = {number for number, here in enumerate(choice) if here}
        wal = torn(log, arrived, log.frame_bytes, cut=cut)

        assert_passes_as_torn(log, wal)
        assert kept_by_sqlite(log, wal) == (log.ends[-1] if all(choice) else log.ends[-2])


@given(
    seed=st.integers(0, 2**32),
    share=st.sampled_from([0.1, 0.5, 0.9, 0.98]),
    page_bytes=st.sampled_from([512, 4096]),
    story=st.sampled_from(STORIES),
    unit_bytes=st.sampled_from([8, SECTOR_BYTES, 4096]),
    cut=st.booleans(),
)
@example(seed=0, share=0.1, page_bytes=512, story="rolled back", unit_bytes=8, cut=False)
def test_a_last_transaction_torn_anyhow_is_no_damage(
    seed: int, share: float, page_bytes: int, story: str, unit_bytes: int, cut: bool
) -> None:
    """Scenario 8: by sectors, by blocks of the file system, and finer than any disk tears.

    Finer, since a frame's header can lie across two sectors: its mark as a commit arrives, its checksum does not.
    """
    log = written(page_bytes, story=story)
    units = log.frame_bytes * (log.ends[-1] - log.ends[-2]) // unit_bytes + 1
    random = Random(seed)
    arrived = {unit for unit in range(units) if random.random() < share}

    assert_passes_as_torn(log, torn(log, arrived, unit_bytes, cut=cut))


@pytest.mark.parametrize("page_bytes", [512, 4096])
@pytest.mark.parametrize("story", ["fresh", "reused"])
def test_a_first_transaction_torn_anyhow_is_no_damage(page_bytes: int, story: str) -> None:
    """The header is synced before the first frame, so it is there; over it, nothing or an earlier generation."""
    whole = written(page_bytes, sizes=(4,), story=story)
    first_end = whole.ends[0]
    blank = whole.wal[:HEADER_BYTES] + whole.beneath[HEADER_BYTES:] if story == "reused" else whole.wal[:HEADER_BYTES]
    log = replace(whole, ends=(0, first_end), beneath=blank)

    for choice in product([False, True], repeat=first_end):
        arrived = {number for number, here in enumerate(choice) if here}
        assert_passes_as_torn(log, torn(log, arrived, log.frame_bytes, cut=False))
    assert scanned(blank) == WalReport(
        frames=0, commits=0, valid_bytes=HEADER_BYTES, total_bytes=len(blank), damage=None
    )


def test_a_transaction_torn_in_an_earlier_crash_may_still_lie_behind(tmp_path: Path) -> None:
    """SQLite goes on in the same generation after it recovered, and overwrites only as much as it needs."""
    log = written(sizes=(1, 1, 9))
    path = tmp_path / "jobs.db"
    path.write_bytes(log.database)
    Path(f"{path}-wal").write_bytes(torn(log, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, log.frame_bytes, cut=False))
    with closing(opened(path)) as connection:
        write(connection, 1, log.page_bytes)
        frames = frames_in(Path(f"{path}-wal"))
        wal = Path(f"{path}-wal").read_bytes()
    assert log.ends[-2] < frames < log.ends[-1]

    report = scanned(wal)

    assert (report.frames, report.damage) == (frames, None)


WRITER = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for pragma in ("journal_mode = wal", "synchronous = full", "wal_autocheckpoint = 40"):
    connection.execute(f"PRAGMA {pragma}")
connection.execute("CREATE TABLE IF NOT EXISTS t (page BLOB)")
while True:
    connection.execute("INSERT INTO t VALUES (?)", (os.urandom(30_000),))
    print(flush=True)
"""


def test_a_killed_writer_never_leaves_what_is_taken_for_damage(tmp_path: Path) -> None:
    """Scenario 7 for this file, over generations of the log; with what the killed one left each time."""
    path, wal_path = tmp_path / "jobs.db", tmp_path / "jobs.db-wal"
    for commits in (1, 2, 5, 11, 23, 3):
        with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(commits):
                writer.stdout.readline()
            writer.kill()

        left = Log(database=path.read_bytes(), wal=wal_path.read_bytes(), page_bytes=4096, ends=(), beneath=b"")
        report = check_wal(wal_path)

        assert report.frames == kept_by_sqlite(left, left.wal)


# --- damage ------------------------------------------------------------------------------------------------------

PLACES = {"page number": 0, "size": 4, "salt": 8, "second salt": 12, "checksum": 16, "second checksum": 20, "page": 24}


def places_in(log: Log) -> Iterator[tuple[int, int, int]]:
    """(frame, offset in it, bit of the file) at each kind of place in each frame."""
    deep = {"deep in the page": 24 + log.page_bytes // 2, "the page's end": log.frame_bytes - 1}
    for frame, inside in product(range(1, log.ends[-1] + 1), (PLACES | deep).values()):
        for bit in (0, 7, 27) if inside < 24 else (3,):
            yield frame, inside, 8 * (log.start_of(frame) + inside) + bit


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("other_order", [False, True])
@pytest.mark.parametrize("page_bytes", [512, 4096])
def test_one_flipped_bit_is_refused_when_commits_lie_behind(page_bytes: int, other_order: bool, story: str) -> None:
    """Scenario 17: a bad record followed by good ones. wal_partial_record#5, #6: the place is its start."""
    log = written(page_bytes, story=story)
    if other_order:
        log = summed_anew(log, ">")

    for frame, inside, bit in places_in(log):
        commits_after = sum(end > frame for end in log.ends)
        if commits_after < 2:
            continue
        report = scanned(flipped(log.wal, bit))

        assert report.damage is not None, (frame, inside, bit)
        assert report.damage.place == f"frame {frame}"
        assert report.damage.offset == log.start_of(frame)
        assert report.damage.commits_behind == commits_after
        assert report.frames == log.last_end_at_or_before(frame - 1)
        assert report.valid_bytes == log.end_of(report.frames)


def test_sqlite_alone_would_drop_what_lies_behind_a_flipped_bit() -> None:
    """Why this module exists; and it says rightly how much SQLite keeps."""
    log = written()

    for frame, _, bit in places_in(log):
        wal = flipped(log.wal, bit)

        assert kept_by_sqlite(log, wal) == log.last_end_at_or_before(frame - 1) == scanned(wal).frames


@pytest.mark.parametrize("story", STORIES)
def test_one_flipped_bit_is_refused_too_when_its_own_commit_and_one_more_frame_lie_behind(story: str) -> None:
    """The frame was written behind that commit, so the commit was synced, and with it the frame that is bad now."""
    log = written(story=story)
    assert log.ends[-2] - log.ends[-3] > 1

    for frame, inside, bit in places_in(log):
        if log.ends[-3] < frame < log.ends[-2]:
            wal = flipped(log.wal, bit)
            assert scanned(wal).damage is not None, (frame, inside, bit)
            assert scanned(wal[: log.end_of(log.ends[-2] + 1)]).damage is not None
            assert scanned(wal[: log.end_of(log.ends[-2])]).damage is None


def test_one_flipped_bit_in_the_last_transaction_passes_as_a_tear() -> None:
    """wal_corruption_recovery/07: a limit, not a wish. The bytes alone cannot tell."""
    log = written()

    for frame, _, bit in places_in(log):
        if log.ends[-2] < frame:
            report = scanned(flipped(log.wal, bit))

            assert (report.frames, report.damage) == (log.ends[-2], None)


@given(data=st.data())
def test_any_flipped_bit_with_two_commits_behind_is_refused(data: st.DataObject) -> None:
    log = written(data.draw(st.sampled_from([512, 4096])), story=data.draw(st.sampled_from(STORIES)))

    bit = data.draw(st.integers(8 * HEADER_BYTES, 8 * log.end_of(log.ends[-3]) - 1))

    assert scanned(flipped(log.wal, bit)).damage is not None


@given(data=st.data())
def test_a_damaged_stretch_with_two_commits_behind_is_refused(data: st.DataObject) -> None:
    """A block that reads as zeros, or as something else; over several frames too."""
    log = written(data.draw(st.sampled_from([512, 4096])), story=data.draw(st.sampled_from(STORIES)))
    first = data.draw(st.integers(1, log.ends[-4]))
    begin = data.draw(st.integers(log.start_of(first), log.end_of(first) - 8))
    end = data.draw(st.integers(begin + 8, log.end_of(log.ends[-4])))
    filler = data.draw(st.sampled_from([b"\0", b"\xff", b"\x5a"]))

    wal = log.wal[:begin] + filler * (end - begin) + log.wal[end:]

    report = scanned(wal)
    unchanged = wal == log.wal
    assert (report.damage is None) == unchanged
    assert report.frames == (log.ends[-1] if unchanged else kept_by_sqlite(log, wal))


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("page_bytes", [512, 4096])
def test_any_flipped_bit_in_the_header_is_refused(page_bytes: int, story: str) -> None:
    """Scenario 17: bit flips in header fields. SQLite would take the whole log for empty."""
    log = written(page_bytes, story=story)

    for bit in range(8 * HEADER_BYTES):
        wal = flipped(log.wal, bit)
        report = scanned(wal)

        assert report.damage is not None, bit
        assert (report.damage.place, report.damage.offset, report.valid_bytes) == ("header", 0, 0)
        assert report.damage.commits_behind >= len(log.ends)
    assert kept_by_sqlite(log, flipped(log.wal, 8 * 16)) == 0


def test_a_header_lost_whole_is_refused_for_the_frames_behind_it() -> None:
    log = written()

    for header in (bytes(HEADER_BYTES), b"\xff" * HEADER_BYTES, log.wal[64 : 64 + HEADER_BYTES]):
        assert scanned(header + log.wal[HEADER_BYTES:]).damage is not None


@pytest.mark.parametrize("story", ["fresh", "reused"])
def test_a_single_commit_behind_a_bad_header_is_refused(story: str) -> None:
    log = written(sizes=(1,), story=story)
    wal = log.wal[: log.end_of(log.ends[0])]

    for bit in range(8 * HEADER_BYTES):
        assert scanned(flipped(wal, bit)).damage is not None


def test_a_header_of_the_wrong_generation_is_refused() -> None:
    """Its write was lost although it was synced: SQLite would take the frames of this generation for leftovers."""
    old, new = written(story="fresh"), written(story="reused")

    wal = old.wal[:HEADER_BYTES] + new.wal[HEADER_BYTES : new.end_of(new.ends[-1])]

    assert scanned(wal).frames == 0  # another log's header: its salts are not these frames'
    assert scanned(wal).damage is None  # and nothing of its own lies behind them

    mixed = wal[: new.end_of(1)] + old.wal[new.end_of(1) :]
    damage = scanned(mixed).damage
    assert damage is not None
    assert damage.place == "frame 1"


def test_how_much_is_read_at_once_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    log = written(story="reused")
    changed = [log.wal, *(flipped(log.wal, bit) for _, _, bit in places_in(log)), flipped(log.wal, 8 * 17)]
    expected = [scanned(wal) for wal in changed]

    for chunk_bytes in (1, 3 * log.frame_bytes - 1):
        monkeypatch.setattr(wal_scan, "_CHUNK_BYTES", chunk_bytes)

        assert [scanned(wal) for wal in changed] == expected


# --- the refusal -------------------------------------------------------------------------------------------------


def test_damage_is_refused_with_its_place_and_a_way_out(tmp_path: Path) -> None:
    """Scenario 17: refused, log untouched, offset reported; and the way out that the message names is one."""
    log = written()
    frame = log.ends[2]
    wal = flipped(log.wal, 8 * (log.start_of(frame) + 100))
    path = tmp_path / "jobs.db-wal"
    path.write_bytes(wal)

    with pytest.raises(StoreDamaged, match="restore") as refusal:
        check_wal(path)

    facts = refusal.value.facts
    assert facts["path"] == str(path)
    assert facts["place"] == f"wal frame {frame}"
    assert facts["offset"] == log.start_of(frame)
    assert facts["commits_behind"] == len(log.ends) - 3
    assert f"byte {facts['offset']} " in str(refusal.value)
    assert path.read_bytes() == wal
    assert list(tmp_path.iterdir()) == [path]

    valid_bytes = facts["valid_bytes"]
    assert isinstance(valid_bytes, int)
    with path.open("r+b") as file:
        file.truncate(valid_bytes)
    assert check_wal(path).frames == log.ends[1] == kept_by_sqlite(log, path.read_bytes())


def test_a_good_log_passes_with_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db-wal"
    path.write_bytes(written().wal)

    assert check_wal(path) == scan_wal(path)
    assert check_wal(tmp_path / "missing").total_bytes == 0


def test_a_log_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "jobs.db-wal").mkdir()

    with pytest.raises(StoreUnavailable, match="jobs"):
        check_wal(tmp_path / "jobs.db-wal")


def test_scanning_beside_an_open_connection_disturbs_nothing(tmp_path: Path) -> None:
    with closing(opened(tmp_path / "jobs.db")) as connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, page BLOB)")
        for commits in range(1, 5):
            assert check_wal(tmp_path / "jobs.db-wal").commits == commits
            write(connection, 1, 4096)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert check_wal(tmp_path / "jobs.db-wal").total_bytes == 0


# --- the sums ----------------------------------------------------------------------------------------------------


@given(
    frames=st.integers(1, 5),
    page_bytes=st.sampled_from([512, 1024]),
    seed=st.integers(0, 2**32),
    order=st.sampled_from("<>"),
)
def test_many_frames_are_summed_at_once_as_one_by_one(frames: int, page_bytes: int, seed: int, order: str) -> None:
    frame_bytes = FRAME_HEADER_BYTES + page_bytes
    random = Random(seed)

    assert_sums(random.randbytes(frames * frame_bytes), random.randbytes(8 * frames), frame_bytes, order)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("filler", [b"\xff", b"\0", b"\x80\0\0\0", b"\xff\xff\xff\xff\0\0\0\0"])
def test_the_largest_words_do_not_spill_into_the_neighbour(filler: bytes, order: str) -> None:
    frame_bytes = FRAME_HEADER_BYTES + 65536
    data = filler * (3 * frame_bytes // len(filler))

    assert_sums(data, b"\xff" * 24, frame_bytes, order)


def assert_sums(data: bytes, seeds: bytes, frame_bytes: int, order: str) -> None:
    expected = b""
    for frame in range(len(seeds) // 8):
        words = data[frame * frame_bytes : (frame + 1) * frame_bytes]
        s1, s2 = struct.unpack_from(">II", seeds, 8 * frame)
        expected += struct.pack(">II", *plain_sums(words[:8] + words[24:], (s1, s2), order))

    summed = wal_scan._sums(array("Q", data), array("Q", seeds), big_endian=order == ">")

    assert summed.tobytes() == expected
