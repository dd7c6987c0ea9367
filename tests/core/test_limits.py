"""Keys, rates, holds, aging and pauses of single tasks: who may run at once, who is next, and that nothing leaks."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from actionqueue.core import families as families_module
from actionqueue.core.control import Pause, Resume
from actionqueue.core.errors import AlreadyTerminal, InvalidSubmission, UnknownTask
from actionqueue.core.ids import fresh_id_bytes
from actionqueue.core.instants import to_datetime
from actionqueue.core.limits import Limits
from actionqueue.core.needs import KeyNeed, RateNeed
from actionqueue.core.places import Places
from actionqueue.core.reasons import KeyHeld, NoFreeSlot, RateLimited, Where
from actionqueue.core.reasons import Paused as PausedReason
from actionqueue.core.spec import TaskOptions, option_problems
from actionqueue.core.state import Outcome
from actionqueue.core.submission import Submit
from tests.core.story import SECOND, START, Story, play
from tests.core.test_places import Counting

HOLDS = ["", "hold=retry_wait", "hold=retry_wait,suspended,awaiting", "hold=suspended"]


def at_key(story: Story, key: str) -> set[str]:
    """The names of the runs that hold a key."""
    slots = story.state.places.limits.keys.get(key)
    holders = {} if slots is None else slots.running
    return {name for name in story.names if story.id(name) in holders}


# --- taken at the start, given back at every end -------------------------------------------------------------------


def test_a_key_of_capacity_one_lets_one_run_at_a_time() -> None:
    """concurrency_key/01, concurrency_key/03, concurrency_key/05: in the order in which they became ready."""
    story = play("submit a b c limits=k\nexpect b ready waits=KeyHeld")
    assert story.reason("b") == KeyHeld("k", 1, 1, (story.run_id("a"),))
    story.play("""
        finish a completed
        expect b running
        expect c ready waits=KeyHeld
        finish b completed
        finish c completed
        started a b c
    """)


def test_different_keys_and_keyless_runs_do_not_meet() -> None:
    """concurrency_key/02, concurrency_key/04."""
    play("submit a limits=k\nsubmit b limits=other\nsubmit c\nsubmit d limits=k\nsubmit e\nstarted a b c e")


TERMINAL = {
    "completed": ("", "finish a completed"),
    "failed for good": ("", "finish a terminal"),
    "canceled while running": ("cancel a", "finish a canceled"),
    "completed although canceled": ("cancel a", "finish a completed"),
    "failed although canceled": ("cancel a", "finish a failed"),
    "killed": ("cancel a how=kill", "finish a canceled"),
    "abandoned": ("", "cancel a how=abandon"),
    "its task canceled": ("cancel_task a", "finish a canceled"),
    "its task abandoned": ("", "cancel_task a how=abandon"),
    "retries exhausted": ("finish a failed\ntick 10s", "finish a failed"),
    "timed out for the last time": ("finish a failed\ntick 10s", "finish a timed_out"),
    "lost too often": ("handler h on_lost=fail\nfinish a failed\ntick 10s", "finish a lost"),
    "lost at an opening": ("handler h on_lost=fail\nfinish a failed\ntick 10s", "crash\nrestart"),
    "canceled while backing off": ("finish a failed", "cancel a"),
    "its task canceled while backing off": ("finish a failed", "cancel_task a"),
    "canceled while ready again": ("finish a failed\nexecutor main 0\ntick 10s", "cancel a\nexecutor main 9"),
    "canceled while held by a pause": ("pause queue mail\nfinish a failed\ntick 10s", "cancel a"),
    "canceled while misfit": ("finish a misfit", "cancel a"),
    "canceled while its task is paused": ("pause task a\nfinish a failed\ntick 10s", "cancel a"),
    "completed after a crash": ("crash\nrestart\ntick 10s", "finish a completed"),
}
"""Every way for a run to end after it has held its key: how it comes there, and what ends it."""


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("how", TERMINAL)
def test_every_way_to_end_gives_the_key_back(how: str, hold: str) -> None:
    """cancellation/03, concurrency_key/03, concurrency_key/06, section 5 number 44: whatever is held over."""
    before, end = TERMINAL[how]
    story = play(f"submit a limits=k queue=mail attempts=2 {hold}\n{before}\nsubmit b limits=k\n{end}")

    assert story.run("a").is_terminal
    assert story.where("b") is Where.RUNNING
    assert at_key(story, "k") == {"b"}


RESTING = {
    "failed": ("finish a failed", "10s"),
    "timed out": ("finish a timed_out", "10s"),
    "snoozed": ("finish a snoozed after=10s", "10s"),
    "interrupted": ("finish a interrupted after=10s", "10s"),
    "lost": ("finish a lost", "10s"),
    "lost at an opening": ("crash\nrestart", "10s"),
}
"""Every way for a run to rest in RetryWait."""


@pytest.mark.parametrize("restarted", ["", "project\ncrash\nrestart", "crash\nrestart"])
@pytest.mark.parametrize("how", RESTING)
def test_a_key_is_given_back_over_a_rest_that_is_not_held(how: str, restarted: str) -> None:
    line, _ = RESTING[how]

    story = play(f"submit a limits=k hold=suspended,awaiting\nsubmit b limits=k\n{line}\nexpect b running\n{restarted}")

    assert at_key(story, "k") <= {"b"}


@pytest.mark.parametrize("restarted", ["", "project\ncrash\nrestart", "crash\nrestart"])
@pytest.mark.parametrize("how", RESTING)
def test_a_key_is_kept_over_a_rest_that_is_held(how: str, restarted: str) -> None:
    """suspended_concurrency_key/01 for RetryWait, section 5 number 4: kept until its next start, and by it."""
    line, wait = RESTING[how]

    story = play(f"submit a limits=k hold=retry_wait\nsubmit b limits=k priority=9\n{line}\n{restarted}")

    story.play(f"""
        expect a retry_wait
        expect b ready waits=KeyHeld
        executor main 0
        tick {wait}
        expect a ready waits=NoFreeSlot
        expect b ready
        {restarted}
        executor main 9
        expect a running
        expect b ready waits=KeyHeld
        finish a completed
        expect b running
    """)
    assert at_key(story, "k") == {"b"}


def test_a_run_that_holds_its_keys_still_waits_for_its_rate_and_its_pauses() -> None:
    story = play("""
        submit a limits=k rates=r:1/1m hold=retry_wait
        submit b limits=k
        finish a failed
        tick 10s
        expect a ready waits=RateLimited
        expect b ready waits=KeyHeld
        pause task a
        tick 1m
        expect a ready waits=Paused
        project
        crash
        restart
        expect a ready waits=Paused
        expect b ready waits=KeyHeld
        resume task a
        expect a running
    """)
    assert at_key(story, "k") == {"a"}


def test_a_run_that_never_started_holds_nothing() -> None:
    """Canceled or expired before its start: the holder of the key is left alone, and the next waiter comes."""
    story = play("""
        submit a limits=k
        submit b limits=k
        submit c limits=k expires=5s
        submit d limits=k delay=5s
        submit e limits=k
        cancel b
        cancel d
        tick 5s
        expect e ready waits=KeyHeld
    """)
    assert at_key(story, "k") == {"a"}
    assert story.run("c").is_terminal
    story.play("finish a completed\nstarted a e")


def test_a_retry_of_a_run_that_ended_takes_its_key_anew() -> None:
    play("""
        submit a limits=k hold=retry_wait attempts=1
        submit b limits=k
        finish a failed
        expect b running
        retry a as a2
        expect a2 ready waits=KeyHeld
        project
        crash
        restart
        expect a2 running
        expect b retry_wait
    """)


# --- capacities, several keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [1, 2, 5])
def test_exactly_as_many_as_the_capacity_run_at_once(capacity: int) -> None:
    story, chance = Story(slots=50), random.Random(capacity)
    needs = TaskOptions(limits=(KeyNeed("k", capacity),))
    story.submit(*[f"t{n}" for n in range(30)], options=needs, max_attempts=1)

    while story.state.runs:
        running = sorted(at_key(story, "k"))
        assert len(running) == min(capacity, len(story.state.runs))
        story.finish(chance.choice(running), chance.choice([Outcome.COMPLETED, Outcome.FAILED]))

    assert len(story.started) == 30


def test_a_run_goes_by_the_capacity_it_was_submitted_with() -> None:
    """Two runs hold the key when one of capacity 2 comes; that of capacity 1 waits until nobody holds it."""
    play("""
        submit a limits=k:2
        submit one limits=k:1 priority=9
        submit b limits=k:2
        submit c limits=k:3
        submit d limits=k:3
        expect one ready waits=KeyHeld
        expect d ready waits=KeyHeld
        finish a completed
        expect d running
        finish b completed
        finish c completed
        expect one ready
        finish d completed
        started a b c d one
    """)


def test_several_keys_are_taken_together_or_not_at_all() -> None:
    story = play("""
        submit a limits=x
        submit b limits=x,y
        submit c limits=y
        expect b ready waits=KeyHeld
        expect c running
        finish a completed
        expect b ready waits=KeyHeld
    """)
    assert at_key(story, "x") == set()
    assert story.reason("b") == KeyHeld("y", 1, 1, (story.run_id("c"),))
    story.play(
        "submit d limits=x\nexpect d running\nfinish c completed\nexpect b ready\nfinish d completed\nexpect b running"
    )


def test_two_runs_that_name_their_keys_in_opposite_order_do_not_block_each_other() -> None:
    play("""
        submit a limits=x,y hold=retry_wait
        submit b limits=y,x hold=retry_wait
        finish a failed
        expect b ready waits=KeyHeld
        tick 10s
        expect a running
        finish a completed
        expect b running
        finish b failed
        tick 10s
        finish b completed
        started a a b b
    """)


def test_a_capacity_set_from_outside_applies_instead_of_those_submitted() -> None:
    """For what-if questions: what would run with another capacity?"""
    story = Story(checked=False)  # what was submitted is not what holds
    story.play("submit a b c limits=k\nsubmit d limits=k:2")
    story.state.places.set_key_capacity("k", 3)
    story.settle()
    story.play("expect d running\nexpect b running\nexpect c ready waits=KeyHeld\nsubmit e limits=k:9\nexpect e ready")


# --- who is next ---------------------------------------------------------------------------------------------------


def test_the_waiters_of_a_key_come_first_ready_first_served_across_queues_and_handlers() -> None:
    play("""
        handler g
        submit a limits=k
        submit b limits=k queue=mail
        submit c limits=k handler=g
        submit d limits=k,more queue=mail
        submit e limits=k priority=5 handler=g
        submit f limits=k
        finish a completed
        finish e completed
        finish b completed
        finish c completed
        finish d completed
        started a e b c d f
    """)


def test_a_key_that_becomes_free_goes_past_a_waiter_that_something_else_blocks() -> None:
    """section 5 number 37: the wake-up of the best waiter is handed on."""
    play("""
        submit a limits=k
        submit b limits=k queue=mail priority=9
        submit c limits=k,y priority=8
        submit y limits=y
        submit d limits=k
        pause queue mail
        finish a completed
        expect b ready waits=Paused
        expect c ready
        expect d running
        resume queue mail
        finish d completed
        expect b running
    """)


def test_without_aging_a_stream_of_important_work_starves_the_rest() -> None:
    story = play("executor main 1\nsubmit x\nsubmit low")
    for n in range(8):
        story.play(f"submit high{n} priority=1\ntick 1s\nfinish {'x' if n == 0 else f'high{n - 1}'} completed")
    story.play("expect low ready")


@pytest.mark.parametrize("lanes", ["", "handler=g"], ids=["one lane", "two lanes"])
def test_under_aging_a_low_run_is_passed_by_only_so_many(lanes: str) -> None:
    """section 5 number 38: 2 s count as one priority; what comes 2 s later with one priority more is behind it."""
    story = play("aging 2s\nhandler g\nexecutor main 1\nsubmit x\nsubmit low")
    for n in range(3):
        story.play(f"submit high{n} priority=1 {lanes}\ntick 1s\nfinish {'x' if n == 0 else f'high{n - 1}'} completed")

    story.play("started x high0 high1 low\nexpect high2 ready")


def test_the_order_under_aging_is_by_when_a_run_became_ready_brought_forward_by_its_priority() -> None:
    """Exactly: a run of priority p that is ready since t goes as one of priority 0 that is ready since t - p * aging."""
    story = play("aging 10s\nexecutor main 0\nhandler g\nsubmit a0 priority=-1")
    story.play("""
        tick 1s
        submit b priority=1 handler=g
        tick 9s
        submit c
        submit d priority=2 queue=mail
        tick 5s
        submit e handler=g
        submit f priority=1
        project
        crash
        restart
        reprioritize a0 3
        executor main 1
    """)
    for name in ("a0", "d", "b", "f", "c"):
        story.play(f"finish {name} completed")
    story.play("started a0 d b f c e")


def test_aging_can_be_switched_on_and_off_while_runs_wait() -> None:
    story = play("executor main 0\nsubmit a\ntick 30s\nsubmit b priority=1\nsubmit c priority=2\nsubmit d priority=9")
    story.play("aging 10s\nexecutor main 1\nfinish d completed\nfinish a completed\naging 0s\nfinish c completed")
    story.play("started d a c b")


# --- rates ---------------------------------------------------------------------------------------------------------


def test_a_rate_lets_a_burst_start_and_then_one_each_interval() -> None:
    story = play("submit a b c d e rates=r:2/10s/3")
    story.play("started a b c\nexpect d ready waits=RateLimited")
    assert story.reason("d") == RateLimited("r", 2, 10 * SECOND, 3, to_datetime(START + 5 * SECOND))
    story.play("tick 4s\nstarted\ntick 1s\nstarted d\ntick 5s\nstarted e")


def test_a_bucket_fills_up_to_its_burst_and_no_further() -> None:
    play("submit a b rates=r:2/10s\ntick 1h\nsubmit c d e rates=r:2/10s\nstarted a b c d")


def test_retries_take_a_token_too_and_an_empty_bucket_holds_nothing_else_back() -> None:
    play("""
        submit a rates=r:1/1m
        submit b rates=other:1/1m
        submit c
        finish a failed
        tick 10s
        expect a ready waits=RateLimited
        submit d
        started a b c d
        tick 50s
        started a
    """)


def test_rates_survive_a_restart_and_are_forgotten_once_full() -> None:
    """Section 5 number 4, for rates: an engine that is started again does not start a burst again."""
    story = play(
        """
        submit a b c rates=r:1/10s
        finish a completed
        project
        crash
        tick 4s
        restart
        expect b ready waits=RateLimited
        tick 6s
        started a b
        finish b completed
        finish c completed
    """.replace("finish c completed", "tick 10s\nfinish c completed")
    )
    assert ("rate", "r") in story.tables.entries or story.state.dirty_entries
    story.play("tick 20s\nsubmit x\nproject")
    assert story.tables.entries == {}
    assert all(meter.tat <= story.now for meter in story.state.places.limits.meters.values())


def test_a_change_of_a_rate_goes_on_from_the_fill_of_its_key() -> None:
    """The instant until which a key is drawn ahead is one; each task judges it by the rate it came with."""
    play("""
        submit a b c rates=r:1/10s/3
        submit d rates=r:1/1s
        started a b c
        tick 29s
        started
        tick 1s
        started d
    """)


@given(
    count=st.integers(1, 5),
    per_s=st.integers(1, 20),
    burst=st.integers(1, 5),
    steps=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9_000_000), st.booleans()), min_size=1, max_size=12),
)
def test_never_more_than_the_burst_and_one_an_interval_start_in_any_window(
    count: int, per_s: int, burst: int, steps: list[tuple[int, int, bool]]
) -> None:
    """Also when the engine was started again in between; and never fewer than would be allowed."""
    rate = RateNeed("r", count, per_s * SECOND, burst)
    story = Story(checked=False, slots=1000)
    names: list[str] = []
    for submitted, wait_us, restarted in steps:
        new = [f"t{len(names) + n}" for n in range(submitted)]
        names += new
        story.submit(*new, options=TaskOptions(rates=(rate,)))
        if restarted:
            story.project()
            story.crash()
            story.restart()
        story.advance(wait_us)

    starts = [event.at for event in story.log if type(event).__name__ == "AttemptStarted"]
    for first, start in enumerate(starts):
        for last in range(first, len(starts)):
            assert last - first + 1 <= burst + (starts[last] - start) // rate.interval_us
    assert story.check(settled=True) == []


# --- handlers ------------------------------------------------------------------------------------------------------


def test_the_concurrency_of_a_handler_holds_across_queues() -> None:
    story = play("handler g concurrency=2\nsubmit a b handler=g\nsubmit c handler=g queue=mail\nsubmit d")
    assert story.reason("c") == NoFreeSlot("handler", "g", 2, 2, (story.run_id("a"), story.run_id("b")))
    story.play("expect d running\nfinish a failed\nexpect c running\ntick 10s\nexpect a ready waits=NoFreeSlot")


def test_the_concurrency_of_a_handler_can_change_while_it_runs() -> None:
    """Registered again, as after a reload: those that run count."""
    play("""
        submit a b c d
        handler h backoff=fixed:10s concurrency=1
        submit e f
        expect e ready waits=NoFreeSlot
        finish a completed
        finish b completed
        finish c completed
        expect e ready
        handler h backoff=fixed:10s concurrency=2
        expect e running
        expect f ready
        handler h backoff=fixed:10s
        expect f running
    """)


# --- pauses of one task --------------------------------------------------------------------------------------------


def test_a_paused_task_starts_nothing_and_its_neighbours_do() -> None:
    story = play("""
        executor main 0
        submit a b
        submit c delay=5s
        pause task a by=me
        pause task c
        executor main 9
        expect a ready waits=Paused
        expect b running
        tick 5s
        expect c scheduled waits=Paused place=held
    """)
    assert story.reason("a") == PausedReason("task", story.task_id("a").hex(), to_datetime(START), "me")
    story.play("resume task a\nresume task c\nexpect a running\nexpect c running")
    assert story.state.places.paused_tasks == {}


def test_what_runs_of_a_paused_task_goes_on_and_is_not_tried_again_before_it_is_resumed() -> None:
    story = play("""
        submit a limits=k
        submit b limits=k
        pause task a
        expect a running
        finish a failed
        expect b running
        tick 10s
        expect a retry_wait waits=Paused
        project
        crash
        restart
        tick 10s
        expect a retry_wait waits=Paused
        expect b running
        resume task a
        expect a ready waits=KeyHeld
        finish b completed
        expect a running
    """)
    assert story.state.pauses == {}


def test_the_pause_of_a_task_and_that_of_its_queue_are_lifted_apart() -> None:
    play("""
        submit a delay=5s queue=mail
        submit b delay=5s queue=mail
        pause task a
        pause queue mail
        tick 5s
        resume queue mail
        expect a scheduled waits=Paused
        expect b running
        pause queue mail
        resume task a
        expect a scheduled waits=Paused
        resume queue mail
        expect a running
    """)


def test_the_mark_goes_when_the_task_ends() -> None:
    story = play("submit a\npause task a\nfinish a completed\nproject")

    assert story.state.pauses == {}
    assert story.state.places.paused_tasks == {}
    story.play("crash\nrestart")
    assert story.state.pauses == {}


def test_pausing_twice_changes_nothing_and_what_is_not_there_cannot_be_paused() -> None:
    story = play("submit a\nsubmit b\nfinish b completed\nproject\npause task a")
    mark = dict(story.state.pauses)

    assert story.perform(Pause("task", story.task_id("a").hex())) is False
    assert isinstance(story.perform(Pause("task", fresh_id_bytes().hex())), UnknownTask)
    assert isinstance(story.perform(Resume("task", fresh_id_bytes().hex())), UnknownTask)
    assert isinstance(story.perform(Pause("task", story.task_id("b").hex())), AlreadyTerminal)
    assert story.perform(Resume("task", story.task_id("b").hex())) is False
    for name in ("", "zz", "é" * 32, story.task_id("a").hex().upper(), "0" * 31):
        assert isinstance(story.perform(Pause("task", name)), InvalidSubmission)
    assert story.state.pauses == mark


# --- what it costs -------------------------------------------------------------------------------------------------


class Wrapped(dict[Any, Any]):
    """A dict that counts what is looked up in it, and what it is walked through for."""

    touched = 0

    def __getitem__(self, key: Any) -> Any:
        Wrapped.touched += 1
        return super().__getitem__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        Wrapped.touched += 1
        return super().get(key, default)

    def __iter__(self) -> Any:
        Wrapped.touched += len(self)
        return super().__iter__()

    def values(self) -> Any:
        Wrapped.touched += len(self)
        return super().values()

    def items(self) -> Any:
        Wrapped.touched += len(self)
        return super().items()


def wrap(places: Places) -> None:
    """Put counting containers round everything that dispatch could walk through."""
    Wrapped.touched = 0
    for name in ("lanes", "queues", "executors", "bounds", "handlers", "paused_tasks"):
        setattr(places, name, Wrapped(getattr(places, name)))
    for name in ("keys", "meters", "buckets"):
        setattr(places.limits, name, Wrapped(getattr(places.limits, name)))
    for lane in places.lanes.values():
        lane.kin = Wrapped(lane.kin or {})
    for slots in places.all_slots():
        if slots.kind != "key":
            slots.running = Wrapped(slots.running)
    for key in places.limits.keys:
        shared = Wrapped(places.limits.keys[key].running)
        for twin in places.limits.twins(key):
            twin.running = shared
    Wrapped.touched = 0


def submit_each(
    story: Story, names: list[str], options_of: Callable[[str], TaskOptions], *, twice: bool = False
) -> None:
    """A task for each name with options of its own, in one commit; ``twice``: after one that is in its way."""
    items = []
    for name in names:
        options = options_of(name)
        items += [story.item(f"first-{name}", "h", options=options)] if twice else []
        items.append(story.item(name, "h", options=options, priority=5))
    story.perform(Submit(items))


def blocked_by_limits(what: str, count: int) -> Story:
    story = Story(checked=False, slots=30_000)
    names = [f"t{n}" for n in range(count)]
    match what:
        case "one key":
            story.submit("holder", options=TaskOptions(limits=(KeyNeed("k"),)))
            story.submit(*names, options=TaskOptions(limits=(KeyNeed("k"),)), priority=5)
        case "a key each":
            submit_each(story, names, lambda name: TaskOptions(limits=(KeyNeed(f"k-{name}"),)), twice=True)
        case "one key and one each":
            story.submit("holder", options=TaskOptions(limits=(KeyNeed("k"),)))
            submit_each(story, names, lambda name: TaskOptions(limits=(KeyNeed(f"k-{name}"), KeyNeed("k"))))
        case "one rate":
            story.submit("first", *names, options=TaskOptions(rates=(RateNeed("r", 1, 10**12, 1),)), priority=5)
        case _:
            rate = RateNeed("r", 1, 10**12, 1)
            submit_each(story, names, lambda name: TaskOptions(rates=(replace(rate, key=name),)), twice=True)
    return story


@pytest.mark.parametrize("what", ["one key", "a key each", "one key and one each", "one rate", "a rate each"])
def test_ten_thousand_limited_runs_cost_the_dispatch_of_an_unrelated_one_nothing(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SEMANTICS section 8, section 5 number 33: the same entries are touched as with none waiting."""
    touched = []
    for count in (0, 10_000):
        story = blocked_by_limits(what, count)
        story.submit("plain")
        story.finish("plain")
        wrap(story.state.places)
        with monkeypatch.context() as patched:
            counting = Counting(patched)
            story.submit("a", "b")
            story.finish("a", Outcome.FAILED)
            story.finish("b")
            story.advance(10 * SECOND)
            story.finish("a")
        touched.append((counting.touched, Wrapped.touched))
        story.state.dispose()

    assert touched[0] == touched[1]
    assert touched[0][1] > 0


def test_a_key_for_each_run_leaves_little_for_the_garbage_collector() -> None:
    story = Story(checked=False, slots=0)
    gc.collect()
    before = len(gc.get_objects())

    submit_each(story, [f"t{n}" for n in range(1_000)], lambda name: TaskOptions(limits=(KeyNeed(name),)))
    gc.collect()

    lanes = story.state.places.lane_count
    found = len(gc.get_objects()) - before - len(story.log)  # what the story itself keeps of each
    assert lanes >= 1_000
    assert found < 8 * 1_000
    assert not gc.is_tracked(story.run("t0").task.lane)


def test_keys_and_their_lanes_are_forgotten_with_the_last_task_that_needs_them() -> None:
    """A key for each customer must not grow the memory."""
    story = Story(checked=False)
    for n in range(600):
        options = TaskOptions(limits=(KeyNeed(f"k{n}"), KeyNeed("all", 3)), rates=(RateNeed(f"r{n}", 1, 1, 1),))
        story.submit(f"t{n}", options=options)
        story.finish(f"t{n}")
        story.now += 10

    places = story.state.places
    story.project()
    assert places.lane_count <= families_module.LANES_KEPT + 1
    assert len(places.limits.keys) <= families_module.LANES_KEPT + 1
    assert len(places.limits.buckets) <= families_module.LANES_KEPT
    assert len(places.limits.meters) <= families_module.LANES_KEPT
    assert story.check(settled=True) == []


def test_nothing_of_a_key_is_left_when_no_lane_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families_module, "LANES_KEPT", 0)
    story = play("""
        submit a limits=k,l:2 rates=r:5/1s hold=retry_wait
        submit b limits=k:3 rates=r:1/1s
        finish a failed
        tick 10s
        pause task a
        finish a completed
        finish b completed
        tick 1s
        submit x
        finish x completed
        project
    """)
    places, limits = story.state.places, story.state.places.limits
    assert (places.lanes, places.lane_count, limits.keys, limits.buckets, limits.meters) == ({}, 0, {}, {}, {})


def test_timers_of_a_bucket_do_not_pile_up() -> None:
    limits = Limits()
    bucket = limits.bucket(RateNeed("r", 1, 1_000, 1))
    bucket.waiting = [(0, 0, 0, None)]  # type: ignore[list-item]  # somebody
    for n in range(1_000):
        limits.take(bucket, n, {})
        limits.watch(bucket)

    assert len(limits.timers) < 100
    assert limits.next_timer() == 1_000_000


# --- what a submission may ask for ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"limits": (KeyNeed(""),)}, "limits[0]"),
        ({"limits": (KeyNeed("x" * 251),)}, "limits[0]"),
        ({"limits": (KeyNeed("a\n"),)}, "limits[0]"),
        ({"limits": (KeyNeed("a"), KeyNeed("a", 2))}, "limits[1]"),
        ({"limits": (KeyNeed("a", 0),)}, "limits[0].capacity"),
        ({"limits": (KeyNeed("a", True),)}, "limits[0].capacity"),
        ({"limits": tuple(KeyNeed(f"k{n}") for n in range(11))}, "limits"),
        ({"rates": (RateNeed("a", 0, 1, 1),)}, "rates[0].count"),
        ({"rates": (RateNeed("a", 1, 0, 1),)}, "rates[0].per"),
        ({"rates": (RateNeed("a", 1, 1, 0),)}, "rates[0].burst"),
        ({"rates": (RateNeed("a", 1, 1, 1), RateNeed("a", 2, 1, 1))}, "rates[1]"),
        ({"hold": ("running",)}, "hold"),
        ({"hold": ("retry_wait", "retry_wait")}, "hold"),
    ],
)
def test_what_cannot_be_needed_is_refused_with_its_field(options: dict[str, Any], field: str) -> None:
    """Also from other processes: what they validated there is validated here."""
    problems = {name for name, problem in option_problems(TaskOptions(**options)).items() if problem is not None}

    assert problems == {field}


def test_a_key_of_250_characters_and_ten_limits_are_taken() -> None:
    limits = tuple(KeyNeed("x" * 249 + str(n)) for n in range(10))
    rates = tuple(RateNeed(f"r{n}", 1, 1, 1) for n in range(10))

    story = Story()
    story.submit("a", options=TaskOptions(limits=limits, rates=rates))

    assert story.where("a") is Where.RUNNING
    assert len(story.state.places.limits.keys) == 10


def test_a_paused_task_whose_runs_hold_their_keys_knows_all_that_it_holds_back() -> None:
    """What a pause holds back does not keep a queue from being idle."""
    story = Story(slots=0)
    story.play("""
        executor main 2
        submit a limits=k:2 hold=retry_wait attempts=9
        finish a failed
    """)
    task = story.task_id("a").hex()
    story.play("""
        executor main 0
        tick 10s
        expect a ready
    """)  # it holds its key while it is in line
    story.perform(Pause("task", task))
    lane = story.run("a").task.lane

    assert lane.holding is not None
    assert story.state.places.paused_tasks == {bytes.fromhex(task): lane}
