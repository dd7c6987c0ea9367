"""Whether the bytes of a store are what was written: structure, checksums, digests of payloads, the log's chain.

What `restore` asks before it trusts a backup. Knows: the tables. Must not know: what an event means; whether replaying
the log gives these rows is the question of ``verify``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from heapq import merge
from pathlib import Path

from actionqueue.core.errors import StoreDamaged
from actionqueue.core.rows import RUN_COLUMNS, TASK_COLUMNS, Row, check_row
from actionqueue.store.codec import digest
from actionqueue.store.scan import Scan
from actionqueue.store.sqlite_reader import SQLiteReader

_PAYLOAD_DIGEST = TASK_COLUMNS.index("payload_digest")
_OUTPUT_DIGEST = RUN_COLUMNS.index("output_digest")


def problems(path: Path) -> Iterator[str]:
    """What is wrong with the store's bytes, in words. Reads all of it, as of one moment; an engine may be running.

    Raises what `SQLiteReader` raises when the store cannot be opened.
    """
    with closing(SQLiteReader(path)) as reader:
        try:
            for _ in reader.commits(0):
                pass
        except StoreDamaged as error:
            yield error.message
        with reader.scan() as scan:
            try:
                yield from (f"structure: {problem}" for problem in scan.structure_problems())
                yield from _problems_of_rows(scan)
            except StoreDamaged as error:
                yield error.message


def _problems_of_rows(scan: Scan) -> Iterator[str]:
    found: list[str] = []
    for table in ("meta", "facts", "entries", "steps", "attempts", "replies"):
        for _ in _sound(scan, table, found):
            pass
        yield from found
        found.clear()
    bodies = scan.rows("blobs")
    id, body = next(bodies, (b"\xff" * 17, b""))
    for owner, expected in merge(
        ((row[0], row[_PAYLOAD_DIGEST]) for row in _sound(scan, "tasks", found)),
        ((row[0], row[_OUTPUT_DIGEST]) for row in _sound(scan, "runs", found)),
    ):
        yield from found
        found.clear()
        if expected is None:
            continue
        while id < owner:
            id, body = next(bodies, (b"\xff" * 17, b""))
        if id != owner:
            yield f"the payload or result of {owner.hex()} is missing"
        elif digest(body) != expected:
            yield f"the payload or result of {owner.hex()} does not match its digest"
    yield from found


def _sound(scan: Scan, table: str, found: list[str]) -> Iterator[Row]:
    """The rows that match their checksums; the others are told in ``found``."""
    for row in scan.rows(table):
        try:
            check_row(row, table)
        except StoreDamaged as error:
            found.append(error.message)
        else:
            yield row
