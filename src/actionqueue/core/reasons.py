"""The kinds of place a live run can be in, and typed answers to why it is not running: what explain renders.

Knows: the words. Must not know: who is where, and why; ``core/places.py`` does, and its guards make the answers.
"""

from __future__ import annotations

import enum

from msgspec import Struct


class Where(enum.Enum):
    """The kinds of place; the value is for rows and reprs."""

    NOWHERE = 0
    TIMER = 1
    HELD = 2
    LANE = 3
    MISFIT = 4
    QUARANTINE = 5
    RUNNING = 6
    OVERLAP = 7


class NotYetDue(Struct, frozen=True, tag=True):
    """Scheduled, or backing off, until an instant."""

    until: int
    backing_off: bool


class Paused(Struct, frozen=True, tag=True):
    """Under a pause; released by resuming the same scope."""

    scope: str
    name: str
    at: int
    by: str


class HandlerMissing(Struct, frozen=True, tag=True):
    """No handler of this name is registered with the engine."""

    handler: str


class ArgumentsMisfit(Struct, frozen=True, tag=True):
    """The stored arguments do not fit the registered handler; released by registering one they fit."""

    handler: str


class NoFreeSlot(Struct, frozen=True, tag=True):
    """The slots of a queue, an executor or a handler are all taken, by these runs."""

    kind: str
    name: str
    capacity: int
    holders: tuple[bytes, ...]


class KeyHeld(Struct, frozen=True, tag=True):
    """As many runs as it may have hold a key; released when one of these ends, or goes to a state it is not held over."""

    key: str
    capacity: int
    holders: tuple[bytes, ...]


class RateLimited(Struct, frozen=True, tag=True):
    """A rate has no token left until an instant: ``count`` in ``per_us`` microseconds."""

    key: str
    count: int
    per_us: int
    until: int


class TakesItsTurn(Struct, frozen=True, tag=True):
    """Was live in two crashes in a row; starts when the one before it has ended."""

    holder: bytes | None


class AheadInLine(Struct, frozen=True, tag=True):
    """Nothing blocks it; ``ahead`` runs of its lane go first."""

    ahead: int


class PreviousLive(Struct, frozen=True, tag=True):
    """An occurrence of a schedule that is due, and waits for the ones before it to end."""

    previous: tuple[bytes, ...]
    overlap: str


class InProgress(Struct, frozen=True, tag=True):
    """An attempt is running since ``since``."""

    attempt_id: bytes
    since: int


Reason = (
    NotYetDue
    | Paused
    | HandlerMissing
    | ArgumentsMisfit
    | NoFreeSlot
    | KeyHeld
    | RateLimited
    | TakesItsTurn
    | AheadInLine
    | PreviousLive
    | InProgress
)
