"""A state of one's own, made of a store: to ask it questions, and to let time pass in it, without touching anything.

Knows: how to load a store's live rows and its log's tail through a reader, and to equip the places as the engine's are.
Must not know: what is asked of it. Reading takes about 10 µs a live run.
"""

from __future__ import annotations

from actionqueue.core.equipment import Equipment, equip
from actionqueue.core.loading import load
from actionqueue.core.machine import Machine
from actionqueue.store.codec import decode_equipment, decode_events
from actionqueue.store.port import Reader


def fork(reader: Reader) -> Machine:
    """The state of the store as of now, with what its last engine had to run things with; ``dispose`` it after use.

    Attempts that are open in it hold their slots. Raises ``StoreDamaged``.
    """
    with reader.scan() as scan:
        facts = {row[0]: row[1] for row in scan.rows("facts")}
        state = load(facts, scan.live("tasks"), scan.live("runs"), (row[:3] for row in scan.rows("entries")))
    machine = Machine(state)
    for commit in reader.commits(state.last_seq):
        events = decode_events(commit.events, commit.version)
        machine.replay(events[state.last_seq + 1 - commit.first_seq :])
    equip(state.places, decode_equipment(facts["equipment"]) if "equipment" in facts else Equipment())
    _take_slots(machine)
    return machine


def _take_slots(machine: Machine) -> None:
    """Runs that were running when they were loaded take slots of executors that came to be known only afterwards."""
    for run in machine.state.runs.values():
        executor = run.task.lane.executor
        if run.attempt is not None and executor is not None:
            executor.running[run.id_bytes] = run
