"""What a retry chain has recorded: results of steps, waits that are over.

The rows are in the store (``steps``), under the chain's token, and are read when an attempt starts. Here is how many
there are of each chain that has a live run (entry ``recorded``): that of most is 0, and nothing is read for them.

Rows that follow from an event are put into ``State.records`` as it is applied, and whoever commits the event takes them
from there; ``State.forgotten`` are chains whose rows go. Knows: how they are counted. Must not know: what they say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import msgpack

if TYPE_CHECKING:
    from actionqueue.core.state import Run, State

RECORDED = "recorded"
"""The kind of the entries."""
RECORDS_MAX = 10_000
"""Records of one chain: each attempt reads them all."""

STEP = "step"
"""The kind of a record that is the result of a step; those of waits are of the wait's kind."""


def count_record(state: State, run: Run) -> None:
    """One more record of the chain of ``run``."""
    set_count(state, run.token, state.recorded.get(run.token, 0) + 1)


def add_record(state: State, run: Run, name: str, kind: str, at: int, body: bytes) -> None:
    """The chain of ``run`` has recorded that: its row is to be written with the event."""
    count_record(state, run)
    state.records.append((run.token, name, kind, at, body))


def set_count(state: State, token: bytes, count: int) -> None:
    """The chain, which has a live run, has so many records."""
    state.recorded[token] = count
    state.dirty_entries[RECORDED, token.hex()] = msgpack.encode(count)


def forget_count(state: State, token: bytes) -> None:
    """The chain has no live run any more."""
    if state.recorded.pop(token, None) is not None:
        state.dirty_entries[RECORDED, token.hex()] = None
