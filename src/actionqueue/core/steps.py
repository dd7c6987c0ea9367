"""Durable steps: what an attempt has done, recorded before it goes on, so that no later attempt does it again.

The result of a step is a record of its run's retry chain, under its name. It is durable before the handler learns of it:
the report is answered after the commit. The event carries the result's digest, the row its bytes, as with payloads.

Knows: how a step is recorded. Must not know: where it ran, or what it did.
"""

from __future__ import annotations

from msgspec import Struct

from actionqueue.core.attempts import stale
from actionqueue.core.errors import ActionQueueError, InvalidSubmission, LimitExceeded, StepTooLarge
from actionqueue.core.records import RECORDS_MAX, STEP, count_record
from actionqueue.core.spec import text_problem
from actionqueue.core.state import Accepted, State

STEP_BYTES_MAX = 1024 * 1024
"""The result of a step, as JSON."""
NOTE = "note"
"""The kind of records that are no results: they are told to nobody but readers."""
UNASKED = "\0unasked"
"""The note of a completed attempt: names that were recorded, and that its code did not ask for (JSON)."""


class StepRecorded(Struct, frozen=True, array_like=True, tag=50):
    """The open attempt of a run has recorded something under a name. ``digest`` is BLAKE2b-128 of it."""

    at: int
    run_id: bytes
    name: str
    kind: str
    digest: bytes
    bytes_count: int
    is_new: bool = True
    """Whether nothing was recorded under that name before."""


class RecordStep(Struct, array_like=True, tag="step"):
    """Record ``body`` (JSON) under ``name``; from an attempt that no longer holds its run it is refused."""

    run_id: bytes
    attempt_id: bytes
    fence: int
    name: str
    kind: str
    body: bytes
    digest: bytes
    is_new: bool = True


def step_problem(name: str, body: bytes) -> ActionQueueError | None:
    """What is wrong with a step, if anything; needs no state."""
    problem = text_problem(name)
    if problem is not None:
        return InvalidSubmission(f"step: {problem}", problems={"name": problem})
    if len(body) > STEP_BYTES_MAX:
        return StepTooLarge(
            f"step {name!r}: its result takes {len(body)} bytes; at most {STEP_BYTES_MAX} are recorded. "
            "Return a reference to it instead.",
            limit="step_bytes_max",
            maximum=STEP_BYTES_MAX,
        )
    return None


def decide_step(state: State, command: RecordStep, now: int) -> Accepted | ActionQueueError:
    """Recorded while its attempt holds the run. The reply is the name."""
    refusal: ActionQueueError | None = stale(state, command.run_id, command.attempt_id, command.fence)
    if refusal is None and command.kind == STEP:
        refusal = step_problem(command.name, command.body)
    if refusal is not None:
        return refusal
    if command.is_new and state.recorded.get(state.runs[command.run_id].token, 0) >= RECORDS_MAX:
        return LimitExceeded(
            f"step {command.name!r}: the run has {RECORDS_MAX} records; an attempt reads them all. Do more in a step.",
            limit="records_max",
            maximum=RECORDS_MAX,
        )
    event = StepRecorded(
        now, command.run_id, command.name, command.kind, command.digest, len(command.body), command.is_new
    )
    return Accepted([event], command.name)


def apply_step(state: State, event: StepRecorded) -> None:
    """The chain has one record more."""
    run = state.runs[event.run_id]
    if event.is_new:
        count_record(state, run)
