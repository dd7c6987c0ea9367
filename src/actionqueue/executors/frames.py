"""What a worker process and its parent say to each other: length-prefixed msgpack over a socket pair.

A frame is four bytes of length, big-endian, and one struct below. Fields are only added, with defaults; anything else
raises ``PROTOCOL_VERSION``, which both sides compare first: an upgrade in place, under a running parent, gives new
children an old parent. Sizes are bounded both ways, so that damage is noticed before it is allocated.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from actionqueue.core.attempts import Finish, Progress
from actionqueue.core.steps import RecordStep
from actionqueue.executors.port import Record

PROTOCOL_VERSION = 3
FRAME_BYTES_MAX = 256 * 1024 * 1024
"""What is sent at once between the engine and a worker process: arguments, or a result."""

_LENGTH = struct.Struct(">I")


class Init(Struct, array_like=True, tag="init"):
    """First frame to a child: what makes its interpreter like the parent's (as multiprocessing's spawn does)."""

    version: int
    argv: list[str]
    cwd: str | None
    main_name: str | None
    main_path: str | None
    measure_rss: bool


class Run(Struct, array_like=True, tag="run"):
    """To a child: run this attempt. The fields of an ``Assignment``, with the handler's locator in place of it."""

    locator: str
    name: str
    run_id: bytes
    attempt_id: bytes
    fence: int
    task_id: bytes
    payload: bytes
    attempt_number: int
    failure_count: int
    max_attempts: int
    token: bytes
    scheduled_at: int
    started_at: int
    timeout_us: int | None = None
    metadata: dict[str, Any] | None = None
    waited_us: int = 0
    """How long it waited for this process."""
    records: list[Record] | None = None


class Stop(Struct, array_like=True, tag="stop"):
    """To a child: ask that attempt's code to stop."""

    attempt_id: bytes
    reason: str


class Answered(Struct, array_like=True, tag="answered"):
    """To a child: what it asked is durable, or (``problem``: code, message, facts that are texts or numbers) refused."""

    number: int
    problem: tuple[str, str, dict[str, str | int]] | None = None


class Quit(Struct, array_like=True, tag="quit"):
    """To a child: leave the resources and exit."""


class Ready(Struct, array_like=True, tag="ready"):
    """From a child: it can take attempts; or it cannot, and why."""

    version: int
    problem: str | None = None


class Begun(Struct, array_like=True, tag="begun"):
    """From a child: from now on code of the user may have run. A child that dies before has not tried the attempt."""

    attempt_id: bytes


class Called(Struct, array_like=True, tag="called"):
    """From a child: everything is ready and the handler is called now. Only of attempts with a timeout."""

    attempt_id: bytes


class Ended(Struct, array_like=True, tag="ended"):
    """From a child: the attempt's end. ``interrupted``: an exception was thrown into its code, the child is to go."""

    finish: Finish
    interrupted: bool = False
    rss_bytes: int = 0


class Reported(Struct, array_like=True, tag="reported"):
    """From a child: how far the handler is."""

    progress: Progress


class Asks(Struct, array_like=True, tag="asks"):
    """From a child: something to be recorded. Answered under the same number."""

    number: int
    command: RecordStep


ToChild = Init | Run | Stop | Answered | Quit
ToParent = Ready | Begun | Called | Ended | Reported | Asks

to_child: msgspec.msgpack.Decoder[ToChild] = msgspec.msgpack.Decoder(ToChild)
to_parent: msgspec.msgpack.Decoder[ToParent] = msgspec.msgpack.Decoder(ToParent)
_encoder = msgspec.msgpack.Encoder()


class FrameError(Exception):
    """A frame over ``FRAME_BYTES_MAX``, or bytes that are none."""


def encode(frame: ToChild | ToParent) -> bytes:
    """The frame with its length in front."""
    body = _encoder.encode(frame)
    if len(body) > FRAME_BYTES_MAX:
        raise FrameError(f"a frame of {len(body)} bytes; at most {FRAME_BYTES_MAX} (FRAME_BYTES_MAX) pass")
    return _LENGTH.pack(len(body)) + body


class FrameBuffer:
    """Bytes as they arrive, to whole frames."""

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, received: bytes) -> Iterator[bytes]:
        """The bodies that ``received`` completes."""
        held = self._bytes
        held += received
        start = 0
        try:
            while len(held) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(held, start)
                if length > FRAME_BYTES_MAX:
                    raise FrameError(f"a frame of {length} bytes; at most {FRAME_BYTES_MAX} (FRAME_BYTES_MAX) pass")
                end = start + _LENGTH.size + length
                if len(held) < end:
                    return
                body = bytes(held[start + _LENGTH.size : end])
                start = end
                yield body
        finally:
            del held[:start]
