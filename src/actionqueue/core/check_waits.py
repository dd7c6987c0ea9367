"""What must hold of waits and signals after every event; see ``core/check.py``."""

from __future__ import annotations

from collections.abc import Iterator

from actionqueue.core.awaiting import SIGNAL, Awaiting, Signal
from actionqueue.core.reasons import Where
from actionqueue.core.state import State


def wait_problems(state: State) -> Iterator[str]:
    """What does not hold, in sentences; read from scratch."""
    awaiting, runs = state.places.awaiting, state.runs
    resting = {run_id for run_id, run in runs.items() if run.where is Where.AWAITING}
    if set(awaiting.waits) != resting:
        yield f"{len(resting)} runs are in AWAITING, and {len(awaiting.waits)} have a wait, or others"
        return
    yield from _signal_problems(awaiting)
    yield from _matching_problems(awaiting)
    yield from _deadline_problems(state)
    tokens = {run.token for run in runs.values()}
    for token in state.recorded.keys() - tokens:
        yield f"records are counted of chain {token.hex()}, of which no run is live"


def _signal_problems(awaiting: Awaiting) -> Iterator[str]:
    orders = [signal.order for signal in awaiting.signals.values()]
    if orders != sorted(set(orders)):
        yield "signals are not kept in the order they came in"
    by_address: dict[object, list[Signal]] = {}
    for id, signal in awaiting.signals.items():
        by_address.setdefault(signal.address, []).append(signal)
        if id != signal.id:
            yield f"signal {signal.id!r} is kept as {id!r}"
    if awaiting.kept != by_address:
        yield "signals are not those that are kept at their addresses"


def _matching_problems(awaiting: Awaiting) -> Iterator[str]:
    newest = {signal.address: signal.order for signal in awaiting.signals.values()}
    for run_id, wait in awaiting.waits.items():
        is_for_signal = wait.kind == SIGNAL
        matched = newest.get(wait.address, 0) > wait.served
        if (run_id in awaiting.waking) != (is_for_signal and matched):
            yield f"run {run_id.hex()}: its signal is {'' if matched else 'not '}kept, and it is to be woken or not"
        if (run_id in awaiting.waiting.get(wait.address, {})) != (is_for_signal and not matched):
            yield f"run {run_id.hex()}: no signal would find it, or one that it does not wait for"
    found = [*awaiting.waking, *(run_id for runs in awaiting.waiting.values() for run_id in runs)]
    if len(found) != sum(wait.kind == SIGNAL for wait in awaiting.waits.values()) or not all(awaiting.waiting.values()):
        yield "others wait for signals than are Awaiting"


def _deadline_problems(state: State) -> Iterator[str]:
    awaiting, runs = state.places.awaiting, state.runs
    for run_id, wait in awaiting.waits.items():
        if runs[run_id].until != (wait.until or 0):
            yield f"run {run_id.hex()}: it waits until {wait.until}, its row says {runs[run_id].until}"
    heap = awaiting.ends_at
    timed = {(wait.until, run_id) for run_id, wait in awaiting.waits.items() if wait.until is not None}
    watched = {(entry[0], entry[2].id_bytes) for entry in heap}
    for _, run_id in timed - watched:
        if run_id not in awaiting.waking:
            yield f"run {run_id.hex()}: the deadline of its wait is not watched"
    if awaiting.timed != len(timed):
        yield f"{len(timed)} waits have a deadline, {awaiting.timed} are counted"
    if any(heap[n] < heap[(n - 1) // 2] for n in range(1, len(heap))):
        yield "the heap of waits is out of order"


def unended(awaiting: Awaiting, now: int | None) -> Iterator[str]:
    """Waits that are over, and should have been ended."""
    for run_id in awaiting.waking:
        yield f"run {run_id.hex()}: its signal has come, and it was left waiting"
    for run_id, wait in awaiting.waits.items():
        if now is not None and wait.until is not None and wait.until <= now:
            yield f"run {run_id.hex()}: its wait was over at {wait.until}, and goes on at {now}"
