"""The lock that makes one process the engine of a store.

Knows: the lock file beside the store, who holds it, and which locks this process holds. Must not know: what an engine
does, or anything of the store's content.

Why a POSIX record lock on a file of its own:

- It dies with its process, also when a forked child lives on. Locks that belong to the open file instead (``flock``,
  ``F_OFD_SETLK``) are inherited by a fork and would outlive a crashed engine for as long as any child of its handlers
  does.
- It is not on the database, because of the hazard of record locks: *closing any descriptor of a file drops every lock
  the process has on that file*. SQLite keeps its own locks on the database; opening and closing that file, even only
  to look at it, would take them away.

The same hazard holds for the lock file, so this module is the only one that opens it, under one mutex, and never while
this process holds it: `_Held` is asked first, by name and by device and inode. `_Held` is module state because the
locks it mirrors are state of the process.

The lock file lies beside the *real* path, so every name that leads there through symbolic links meets the same lock. It
is never deleted (a waiter may have it open); an empty one means free. Not covered: a hard link to the store, or the one
file mounted elsewhere, seen from another process. SQLite itself corrupts such a store, since its ``-wal`` goes by name.

The line of JSON in the file is for people and messages. Whether the store is held is only ever read from the lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from actionqueue.core.errors import StoreError, StoreHeld, StoreReadOnly, StoreUnavailable, UsedAfterFork

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

POLL_MIN_S = 0.05
POLL_MAX_S = 0.15
"""A waiter tries again after this long, at random in between, so that many of them do not try in step."""

_HOLDER_BYTES_MAX = 4096
_LOCK_BYTE = 1 << 30
"""The one byte that is locked: far behind the text, which Windows would otherwise keep others from reading."""

_UNKNOWN = "unknown"


class HolderInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a store. ``pid`` is 0 and texts are "unknown" where the holder could not be asked."""

    pid: int
    host: str
    since: str
    """Wall-clock instant of taking the lock, ISO 8601 in UTC."""
    incarnation: str
    """Random, new each time the lock is taken: tells two holders with one pid apart."""
    role: str


class StoreLock:
    """The right to be the engine of one store, held by this process until `release` or its end.

    Make one with `acquire` or `wait_acquire`. Works as a context manager, which releases it.
    """

    __slots__ = ("_descriptor", "_file_id", "_holder", "_released", "_store_path")

    def __init__(self, store_path: Path, descriptor: int, holder: HolderInfo) -> None:
        self._store_path = store_path
        self._descriptor = descriptor
        self._file_id = _id_of(os.fstat(descriptor))
        self._holder = holder
        self._released = False

    @classmethod
    def acquire(cls, store_path: Path, *, role: str = "engine") -> StoreLock:
        """Take the lock of this store, or refuse at once. Creates the lock file, never the store.

        Raises `StoreHeld` (``pid``, ``host``, ``since``, ``path``) when any process holds it, this one included;
        `StoreReadOnly` when the lock file cannot be written; `StoreUnavailable` when the directory is missing or the
        file system offers no locks.
        """
        real_path, lock_path = _places(store_path)
        with _held.mutex:
            mine = _held.find(real_path, lock_path)
            if mine is not None:
                raise _refusal(real_path, mine)
            try:
                descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as problem:
                raise _translated(problem, lock_path) from problem
            try:
                _lock_or_refuse(descriptor, real_path)
                lock = cls(real_path, descriptor, _myself(role))
                _write_text(descriptor, msgspec.json.encode(lock.holder) + b"\n")
            except OSError as problem:
                os.close(descriptor)
                raise _translated(problem, lock_path) from problem
            except BaseException:
                os.close(descriptor)
                raise
            _held.locks.append(lock)
            return lock

    @property
    def holder(self) -> HolderInfo:
        """What this lock tells others of its holder."""
        return self._holder

    @property
    def owner_pid(self) -> int:
        """The process that took the lock."""
        return self._holder.pid

    @property
    def store_path(self) -> Path:
        """The real path of the store."""
        return self._store_path

    @property
    def is_held(self) -> bool:
        """Whether this process holds the store through this object."""
        return not self._released and os.getpid() == self.owner_pid

    def check_process(self) -> None:
        """Raise `UsedAfterFork` (``owner_pid``, ``pid``) in a process that is not the one that took the lock."""
        pid = os.getpid()
        if pid != self.owner_pid:
            raise UsedAfterFork(
                f"{self._store_path} was opened by process {self.owner_pid} and this is its forked child {pid}. "
                "Open the queue again in the child.",
                path=str(self._store_path),
                owner_pid=self.owner_pid,
                pid=pid,
            )

    def release(self) -> None:
        """Give the store up. Does nothing the second time, and nothing in a forked child, which holds nothing."""
        with _held.mutex:
            if not self.is_held:
                return
            self._released = True
            _held.locks.remove(self)
            _write_text(self._descriptor, b"")
            os.close(self._descriptor)

    def is_on(self, real_path: Path, file_ids: set[tuple[int, int]]) -> bool:
        """Whether this is the lock of that store: by name, or because a file of both is the same."""
        mine = _ids_of(self._store_path) | {self._file_id}
        return real_path == self._store_path or not mine.isdisjoint(file_ids)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<StoreLock {self._store_path} pid={self.owner_pid} {'held' if self.is_held else 'not held'}>"


def read_holder(store_path: Path) -> HolderInfo | None:
    """Who holds this store now, or None when it is free. Takes nothing and disturbs no lock of this process.

    A lock file left by a process that ended is free, whatever it says. Raises `StoreError` kinds as
    `StoreLock.acquire` when the lock file cannot be read.
    """
    real_path, lock_path = _places(store_path)
    with _held.mutex:
        mine = _held.find(real_path, lock_path)
        if mine is not None:
            return mine
        try:
            descriptor = os.open(lock_path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as problem:
            raise _translated(problem, lock_path) from problem
        try:
            return _holder_behind(descriptor)
        finally:
            os.close(descriptor)


def wait_acquire(
    store_path: Path,
    timeout_s: float | None,
    should_stop: Callable[[], bool],
    *,
    role: str = "engine",
    pause: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> StoreLock | None:
    """Take the lock as soon as its holder lets go, noticed within 0.2 s: how a standby takes over.

    Returns None once ``should_stop`` says so. Raises `StoreHeld` after ``timeout_s`` (None: wait for ever), and what
    else `StoreLock.acquire` raises at once. ``pause`` and ``clock`` are for tests.
    """
    deadline_s = None if timeout_s is None else clock() + timeout_s
    while not should_stop():
        try:
            return StoreLock.acquire(store_path, role=role)
        except StoreHeld:
            left_s = POLL_MAX_S if deadline_s is None else deadline_s - clock()
            if left_s <= 0:
                raise
        pause(min(left_s, random.uniform(POLL_MIN_S, POLL_MAX_S)))
    return None


# --- what this process holds -------------------------------------------------------------------------------------


class _Held:
    """The locks of this process. Its mutex is held over every opening and closing of a lock file."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self.locks: list[StoreLock] = []

    def find(self, real_path: Path, lock_path: Path) -> HolderInfo | None:
        """The holder, when it is this process. Looks without opening anything."""
        if not self.locks:
            return None
        file_ids = _ids_of(lock_path) | _ids_of(real_path)
        for lock in self.locks:
            if lock.is_on(real_path, file_ids):
                return lock.holder
        return None

    def forget(self) -> None:
        """In a forked child, which has none of its parent's locks.

        Its copies of the descriptors stay open for good: closing one later would drop a lock that the child has taken.
        """
        self.locks = []
        self.mutex = threading.Lock()  # another thread may have held the old one at the fork


_held = _Held()
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_held.forget)


# --- the file ----------------------------------------------------------------------------------------------------


def _places(store_path: Path) -> tuple[Path, Path]:
    real_path = Path(os.path.realpath(store_path))
    return real_path, Path(f"{real_path}.lock")


def _id_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _ids_of(path: Path) -> set[tuple[int, int]]:
    try:
        return {_id_of(path.stat())}
    except OSError:
        return set()


def _myself(role: str) -> HolderInfo:
    return HolderInfo(
        pid=os.getpid(),
        host=socket.gethostname(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        incarnation=secrets.token_hex(16),
        role=role,
    )


def _write_text(descriptor: int, text: bytes) -> None:
    with contextlib.suppress(OSError):  # a courtesy: the lock is as good without it, and the disk may be full
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, text)


def _read_text(descriptor: int) -> HolderInfo | None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        return msgspec.json.decode(os.read(descriptor, _HOLDER_BYTES_MAX), type=HolderInfo)
    except (OSError, msgspec.DecodeError):
        return None  # read in the moment between the holder's lock and its line


def _lock_or_refuse(descriptor: int, real_path: Path) -> None:
    while not _try_lock(descriptor):
        holder = _holder_behind(descriptor)
        if holder is not None:
            raise _refusal(real_path, holder)
        # it let go between the two calls: try again


def _holder_behind(descriptor: int) -> HolderInfo | None:
    """Who holds the lock of this open lock file (never this process), or None."""
    pid = _locking_pid(descriptor)
    if pid is None:
        return None
    told = _read_text(descriptor)
    here = socket.gethostname()
    # The system's pid is surer than the text, which may be that of an earlier holder; but a holder in another container
    # has another pid in its own eyes, and none (0) in ours.
    if told is not None and (pid in (0, told.pid) or told.host != here):
        return told
    return HolderInfo(pid=pid, host=here if pid else _UNKNOWN, since=_UNKNOWN, incarnation=_UNKNOWN, role=_UNKNOWN)


def _refusal(real_path: Path, holder: HolderInfo) -> StoreHeld:
    who = "this process" if _is_me(holder) else f"process {holder.pid or _UNKNOWN}"
    return StoreHeld(
        f"{real_path} is held by {who} (pid {holder.pid or _UNKNOWN} on {holder.host}, {holder.role}) since "
        f"{holder.since}. One engine may run on a store: stop that one, wait for it with wait_for_store=, or submit "
        'to it from here with role="client".',
        path=str(real_path),
        pid=holder.pid,
        host=holder.host,
        since=holder.since,
        role=holder.role,
    )


def _is_me(holder: HolderInfo) -> bool:
    return any(lock.holder == holder for lock in _held.locks)


def _translated(problem: OSError, lock_path: Path) -> StoreError:
    if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreReadOnly(
            f"the lock file {lock_path} cannot be opened ({problem.strerror}). An engine must be able to write in the "
            "store's directory: change its owner or mode, or only read the store.",
            path=str(lock_path),
        )
    return StoreUnavailable(
        f"the lock file {lock_path} cannot be used: {problem.strerror}. The store's directory must exist, on a local "
        "file system with room left.",
        path=str(lock_path),
        errno=problem.errno,
    )


# --- the lock of the system --------------------------------------------------------------------------------------

_FLOCK_LAYOUTS = {"linux": ("hhqqi4x", 0, 4), "darwin": ("qqihh", 3, 2)}
"""By platform (64 bit): the format of ``struct flock``, and where in it the type and the pid are."""

if sys.platform == "win32":

    def _try_lock(descriptor: int) -> bool:
        os.lseek(descriptor, _LOCK_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    def _locking_pid(descriptor: int) -> int | None:
        if not _try_lock(descriptor):
            return 0
        os.lseek(descriptor, _LOCK_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
        return None

else:

    def _try_lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
        try:
            fcntl.lockf(descriptor, kind | fcntl.LOCK_NB, 1, _LOCK_BYTE)
        except OSError as problem:
            if problem.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def _locking_pid(descriptor: int) -> int | None:
        """The pid that has the lock, 0 if the system does not say, None if nobody has it. Takes nothing if it can."""
        layout = _FLOCK_LAYOUTS.get(sys.platform)
        if layout is None or struct.calcsize("P") != 8:
            return _locking_pid_by_trying(descriptor)
        form, kind_at, pid_at = layout
        question = [0] * 5  # from the start (0) of the file, over all of it (0)
        question[kind_at] = fcntl.F_WRLCK
        answer = struct.unpack(form, fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(form, *question)))
        return None if answer[kind_at] == fcntl.F_UNLCK else max(0, int(answer[pid_at]))

    def _locking_pid_by_trying(descriptor: int) -> int | None:
        # A shared lock, since the descriptor may be read-only. Safe: this process does not hold the file (see _Held).
        if not _try_lock(descriptor, fcntl.LOCK_SH):
            return 0
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, _LOCK_BYTE)
        return None
