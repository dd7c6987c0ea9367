"""The log in SQLite: appending to it, reading it with its chain checked, dropping its start.

Knows: the tables ``commits`` and ``anchors``. Must not know: what an event means.

Events are stored deflated where that is shorter, which for a batch of submissions is a seventh: time-ordered ids differ
in few bytes. It costs a microsecond a run, outside the interpreter lock, and spares the WAL what it saves the disk. The
hash is over the events as they are. A zlib stream begins with ``x``, which no list in msgpack does.

Each commit's hash is over the hash before it and its events; its other columns have a checksum. So a reader that starts
from the commit before (or the anchor, or the log's very beginning) notices any changed bit and any missing commit.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Iterator
from functools import partial

from actionqueue.core.errors import StoreDamaged
from actionqueue.core.rows import Row, check_row, sealed
from actionqueue.store.codec import CHAIN_START, chain
from actionqueue.store.port import Anchor, Commit

COMMIT_COLUMNS = ("last_seq", "first_seq", "at", "epoch", "version", "hash", "crc", "events")
ANCHOR_COLUMNS = ("seq", "hash", "at", "crc")

DEFLATED_BYTES_MIN = 512
"""Shorter events are stored as they are."""
PAGE_BYTES_MAX = 1 << 20
"""Events read in one go; between pages a reader holds nothing, so a slow consumer does not pin the WAL."""
PAGE_COMMITS_MAX = 500

_HEAD = "last_seq, first_seq, at, epoch, version, hash, crc"
_ANCHOR = f"SELECT {', '.join(ANCHOR_COLUMNS)} FROM anchors WHERE seq >= 0 ORDER BY seq DESC LIMIT 1"
_APPEND = f"INSERT INTO commits VALUES ({', '.join('?' * len(COMMIT_COLUMNS))})"


def append(connection: sqlite3.Connection, commit: Commit) -> None:
    """Write a commit at the log's end."""
    head = (commit.last_seq, commit.first_seq, commit.at, commit.epoch, commit.version, commit.hash)
    connection.execute(_APPEND, (*sealed(head), deflated(commit.events)))


def deflated(events: bytes) -> bytes:
    """Events as they are stored."""
    if len(events) < DEFLATED_BYTES_MIN and events[:1] != b"x":
        return events
    shorter = zlib.compress(events, 1)
    return shorter if len(shorter) < len(events) or events[:1] == b"x" else events


def inflated(stored: bytes) -> bytes:
    """Events as they were; bytes that are damaged come back as they are (their hash tells)."""
    if stored[:1] != b"x":
        return stored
    try:
        return zlib.decompress(stored)
    except zlib.error:
        return stored


def log_end(connection: sqlite3.Connection) -> tuple[int, bytes]:
    """The sequence and hash of the last commit, which is never pruned; (0, CHAIN_START) of an empty log."""
    row = connection.execute(f"SELECT {_HEAD} FROM commits ORDER BY last_seq DESC LIMIT 1").fetchone()
    if row is None:
        return 0, CHAIN_START
    check_row(row, "commits")
    return row[0], row[5]


def read_anchor(connection: sqlite3.Connection) -> Anchor | None:
    """Where the log begins, when it was pruned."""
    row = connection.execute(_ANCHOR).fetchone()
    if row is None:
        return None
    check_row(row, "anchors")
    return Anchor(row[0], row[1], row[2])


def read_commits(
    connection: sqlite3.Connection, after_seq: int, guarded: Callable[[Callable[[], list[Row]]], list[Row]]
) -> Iterator[Commit]:
    """The commits that reach behind ``after_seq``, in order, each checked against the one before.

    ``guarded`` runs each query (in the caller's transaction and error handling). Raises ``StoreDamaged``, which names
    the commit. If the log was pruned past ``after_seq``, it begins later: compare ``first_seq``.
    """
    seq, hashed = _start(guarded(partial(_before, connection, after_seq)))
    while page := guarded(partial(_page, connection, seq)):
        if page[0][1] != seq + 1:  # pruned since the last page, or damaged
            anchor_seq, anchor_hash = _start(guarded(partial(_before, connection, 0)))
            if anchor_seq > seq:
                seq, hashed = anchor_seq, anchor_hash
        for row in page:
            if row[0] <= seq:
                continue  # pruned between the two queries
            commit = commit_of(row)
            if commit.first_seq != seq + 1 or chain(hashed, commit.events) != commit.hash:
                raise _broken(commit, seq)
            seq, hashed = commit.last_seq, commit.hash
            yield commit


def _before(connection: sqlite3.Connection, after_seq: int) -> list[Row]:
    """The commit that ends at or before ``after_seq``, else the anchor, else nothing."""
    return (
        connection.execute(
            f"SELECT {_HEAD} FROM commits WHERE last_seq <= ? ORDER BY last_seq DESC LIMIT 1", (after_seq,)
        ).fetchall()
        or connection.execute(_ANCHOR).fetchall()
    )


def _start(before: list[Row]) -> tuple[int, bytes]:
    """The sequence and hash that the first commit to be read must follow."""
    if not before:
        return 0, CHAIN_START
    row = before[0]
    is_commit = len(row) > len(ANCHOR_COLUMNS)
    check_row(row, "commits" if is_commit else "anchors")
    return row[0], row[5] if is_commit else row[1]


def _page(connection: sqlite3.Connection, seq: int) -> list[Row]:
    cursor = connection.execute(
        f"SELECT {', '.join(COMMIT_COLUMNS)} FROM commits WHERE last_seq > ? ORDER BY last_seq LIMIT ?",
        (seq, PAGE_COMMITS_MAX),
    )
    page: list[Row] = []
    bytes_read = 0
    for row in cursor:
        page.append(row)
        bytes_read += len(row[7])
        if bytes_read >= PAGE_BYTES_MAX:
            break
    cursor.close()
    return page


def commit_of(row: Row) -> Commit:
    """A commit from its row; its checksum covers all but the events, which the hash does."""
    check_row(row[:7], "commits")
    last_seq, first_seq, at, epoch, version, hashed, _, events = row
    return Commit(first_seq, last_seq, at, epoch, version, inflated(events), hashed)


def opened_commit(row: Row) -> Row:
    """The row with its events as they were, unchecked."""
    return (*row[:7], inflated(row[7])) if isinstance(row[7], bytes) else row


def _broken(commit: Commit, seq: int) -> StoreDamaged:
    why = "its events do not match its hash"
    if commit.first_seq != seq + 1:
        why = f"it begins at {commit.first_seq}, and the commit before it ends at {seq}"
    return StoreDamaged(
        f"the log is damaged at the commit that ends at sequence {commit.last_seq}: {why}. Run `actionqueue verify` "
        "for the extent; `actionqueue restore` brings a backup back.",
        place=f"commits {commit.last_seq}",
        last_seq=commit.last_seq,
    )


def prune(connection: sqlite3.Connection, before_seq: int, before_at: int, commits_max: int) -> int:
    """Drop commits from the log's start, those that end before ``before_seq`` and were made before ``before_at``.

    The last one stays. Records the anchor. Inside the caller's transaction.
    """
    rows = connection.execute(f"SELECT {_HEAD} FROM commits ORDER BY last_seq LIMIT ?", (commits_max + 1,)).fetchall()
    dropped: Row | None = None
    count = 0
    for row in rows[:commits_max] if len(rows) > commits_max else rows[:-1]:
        check_row(row, "commits")
        if row[0] >= before_seq or row[2] >= before_at:
            break
        dropped, count = row, count + 1
    if dropped is None:
        return 0
    connection.execute("DELETE FROM commits WHERE last_seq <= ?", (dropped[0],))
    connection.execute("DELETE FROM anchors")
    connection.execute("INSERT INTO anchors VALUES (?, ?, ?, ?)", sealed((dropped[0], dropped[5], dropped[2])))
    return count
