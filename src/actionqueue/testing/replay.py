"""A log that someone exported (``actionqueue export``), fed to a simulated disk: a bug report that replays.

Every commit is applied and checked on the way. Arguments and results are not in an export, so what runs again is given
stand-ins for arguments, results are null, and digests are theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msgspec import json
from msgspec.structs import replace

from actionqueue.core.attempts import AttemptFinished
from actionqueue.core.check import check
from actionqueue.core.machine import Machine
from actionqueue.core.rows import project
from actionqueue.core.state import Output
from actionqueue.core.submission import RunAdded, TaskSubmitted
from actionqueue.export import ExportedCommit, read_export
from actionqueue.store.codec import CHAIN_START, EVENTS_VERSION, chain, digest, encode_events
from actionqueue.store.port import Batch, Commit
from actionqueue.testing.faults import Disk

_RESULT = b"null"

StandIns = Callable[[str], Mapping[str, Any]]
"""Arguments by name for a task of the handler that is given."""


def no_arguments(handler: str) -> Mapping[str, Any]:
    """Handlers without parameters."""
    del handler
    return {}


def replayed(lines: Iterable[str]) -> Machine:
    """The machine that an export leads to. Raises ``AssertionError`` naming the first commit after which the state is
    not sound, ``InvalidSubmission`` for a line that is none of an export.

    >>> from actionqueue.testing.replay import replayed
    >>> replayed(['{"actionqueue_export": 1, "from_seq": 0}']).state.last_seq
    0
    """
    machine = Machine()
    for commit in read_export(lines):
        _apply(machine, commit, commit.events)
    return machine


def feed(disk: Disk, lines: Iterable[str], stand_ins: StandIns = no_arguments) -> Machine:
    """Write an export to an empty disk, as an engine would have; the machine that it leads to.

    Raises as ``replayed``, and ``ValueError`` for an export whose log does not begin at its start.
    """
    store, machine = disk.memory, Machine()
    hashed = CHAIN_START
    store.open(pid=1, host="export")
    for commit in read_export(lines):
        if commit.first_seq != machine.state.last_seq + 1:
            raise ValueError(
                f"the export goes from sequence {machine.state.last_seq} to {commit.first_seq}; give all of it"
            )
        blobs: list[tuple[bytes, bytes]] = []
        events = [_with_stand_in(event, stand_ins, blobs) for event in commit.events]
        _apply(machine, commit, events)
        body = encode_events(events)
        hashed = chain(hashed, body)
        logged = Commit(commit.first_seq, commit.last_seq, commit.at, store.epoch, EVENTS_VERSION, body, hashed)
        disk.commit(Batch(logged, commit.first_seq - 1, store.epoch, blobs, project(machine.state)))
    epoch = machine.state.epoch
    while epoch is not None and store.epoch < epoch.number:
        store.crash()
        store.open(pid=1, host="export")
    store.crash()
    disk.written.clear()
    return machine


def _apply(machine: Machine, commit: ExportedCommit, events: Iterable[Any]) -> None:
    for event in events:
        machine.apply(event)
    problems = check(machine.state)
    assert not problems, f"after the commit that ends at sequence {commit.last_seq}: {'; '.join(problems)}"


def _with_stand_in(event: Any, stand_ins: StandIns, blobs: list[tuple[bytes, bytes]]) -> Any:
    match event:
        case TaskSubmitted(task_id=task_id, handler=handler):
            body = json.encode(stand_ins(handler))
            blobs.append((task_id, body))
            return replace(event, payload_digest=digest(body), payload_bytes=len(body))
        case AttemptFinished(run_id=run_id, output=output) if output is not None:
            blobs.append((run_id, _RESULT))
            return replace(event, output=Output(digest(_RESULT), len(_RESULT)))
        case RunAdded(image=image) if image is not None:
            body = json.encode(stand_ins(image.handler))
            return replace(event, image=replace(image, payload_digest=digest(body), payload_bytes=len(body)))
        case _:
            return event
