"""One flipped bit, anywhere in the files of a store in use: told, with its place and a way out, or of no effect (S5-17).

The store is a killed engine's, with much in its database and much in its log, or a closed one's; the inbox a killed
client's, likewise. Each copy has one bit flipped, is opened by the real store and the real recovery, and is then
verified. Good outcomes:

    whole      log, state and every row of every table are what they were
    refused    the opening refuses, names the place and a way out
    verify     the opening recovers log and state; `verify` names what is wrong in the tables
    torn       the log's last transaction is dropped: rot there cannot be told from a torn write (see `wal_scan`)
    row        a command in the inbox does not match its checksum, which is told to its sender

Not covered by a checksum, and so not looked at here: the instant and the version of a command that waits in the inbox.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from actionqueue.core.errors import ActionQueueError
from actionqueue.store.inbox import Inbox
from actionqueue.store.wal_scan import FRAME_HEADER_BYTES, HEADER_BYTES, scan_wal
from actionqueue.verify import verify
from tests.faults.judge import Outcome, Promises, judge, refusal
from tests.process.support import ROOT, environment

pytestmark = pytest.mark.slow

NAME = "jobs.db"
IN_MEMORY = Path("/dev/shm")
ENDINGS = ("", "-wal", ".inbox", ".inbox-wal")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where syncs cost nothing."""
    with TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as made:
        yield Path(made)


class Used:
    """A store that was in use, and what it held."""

    def __init__(self, folder: Path, end: str) -> None:
        self.path = folder / end / NAME
        self.path.parent.mkdir()
        env = environment() | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
        command = [sys.executable, "-m", "tests.faults.workload", str(self.path), "5", "400", str(16 << 20), end]
        subprocess.run(command, env=env, check=True, timeout=60, cwd=ROOT)
        self.promised = Promises()
        for mark in Path(f"{self.path}.marks").read_text().splitlines():
            self.promised.take(mark)
        self._after = folder / "after"
        whole = self.copy()
        assert judge(whole, self.promised) == Outcome("whole")
        assert verify(whole).ok
        self.rows = rows_of(whole, tables_of(whole))
        wal = Path(f"{self.path}-wal")
        if wal.exists():
            self.last_transaction_at = last_transaction_of(wal)
            self.wal_end = scan_wal(wal).valid_bytes

    def copy(self) -> Path:
        """The files as they were left, in a folder of their own."""
        shutil.rmtree(self._after, ignore_errors=True)
        self._after.mkdir()
        for ending in ENDINGS:
            if Path(f"{self.path}{ending}").exists():
                shutil.copy(f"{self.path}{ending}", self._after / f"{NAME}{ending}")
        return self._after / NAME


def tables_of(path: Path) -> list[str]:
    """All but the single values that an opening changes."""
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name != 'meta'")
        return [row[0] for row in found]


def rows_of(path: Path, tables: Iterable[str]) -> dict[str, list[Any]]:
    """Everything in these tables."""
    with closing(sqlite3.connect(path)) as connection:
        return {name: sorted(connection.execute(f"SELECT * FROM {name}"), key=repr) for name in tables}


def last_transaction_of(wal: Path) -> int:
    """Where what could be a torn write begins: at the last but one commit frame."""
    data, frames = wal.read_bytes(), scan_wal(wal).frames
    frame_bytes = FRAME_HEADER_BYTES + int.from_bytes(data[8:12], "big")
    starts = [HEADER_BYTES + number * frame_bytes for number in range(frames)]
    commits = [start for start in starts if struct.unpack_from(">I", data, start + 4)[0]]
    return commits[-2]


def flip(path: Path, draw: random.Random, below: int | None = None) -> int:
    """One bit, anywhere; where."""
    size = path.stat().st_size if below is None else below
    offset = draw.randrange(size)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << draw.randrange(8))]))
    return offset


@pytest.fixture(scope="module")
def killed(folder: Path) -> Used:
    return Used(folder, "kill")


@pytest.fixture(scope="module")
def closed(folder: Path) -> Used:
    return Used(folder, "close")


def outcome_of(used: Used, path: Path, ending: str, offset: int) -> Outcome:
    """See the module's head; raises where something is lost or changed and nobody says so."""
    try:
        outcome = judge(path, used.promised)
    except AssertionError as error:
        if "clients sent are gone" in str(error) and not verify(path).ok:
            return Outcome("verify", "replies")  # the log has what was decided; that it is a reply's id is told
        if ending == "-wal" and used.last_transaction_at <= offset < used.wal_end:
            outcome = judge(path, replace(used.promised, done=0, epoch=0))  # what is there is an earlier moment, whole
            return Outcome("torn") if outcome.kind == "whole" else outcome
        raise
    if outcome.kind != "whole":
        return outcome
    report = verify(path)
    if not report.ok:
        assert all(problem.place and problem.message for problem in report.problems)
        return Outcome("verify", report.problems[0].kind)
    assert rows_of(path, used.rows) == used.rows, "a change that nobody notices"
    return outcome


def flip_many(used: Used, ending: str, count: int, seed: int, below: int | None = None) -> Counter[str]:
    """So many copies."""
    draw, counted = random.Random(seed), Counter[str]()
    for _ in range(count):
        path = used.copy()
        offset = flip(Path(f"{path}{ending}"), draw, below)
        try:
            counted[outcome_of(used, path, ending, offset).kind] += 1
        except BaseException as error:
            error.add_note(f"a bit of byte {offset} of {ending or 'the database'} was flipped")
            raise
    print(f"\n{count} flips in {ending or 'the database'}: {dict(counted)}")
    return counted


# --- the inbox ----------------------------------------------------------------------------------------------------------

Commands = dict[bytes, bytes]


class Letters:
    """An inbox in which commands wait, half of them in its log."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.path = folder / NAME
        self.commands: Commands = {}
        draw = random.Random(3)
        inbox = Inbox(self.path)
        for number in range(60):
            command_id, body = draw.randbytes(16), draw.randbytes(draw.choice((50, 200, 2_000)))
            inbox.put(command_id, body, 1_000 + number)
            self.commands[command_id] = body
            if number == 30:
                with closing(sqlite3.connect(inbox.path)) as connection:
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.files = {ending: Path(f"{inbox.path}{ending}").read_bytes() for ending in ("", "-wal")}
        self.last_transaction_at = last_transaction_of(Path(f"{inbox.path}-wal"))
        inbox.close()

    def flipped(self, folder: Path, ending: str, draw: random.Random) -> tuple[Path, int]:
        """The store's path beside a copy in which a bit is flipped."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for each, body in self.files.items():
            (folder / f"{NAME}.inbox{each}").write_bytes(body)
        return folder / NAME, flip(folder / f"{NAME}.inbox{ending}", draw)

    def outcome_of(self, path: Path, *, may_be_torn: bool) -> str:
        """See the module's head."""
        try:
            inbox = Inbox(path)
            try:
                rows = inbox.rows(1_000)
            finally:
                inbox.close()
        except ActionQueueError as error:
            return refusal(error).kind
        found = {row[1]: row[4] for row in rows}
        if found == self.commands:
            return "whole"
        if found.keys() == self.commands.keys():
            changed = {id for id, body in found.items() if body != self.commands[id]}
            assert all(found[id] is None for id in changed), "another command than was sent"
            return "row"
        assert may_be_torn, f"{len(self.commands.keys() - found.keys())} commands are gone"
        assert found.items() <= self.commands.items()
        assert len(found) >= len(self.commands) - 2
        return "torn"


def flip_letters(letters: Letters, folder: Path, ending: str, count: int, seed: int) -> Counter[str]:
    """So many copies of an inbox."""
    draw, counted = random.Random(seed), Counter[str]()
    for _ in range(count):
        path, offset = letters.flipped(folder, ending, draw)
        torn = ending == "-wal" and offset >= letters.last_transaction_at
        try:
            counted[letters.outcome_of(path, may_be_torn=torn)] += 1
        except BaseException as error:
            error.add_note(f"a bit of byte {offset} of the inbox's {ending or 'database'} was flipped")
            raise
    print(f"\n{count} flips in the inbox's {ending or 'database'}: {dict(counted)}")
    return counted


@pytest.fixture(scope="module")
def letters(folder: Path) -> Letters:
    return Letters(folder / "letters")


@pytest.fixture(autouse=True)
def nobody_writes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nothing has to be waited for before a log is scanned again."""
    monkeypatch.setattr("actionqueue.store.inbox._RESCAN_S", 0)


# --- the tests ----------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_the_database_is_told_or_of_no_effect(closed: Used, killed: Used) -> None:
    """S5-17: with everything in the database, and with much in the log still."""
    counted = flip_many(closed, "", 40, seed=1) + flip_many(killed, "", 15, seed=2)
    assert counted["verify"]
    assert not counted["torn"]


def test_a_flipped_bit_where_the_tables_are_described_is_told_or_of_no_effect(closed: Used) -> None:
    """S5-17: SQLite's own words for it may not even be text."""
    assert flip_many(closed, "", 40, seed=3, below=4096)["refused"]


def test_a_flipped_bit_in_the_log_is_refused_with_its_frame(killed: Used) -> None:
    """S5-17: but for the last transaction, which is taken for torn."""
    counted = flip_many(killed, "-wal", 30, seed=4, below=killed.wal_end)
    assert counted["refused"] > 15
    assert counted.keys() <= {"refused", "torn", "whole"}


@pytest.mark.parametrize("ending", ["", "-wal"], ids=["database", "log"])
def test_a_flipped_bit_in_the_inbox_loses_no_command_in_silence(letters: Letters, folder: Path, ending: str) -> None:
    """S5-17: what was acknowledged to a client is in there only."""
    counted = flip_letters(letters, folder / "flipped", ending, 150, seed=5)
    assert counted["refused"]


@pytest.mark.soak
def test_thousands_of_flipped_bits_are_told_or_of_no_effect(
    closed: Used, killed: Used, letters: Letters, folder: Path
) -> None:
    """S5-17: the same, for long."""
    flip_many(closed, "", 4_000, seed=11)
    flip_many(closed, "", 2_000, seed=12, below=4096)
    flip_many(killed, "", 1_000, seed=13)
    flip_many(killed, "-wal", 2_000, seed=14, below=killed.wal_end)
    for ending in ("", "-wal"):
        flip_letters(letters, folder / "flipped", ending, 5_000, seed=15)
