"""What other processes send: whatever is in it, it is decided or refused, and what is decided can be applied."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from msgspec import msgpack

from actionqueue.core.control import CancelRun, CancelTask, Pause, Reprioritize, Reschedule, Resume
from actionqueue.core.errors import ActionQueueError
from actionqueue.core.explain import Explain
from actionqueue.core.foreign import admit
from actionqueue.core.needs import KeyNeed, RateNeed
from actionqueue.core.schedules import AskBackfill, PutSchedule, Retire, Trigger
from actionqueue.core.signals import SendSignal
from actionqueue.core.spec import TaskOptions
from actionqueue.core.submission import KnownTask, RetryRun, Submit
from actionqueue.engine.inbox import SENDABLE
from actionqueue.store.codec import decode_command, encode_command, encode_events, encode_reply
from tests.core.random_stories import _rule, act_out, drawn
from tests.core.story import SECOND, Story

SURROGATE = "\ud800".encode("utf-8", "surrogatepass")
VALUES: list[Any] = [
    None, 0, 1, -1, 2**31, 2**63 - 1, 2**64 - 1, -(2**63), 1.5, float("nan"), float("inf"), "", "x", "*", "s0", "a" * 2000,
    "\x00", SURROGATE, b"", bytes(16), b"x" * 16, b"y" * 15, [], {}, True, False, "UTC", "right/UTC", "../etc", "America",
    "* * * * *", "*/0 * * * *", "0 0 31 2 *", "60 * * * *", "* * * * * * 1969", "@reboot", "L L L L L", "0 0 * * 5#9",
    "catch_up", "skip", "queue", "engine", "task", "retry_wait", 253_402_300_799_999_999,
]  # fmt: skip


def spoiled(chance: random.Random, value: Any) -> Any:
    """The same with something in it exchanged for something else."""
    if isinstance(value, list) and value and chance.random() < 0.9:
        changed = list(value)
        for _ in range(chance.choice([1, 1, 1, 2])):
            place = chance.randrange(len(changed))
            changed[place] = spoiled(chance, changed[place])
        return changed
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name = chance.choice(list(value))
        return value | {name: spoiled(chance, value[name])}
    if isinstance(value, int) and chance.random() < 0.5:
        return chance.choice([value + 1, -value, 0, 2**63])
    return chance.choice(VALUES)


def sound(chance: random.Random, story: Story) -> Any:
    """A command that other processes send, about something that is there."""
    name = chance.choice([*story.names]) if story.names else "r"
    task_id, run_id = story.names.get(name, (b"t" * 16, b"r" * 16))
    known = sorted(story.state.schedules.values(), key=lambda each: each.task_id)
    schedule = chance.choice(known) if known else None
    named = "s0" if schedule is None else schedule.name or schedule.task_id.hex()
    needs = TaskOptions(limits=(KeyNeed("one", 1),), rates=(RateNeed("slow", 1, SECOND, 1),), hold=("retry_wait",))
    item = story.item("new", rule=_rule(chance.randrange(31), chance.randrange(31)), content=b"x", options=needs)
    del story.names["new"]
    put = story.item("new", rule=item.rule, content=b"y", schedule_name="s0", schedule_origin="call")
    del story.names["new"]
    return chance.choice([
        Submit([item]), PutSchedule(put), Trigger(named, story.next_id(story.now)), Retire(named),
        AskBackfill(named, story.now - 9 * SECOND, story.now - SECOND), CancelRun(run_id), CancelTask(task_id),
        Pause("task", task_id.hex()), Resume("queue", "mail"), Reschedule(run_id, story.now + SECOND),
        Reprioritize(run_id, 3), RetryRun(run_id, story.next_id(story.now)), Explain(run_id),
        SendSignal("s1", "go", "k", b"1"),
    ])  # fmt: skip


def received(chance: random.Random, story: Story) -> Any:
    """Such a command, spoiled, as the inbox reads it; None where it cannot be read, or is refused there."""
    raw = msgpack.decode(encode_command(sound(chance, story)))
    if chance.random() < 0.9:
        fields = spoiled(chance, raw[1:])
        raw = [raw[0], *fields] if isinstance(fields, list) else fields
    try:
        command = decode_command(msgpack.encode(raw))
    except (msgspec.DecodeError, ValueError, OverflowError):  # a number no sender can encode
        return None
    if not isinstance(command, SENDABLE):
        return None
    if isinstance(command, Submit | PutSchedule):
        command.at = max(1, story.now - 5)
    return None if admit(command) is not None else command


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_sent_is_decided_or_refused(seed: int) -> None:
    chance = random.Random(seed)
    story = act_out(drawn(seed, 20))
    for _ in range(40):
        command = received(chance, story)
        story.now += 1
        if command is None:
            continue
        decision = story.machine.decide(command, story.now)
        if isinstance(decision, ActionQueueError):
            encode_reply(decision)
            continue
        encode_reply(decision.reply)
        encode_events(decision.events)
        for event in decision.events:
            story.machine.apply(event)
        story._record(decision.events)
        story.settle()


@pytest.mark.parametrize(
    "command",
    [
        Reschedule(b"", 1), Reprioritize(b"x", 1), CancelRun(b"x" * 17), CancelTask(b""), Explain(b"1"),
        RetryRun(b"", b"x" * 16), RetryRun(b"x" * 16, b""), Trigger("s", b""),
    ],
)  # fmt: skip
def test_what_names_nothing_is_refused(command: Any) -> None:
    refusal = admit(command)

    assert refusal is not None
    assert "16 bytes" in refusal.message


def test_what_only_the_engine_may_know_is_forgotten() -> None:
    submit = Submit([], known_keys={"k": KnownTask(b"t" * 16, None)}, known_tasks={b"t": KnownTask(b"t" * 16, None)})
    cancel, retire = CancelRun(b"r" * 16, known_state=99), CancelTask(b"t" * 16, known=True)

    assert (admit(submit), admit(cancel), admit(retire)) == (None, None, None)
    assert (submit.known_keys, submit.known_tasks, cancel.known_state, retire.known) == ({}, {}, None, False)
