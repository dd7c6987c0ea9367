"""Signals: what is told to runs from outside, by name and an optional key.

A signal is durable and kept, so it does not matter whether it comes before, during or after the wait that it is for. It is
known by its id: sent twice with the same content it is one signal. It serves every run that waits at its address, each
once per wait (``core/awaiting.py``). Signals expire by age and by count, oldest first and a part at a time, and only
while nobody is about to be woken: a live wait that one of them could match is matched already.

Knows: how signals come and go. Must not know: what they do to whom (``core/waits.py``).
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from actionqueue.core.awaiting import Signal
from actionqueue.core.errors import ActionQueueError, InvalidSubmission, PayloadTooLarge, SignalConflict
from actionqueue.core.spec import text_problem
from actionqueue.core.state import Accepted, State

SIGNAL_BYTES_MAX = 64 * 1024
"""The payload of a signal, as JSON."""
SIGNALS_MAX = 100_000
"""Signals that are kept; the oldest go first."""
SIGNAL_AGE_US = 7 * 86_400 * 1_000_000
"""How long a signal is kept."""
EXPIRED_PER_EVENT_MAX = 2_000


class SignalKept(Struct, frozen=True, array_like=True, tag=52):
    """A signal has come. Its order is the sequence of this event."""

    at: int
    signal_id: str
    name: str
    key: str | None
    payload: bytes
    by: str = ""


class SignalsExpired(Struct, frozen=True, array_like=True, tag=53):
    """The signals up to the order ``upto`` are kept no more."""

    at: int
    upto: int
    count: int


class SendSignal(Struct, array_like=True, tag="signal"):
    """Send a signal. ``payload`` is JSON."""

    signal_id: str
    name: str
    key: str | None = None
    payload: bytes = b"null"
    by: str = ""


def signal_problems(command: SendSignal) -> ActionQueueError | None:
    """What is wrong with a signal, if anything; needs no state."""
    texts = {"id": command.signal_id, "name": command.name, "key": command.key}
    problems = {
        name: problem
        for name, value in texts.items()
        if not (name == "key" and value is None) and (problem := text_problem(value)) is not None
    }
    if len(command.payload) > SIGNAL_BYTES_MAX:
        return PayloadTooLarge(
            f"payload: the signal takes {len(command.payload)} bytes; at most {SIGNAL_BYTES_MAX} are taken. "
            "Send a reference to it instead.",
            limit="signal_bytes_max",
            maximum=SIGNAL_BYTES_MAX,
        )
    try:
        msgspec.json.decode(command.payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problems["payload"] = f"not JSON ({error})"
    if not problems:
        return None
    return InvalidSubmission("; ".join(f"{name}: {what}" for name, what in problems.items()), problems=problems)


def decide_signal(state: State, command: SendSignal, now: int) -> Accepted | ActionQueueError:
    """Kept; one of that id that is kept already is the same, or in conflict. The reply says whether it is new."""
    problem = signal_problems(command)
    if problem is not None:
        return problem
    known = state.places.awaiting.signals.get(command.signal_id)
    if known is None:
        event = SignalKept(now, command.signal_id, command.name, command.key, command.payload, command.by)
        return Accepted([event], reply=True)
    if (known.name, known.key, known.payload) == (command.name, command.key, command.payload):
        return Accepted([], reply=False)
    return SignalConflict(
        f"signal {command.signal_id!r} was sent before with another name, key or payload; give another id",
        signal_id=command.signal_id,
    )


def decide_signals_expired(state: State, now: int, age_us: int, most: int) -> list[SignalsExpired]:
    """The oldest signals that are too old, or too many; a part of them. None while anybody is to be woken."""
    awaiting = state.places.awaiting
    if awaiting.waking:
        return []
    count, upto = 0, 0
    for signal in awaiting.signals.values():
        is_one_too_many = len(awaiting.signals) - count > most
        if count == EXPIRED_PER_EVENT_MAX or not (is_one_too_many or signal.at <= now - age_us):
            break
        count, upto = count + 1, signal.order
    return [SignalsExpired(now, upto, count)] if count else []


def apply_signal_kept(state: State, event: SignalKept) -> None:
    """It is kept, and whoever waits for it is to be woken."""
    signal = Signal(state.last_seq, event.at, event.signal_id, event.name, event.key, event.payload, event.by)
    state.places.awaiting.keep(signal)


def apply_signals_expired(state: State, event: SignalsExpired) -> None:
    """They are gone."""
    state.places.awaiting.drop(event.upto)
