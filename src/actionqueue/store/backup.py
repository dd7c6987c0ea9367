"""Copies of a store: taken while it is in use, and brought back.

Knows: how to make a file appear whole or not at all, and what marks it as restored. Must not know: the tables' rows.

A backup is one file that needs no other beside it (no WAL). It is a store: it can be read in place, and an engine can
open it. It is marked when it is made, not when it is brought back, so that a backup opened by hand, or copied with
``cp``, also opens paused: the work its open runs stand for may have been done since.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from actionqueue.core.errors import StoreDamaged, StoreError, StoreUnavailable
from actionqueue.core.rows import sealed
from actionqueue.store import sqlite_log
from actionqueue.store.checking import problems
from actionqueue.store.filesystem import check_is_store_or_absent
from actionqueue.store.lock import StoreLock
from actionqueue.store.port import Anchor, Batch, Commit
from actionqueue.store.sqlite_connection import READER_CACHE_BYTES, connect, snapshot, translating
from actionqueue.store.sqlite_rows import all_meta, set_meta
from actionqueue.store.sqlite_schema import create, write_batch

PAGES_PER_STEP = 256
PAUSE_S = 0.001
"""After each step, so that commits get at the disk."""
PROBLEMS_NAMED_MAX = 5

_BESIDE = ("-wal", "-shm", "-journal")


def backup(source: Path, target: Path) -> None:
    """Copy the store at ``source`` as it is now to the new file ``target``; an engine may be running on it.

    ``target`` appears whole, synced, or not at all. Raises `StoreError` when it exists.
    """
    target = Path(os.path.realpath(target))
    if target.exists():
        raise StoreError(f"{target} exists; a backup is written to a new file. Give another name.", path=str(target))
    with _appearing(target) as draft:
        _copy(source, draft)


def restore(backup_path: Path, target_path: Path, *, force: bool = False) -> Path | None:
    """Make the store at ``target_path`` what the backup holds; the backup stays as it is.

    The backup is checked whole first (structure, checksums, digests, the log's chain). A store that is there is
    refused, unless ``force``: then it is moved aside, and its new path is returned. The restored store opens paused.

    Raises `StoreDamaged` for a damaged backup, `NotAStore`, `StoreTooNew`, `StoreHeld` when an engine holds the target,
    `StoreError` when there is a store and not ``force``.
    """
    backup_path, target_path = Path(os.path.realpath(backup_path)), Path(os.path.realpath(target_path))
    if not backup_path.exists():
        raise StoreUnavailable(f"there is no backup at {backup_path}.", path=str(backup_path), cause="missing")
    check_is_store_or_absent(backup_path)
    with StoreLock.acquire(target_path, role="restore"):
        there = [path for path in _files_of(target_path) if path.exists() and path.stat().st_size > 0]
        if there and not force:
            raise StoreError(
                f"there is a store at {target_path} already; it was not touched. Restore to another path, or move it "
                "aside with force.",
                path=str(target_path),
            )
        _check_whole(backup_path)
        with _appearing(target_path) as draft:
            _copy(backup_path, draft)
            aside = _move_aside(target_path)
        return aside if there else None


def _check_whole(path: Path) -> None:
    found: list[str] = []
    for problem in problems(path):
        found.append(problem)
        if len(found) == PROBLEMS_NAMED_MAX:
            break
    if found:
        raise StoreDamaged(
            f"the backup {path} is damaged, so nothing was restored: {'; '.join(found)}. Take an older backup.",
            path=str(path),
            place="backup",
        )


def _copy(source: Path, draft: Path) -> None:
    """Copy, and mark the copy as restored, in a later epoch than any that wrote the original."""
    with translating(source, "copying it"):
        with closing(connect(source, "ro", READER_CACHE_BYTES)) as origin, closing(sqlite3.connect(draft)) as copy:
            copy.execute("PRAGMA synchronous = OFF")  # synced as a whole afterwards
            with snapshot(origin):  # held to the end, or else every commit meanwhile would start the copy over
                origin.execute("SELECT count(*) FROM meta").fetchone()
                origin.backup(copy, pages=PAGES_PER_STEP, progress=_pause)
        with closing(sqlite3.connect(draft, isolation_level=None)) as copy:
            copy.execute("PRAGMA journal_mode = DELETE").fetchone()  # one file; an engine sets WAL again
            epoch = all_meta(copy)["epoch"]
            assert isinstance(epoch, int)
            copy.execute("BEGIN IMMEDIATE")
            set_meta(copy, restored=1, clean=1, epoch=epoch + 1)
            copy.execute("COMMIT")


def _pause(_status: int, _remaining: int, _total: int) -> None:
    time.sleep(PAUSE_S)


def write_tables(
    target: Path, store_id: bytes, epoch: int, commits: list[Commit], anchor: Anchor | None, rest: Batch
) -> None:
    """The same file from what a store in memory holds."""
    target = Path(os.path.realpath(target))
    if target.exists():
        raise StoreError(f"{target} exists; a backup is written to a new file. Give another name.", path=str(target))
    with (
        _appearing(target) as draft,
        translating(target, "writing it"),
        closing(sqlite3.connect(draft, isolation_level=None)) as copy,
    ):
        copy.execute("PRAGMA auto_vacuum = INCREMENTAL")
        copy.execute("PRAGMA synchronous = OFF")  # synced as a whole afterwards
        copy.execute("BEGIN IMMEDIATE")
        create(copy, store_id)
        for commit in commits:
            sqlite_log.append(copy, commit)
        if anchor is not None:
            copy.execute("INSERT INTO anchors VALUES (?, ?, ?, ?)", sealed((anchor.seq, anchor.hash, anchor.at)))
        write_batch(copy, rest)
        set_meta(copy, restored=1, clean=1, epoch=epoch + 1)
        copy.execute("COMMIT")


# --- files -------------------------------------------------------------------------------------------------------


def _files_of(path: Path) -> list[Path]:
    return [path, *(Path(f"{path}{suffix}") for suffix in _BESIDE)]


@contextmanager
def _appearing(target: Path) -> Generator[Path]:
    """A draft beside ``target``, which takes its name, synced, when the block ends well, and vanishes when not."""
    if not target.parent.is_dir():
        raise StoreUnavailable(
            f"{target} cannot be written: there is no directory {target.parent}. Make it, or give another path.",
            path=str(target),
            cause="missing directory",
        )
    draft = target.with_name(f"{target.name}.{secrets.token_hex(4)}.draft")
    try:
        yield draft
        _sync(draft)
        draft.replace(target)
        _sync(target.parent)
    except OSError as error:
        raise StoreUnavailable(
            f"{target} cannot be written ({error.strerror}).", path=str(target), cause=error.strerror or ""
        ) from error
    finally:
        for path in _files_of(draft):
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move_aside(target: Path) -> Path:
    """Rename what is there, the WAL with it: an old WAL beside a new database would be played into it."""
    number = 1
    while any(path.exists() for path in _files_of(Path(f"{target}.replaced-{number}"))):
        number += 1
    aside = Path(f"{target}.replaced-{number}")
    for old, new in zip(_files_of(target), _files_of(aside), strict=True):
        with suppress(FileNotFoundError):
            old.replace(new)
    return aside
