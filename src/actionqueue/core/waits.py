"""Waits: how a run that is Awaiting becomes Ready again, and what its next attempt is told.

A handler that waits ends its attempt (``AttemptFinished`` to Awaiting, with the wait). The wait ends by a signal, by its
deadline, or (a sleep) because its time has passed; each way is one event, which takes up to some thousand runs from
Awaiting to Ready and leaves a *record* under the wait's name: the answer that the same wait has in the next attempt. The
first of signal, deadline and cancel that is decided ends the wait; a signal is decided when it arrives, also where the
runs it woke come up in later parts. A pause holds back what is Ready; waits end under it all the same.

Other kinds end where their condition is known to hold, by ``end_waits``. Knows: waits and the records they leave. Must
not know: what else the record of a chain holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import Struct, msgpack

from actionqueue.core.awaiting import SLEEP, Signal
from actionqueue.core.records import add_record
from actionqueue.core.state import AWAITING, READY, Run, State

SIGNALED, TIMED_OUT, SLEPT = "signaled", "timed_out", "slept"
"""How a wait ended; the reason of its run, which is Ready then."""
WAITS_PER_EVENT_MAX = 2_000


class WaitsEnded(Struct, frozen=True, array_like=True, tag=51):
    """The waits of these runs are over, in this order. ``order`` is that of the signal which ended them, else 0."""

    at: int
    run_ids: list[bytes]
    how: str
    order: int = 0


class WaitRecord(Struct, frozen=True, array_like=True):
    """The body of a wait's record: how it ended, and the signal that did it."""

    how: str
    since: int
    order: int = 0
    id: str = ""
    signal: str = ""
    key: str | None = None
    payload: bytes = b"null"
    by: str = ""
    sent_at: int = 0


_pack = msgpack.Encoder().encode
_record = msgpack.Decoder(WaitRecord)


def wait_record(body: bytes) -> WaitRecord:
    """The body of a wait's record, read. Raises ``msgspec.DecodeError``."""
    return _record.decode(body)


def decide_waits(state: State, now: int) -> list[WaitsEnded]:
    """The waits that are over, a part of them: those that signals have ended come before those that time ends."""
    awaiting = state.places.awaiting
    events = _signaled(state, now)
    room = WAITS_PER_EVENT_MAX - sum(len(event.run_ids) for event in events)
    due = awaiting.due(now, room) if room else []
    slept = [run.id_bytes for run in due if awaiting.waits[run.id_bytes].kind == SLEEP]
    timed_out = [run.id_bytes for run in due if awaiting.waits[run.id_bytes].kind != SLEEP]
    events += [WaitsEnded(now, ids, how) for ids, how in ((slept, SLEPT), (timed_out, TIMED_OUT)) if ids]
    return events


def _signaled(state: State, now: int) -> list[WaitsEnded]:
    awaiting = state.places.awaiting
    by_signal: dict[int, list[bytes]] = {}
    for n, run_id in enumerate(awaiting.waking):
        if n == WAITS_PER_EVENT_MAX:
            break
        signal = awaiting.match(awaiting.waits[run_id])
        assert signal is not None, "whoever is to be woken is matched"
        by_signal.setdefault(signal.order, []).append(run_id)
    return [WaitsEnded(now, run_ids, SIGNALED, order) for order, run_ids in by_signal.items()]


def apply_waits_ended(state: State, event: WaitsEnded) -> None:
    """The runs are Ready, in the order of the event, and their records are made."""
    end_waits(state, (state.runs[run_id] for run_id in event.run_ids), event.how, event.at, event.order)


def end_waits(state: State, runs: Iterable[Run], how: str, at: int, order: int = 0) -> None:
    """The waits of ``runs`` are over."""
    places, counts = state.places, state.counts
    signal: Signal | None = None
    for run in runs:
        wait = places.awaiting.waits[run.id_bytes]
        if order and signal is None:
            kept = places.awaiting.kept.get(wait.address, ())
            signal = next((each for each in reversed(kept) if each.order == order), None)
        places.leave(run)
        counts[AWAITING] -= 1
        counts[READY] += 1
        run.promote_to_ready_with_priority(run.priority)
        run.record_state_change_at(at)
        run.reason = how
        run.order = state.next_order
        state.next_order += 1
        run.until = at
        state.dirty_runs[run.id_bytes] = run
        places.enter_lane(run)
        add_record(state, run, wait.name, wait.kind, at, _pack(_record_of(how, wait.since, signal)))


def _record_of(how: str, since: int, signal: Signal | None) -> WaitRecord:
    if signal is None:
        return WaitRecord(how, since)
    return WaitRecord(
        how, since, signal.order, signal.id, signal.name, signal.key, signal.payload, signal.by, signal.at
    )  # fmt: skip


def wait_facts(state: State) -> Any:
    """What replay must reproduce of waits and signals."""
    awaiting = state.places.awaiting
    return sorted(awaiting.waits.items()), list(awaiting.signals.values()), sorted(state.recorded.items())
