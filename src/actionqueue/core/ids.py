"""Identifiers: distinct types over UUID version 7, and the source they come from.

Knows: how an id looks as text, as a ``uuid.UUID`` and as 16 bytes, and how to make ids that sort by time. Must not
know: what a task, run or attempt is.

The state and the log hold ids as plain 16 bytes (small, quick to hash, invisible to the garbage collector); the
classes here are what users see. ``IdSource`` is deterministic: instants and random bytes come in from outside, so a
replay or a seeded simulation makes the same ids again. Only ``Id.new`` and ``fresh_id_bytes`` read the clock and the
system's randomness; the engine does not use them.

Layout of an id (RFC 9562, section 5.7, with the monotonic methods 1 and 3 of section 6.2)::

    48 bits   milliseconds since the epoch
     4 bits   version, 0111
    12 bits   fraction of the millisecond, in 1/4096
     2 bits   variant, 10
    62 bits   drawn at random with the first bit 0, then + 1 for every id

The first bit of the draw is 0, so 2**61 ids fit behind it and the addition never has to care about a carry. An
``IdSource`` draws anew for every millisecond, a process once. An instant before the last one (the clock stepped back)
counts as the last one: the ids go on increasing.
"""

from __future__ import annotations

import itertools
import os
import re
import uuid
from collections.abc import Callable
from hashlib import blake2b
from time import time_ns
from typing import Final, Self, TypeAlias

from actionqueue.core.errors import InvalidSubmission

IdLike: TypeAlias = str | uuid.UUID | bytes
"""What a call takes as an id: UUID text, any ``uuid.UUID``, or 16 bytes."""

NIL: Final = bytes(16)
"""The nil id. It names nothing and is refused wherever an id is expected."""

_INSTANT_LAST: Final = 2**48 * 1000 - 1
_VERSION_AND_VARIANT: Final = (7 << 76) | (2 << 62)
_TAIL_DRAWN: Final = 2**61 - 1

_TEXT = re.compile(r"(?:urn:uuid:)?([0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{32})", re.IGNORECASE)


class IdSource:
    """Makes strictly increasing ids from the instants and the randomness it is given.

    ``random_bytes(n)`` returns n random bytes; it is called once here and once for every new millisecond. One owner:
    not safe to share between threads.

    >>> import random
    >>> source = IdSource(random.Random(7).randbytes)
    >>> first, second = source.next(1_700_000_000_000_000), source.next(1_700_000_000_000_000)
    >>> first < second, uuid.UUID(bytes=first).version
    (True, 7)
    """

    __slots__ = ("_head", "_last_us", "_random_bytes", "_tail")

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._last_us = 0
        self._head = _VERSION_AND_VARIANT
        self._tail = _drawn(random_bytes)

    def next(self, now_us: int) -> bytes:
        """The next id, 16 bytes, greater than every one before it. ``now_us``: microseconds since the epoch."""
        if now_us > self._last_us:
            self._move_to(now_us)
        self._tail = tail = self._tail + 1
        return (self._head | tail).to_bytes(16, "big")

    def _move_to(self, now_us: int) -> None:
        if now_us > _INSTANT_LAST:
            now_us = _INSTANT_LAST
        if now_us // 1000 > self._last_us // 1000:
            self._tail = _drawn(self._random_bytes)
        self._last_us = now_us
        self._head = _head(now_us)


class _ProcessIds:
    """What ``Id.new`` draws from, in every thread; a forked child begins anew.

    Takes no lock, so a signal handler or a finalizer that interrupts it can make ids too: the tails come from a
    counter that gives no number twice, and so no id comes twice, whatever the clock does.
    """

    __slots__ = ("_floor_us", "_tails")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._floor_us = 0
        self._tails = itertools.count(_drawn(os.urandom))

    def next(self, count: int) -> list[bytes]:
        now_us = max(time_ns() // 1000, self._floor_us)
        self._floor_us = now_us
        head = _head(now_us)
        return [(head | tail).to_bytes(16, "big") for tail in itertools.islice(self._tails, count)]


def _head(now_us: int) -> int:
    """The bits before the tail."""
    return (now_us // 1000 << 80) | (now_us % 1000 * 4096 // 1000 << 64) | _VERSION_AND_VARIANT


def _drawn(random_bytes: Callable[[int], bytes]) -> int:
    """A tail to begin with."""
    return int.from_bytes(random_bytes(8), "big") & _TAIL_DRAWN


_process_ids: Final = _ProcessIds()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process_ids.reset)


def fresh_id_bytes() -> bytes:
    """A new id as 16 bytes, from this process's clock and randomness; increasing within the process.

    >>> fresh_id_bytes() < fresh_id_bytes()
    True
    """
    return _process_ids.next(1)[0]


def fresh_ids(count: int) -> list[bytes]:
    """So many new ids, for the price of little more than one.

    >>> first, second = fresh_ids(2)
    >>> first < second
    True
    """
    return _process_ids.next(count)


def derived_id(base: bytes, label: bytes) -> bytes:
    """An id that follows from another one and a label: the same each time, and after what was made before ``base``.

    Version 7 in form: its time, fraction included, is that of ``base``, the rest a digest (BLAKE2b) of both.

    >>> derived_id(bytes(16), b"first") == derived_id(bytes(16), b"first") != derived_id(bytes(16), b"second")
    True
    """
    hashed = bytearray(blake2b(base + label, digest_size=16).digest())
    hashed[:8] = base[:8]
    hashed[8] = 0x80 | hashed[8] & 0x3F
    return bytes(hashed)


def id_bytes(value: IdLike, *, field: str = "id") -> bytes:
    """The 16 bytes of an id in any of its forms; nil is let through. ``field`` names it in the error.

    Raises ``InvalidSubmission`` when it is not an id.

    >>> id_bytes("018bcfe5-6800-7000-8000-000000000001").hex()
    '018bcfe5680070008000000000000001'
    """
    if isinstance(value, bytes) and len(value) == 16:
        return bytes(value)
    if isinstance(value, uuid.UUID):
        return value.bytes
    if isinstance(value, str) and (match := _TEXT.fullmatch(value)):
        return bytes.fromhex(match[1].replace("-", ""))
    raise _not_an_id(value, field)


class Id(uuid.UUID):
    """Base of the id types: a ``uuid.UUID`` (equal to and hashed like any UUID of the same value) with a kind."""

    __slots__ = ()

    @classmethod
    def new(cls) -> Self:
        """A fresh id, version 7, greater than those made before in this process; safe from any thread.

        >>> RunId.new() < RunId.new()
        True
        """
        return cls(bytes=fresh_id_bytes())

    @classmethod
    def parse(cls, value: IdLike, *, field: str = "id", allow_nil: bool = False) -> Self:
        """The id given as UUID text (with or without hyphens, or as a URN), as a ``uuid.UUID`` or as 16 bytes.

        Raises ``InvalidSubmission``, naming ``field``, when it is none of these, or nil and ``allow_nil`` is not set.

        >>> TaskId.parse("018bcfe5-6800-7000-8000-000000000001")
        TaskId('018bcfe5-6800-7000-8000-000000000001')
        """
        raw = id_bytes(value, field=field)
        if raw == NIL and not allow_nil:
            raise nil_id(field)
        return value if isinstance(value, cls) else cls(bytes=raw)


class TaskId(Id):
    """Names a task."""

    __slots__ = ()


class RunId(Id):
    """Names a run, for its whole life."""

    __slots__ = ()


class AttemptId(Id):
    """Names one attempt of a run."""

    __slots__ = ()


class BatchId(Id):
    """Names a batch of tasks."""

    __slots__ = ()


def nil_id(field: str) -> InvalidSubmission:
    """The refusal of a nil id given for ``field``."""
    problem = "is the nil id, which names nothing; leave it out or make one with .new()"
    return InvalidSubmission(f"{field} {problem}", problems={field: problem})


def _not_an_id(value: object, field: str) -> InvalidSubmission:
    if isinstance(value, str):
        got = repr(value if len(value) <= 50 else f"{value[:50]}…")
    elif isinstance(value, bytes):
        got = f"{len(value)} bytes"
    else:
        got = type(value).__name__
    problem = f"is not an id: {got}; give UUID text (32 hexadecimal digits), a uuid.UUID or 16 bytes"
    return InvalidSubmission(f"{field} {problem}", problems={field: problem})
