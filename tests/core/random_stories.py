"""Stories that nobody thought of: steps drawn by Hypothesis (or from a seed), and how each is acted out.

A step names runs by number, so that any list of steps makes sense, also after Hypothesis has left some out: the number
picks from the runs that the step can be about, and a step that finds none is skipped.
"""

from __future__ import annotations

import random
from typing import Any

from hypothesis import strategies as st
from msgspec.structs import replace

from actionqueue.core.control import CancelRun, CancelTask, Pause, Reprioritize, Reschedule, Resume
from actionqueue.core.dependencies import AddDependencies
from actionqueue.core.epochs import Declare, FollowWall, Prune
from actionqueue.core.errors import ActionQueueError
from actionqueue.core.needs import KeyNeed, RateNeed
from actionqueue.core.reasons import Where
from actionqueue.core.retry import Delays
from actionqueue.core.rules import CronRule, RepeatRule, Rule
from actionqueue.core.schedules import AskBackfill, PutSchedule, Retire, Trigger
from actionqueue.core.spec import NO_OPTIONS, BatchHead, Depends, TaskOptions
from actionqueue.core.state import Declaration, ErrorInfo, Outcome, Output
from actionqueue.core.submission import RetryRun, Submit
from tests.core.story import SECOND, START, Story

Step = tuple[str, int, int]

KINDS = (
    "submit submit submit submit schedule schedule of_schedule"
    " finish finish finish finish finish wait wait signal signal step misfit progress cancel cancel_task retry retry"
    " depend reschedule reprioritize pause pause_task resume slots tick tick declare prune wall crash close project"
).split()

steps = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 30), st.integers(0, 30)), max_size=40)


def drawn(seed: int, count: int) -> list[Step]:
    """So many steps, from a seed."""
    chance = random.Random(seed)
    return [(chance.choice(KINDS), chance.randrange(31), chance.randrange(31)) for _ in range(count)]


def act_out(all_steps: list[Step], *, checked: bool = False, projecting: bool = True) -> Story:
    """A story with these steps. Without ``projecting`` nothing is written that no command needs."""
    story = Story(slots=3, checked=checked)
    for step in all_steps:
        act(story, step if projecting or step[0] != "project" else ("tick", 0, 0))
    return story


def act(story: Story, step: Step) -> None:
    """One step."""
    kind, which, how = step
    story.now += 1
    names = list(story.names)
    live = [name for name in names if story.id(name) in story.state.runs]
    running = [name for name in live if story.where(name) is Where.RUNNING]
    everyone = [*running, *names]
    among = {
        "finish": running,
        "misfit": running,
        "progress": running,
        "wait": running,
        "step": running,
        "retry": names,
        "cancel": everyone,
    }
    found = among.get(kind, live)
    name = found[which % len(found)] if found else None
    if kind in _ABOUT_NO_RUN:
        _ABOUT_NO_RUN[kind](story, which, how)
    elif name is not None:
        _ABOUT_A_RUN[kind](story, name, how)


# --- steps about no run --------------------------------------------------------------------------------------------


def _submit(story: Story, which: int, how: int) -> None:
    fields: dict[str, Any] = {
        "handler": ["h", "h", "g", "missing"][which % 4],
        "queue": ["default", "mail"][how % 2],
        "priority": which % 3 - 1,
        "max_attempts": 1 + how % 3,
        "delay_us": [None, None, 0, 3 * SECOND][how % 4],
    }
    if which % 5 == 0:
        fields |= {"expires_us": 4 * SECOND, "key": f"k{how % 4}", "content": b"x", "key_lifetime_us": 9 * SECOND}
    if which % 7 == 0:
        backoff = Delays((SECOND, 2 * SECOND))
        fields["options"] = TaskOptions(5 * SECOND, backoff, ("t", f"u{how}"), {"a": [1, None]}, "text")
    if which % 3 != 0:
        fields["options"] = replace(fields.get("options", NO_OPTIONS), **_needs(which, how))
    upstream = list(story.names.values())
    if upstream and (which + how) % 3 == 0:
        on = dict.fromkeys((upstream[-1 - which % min(8, len(upstream))][0], upstream[how % len(upstream)][0]))
        fields["depends"] = Depends(tuple(on), ["cancel", "run"][how % 2], which % 4 == 0)
    count, before = 1 + how % 2, dict(story.names)
    items = [story.item(f"r{len(before) + n}", **fields) for n in range(count)]
    head = BatchHead(story.next_id(story.now), "together") if how % 4 == 3 else None
    reply = story.perform(Submit(items, batch=head))
    if isinstance(reply, list):
        created = {run_id for _, run_id, new in reply if new}
        story.names = {name: ids for name, ids in story.names.items() if name in before or ids[1] in created}
    else:
        story.names = before


def _rule(which: int, how: int) -> Rule:
    misfire = ["catch_up", "coalesce", "skip"][which % 3]
    overlap = ["allow", "queue", "skip", "cancel_running"][how % 4]
    window = [None, 6 * SECOND][which % 2]
    if which % 2:
        every = [1, 3][how % 2] * SECOND
        return RepeatRule(
            1 + which, every, [None, story_start(how)][which % 5 == 0], misfire, 2 * SECOND, window, overlap
        )
    most, ends = [None, 1 + how][which % 4 == 0], [None, START + 60 * SECOND][which % 5 == 4]
    expression = ["* * * * * *", "*/3 * * * * *"][how % 2]
    jitter = [0, SECOND // 2][how % 3 == 2]
    return CronRule(expression, "Europe/Berlin", most, None, ends, jitter, misfire, 2 * SECOND, window, overlap)


def story_start(how: int) -> int:
    """An instant to begin at, before or after the present."""
    return START + (how - 4) * SECOND


def _schedule(story: Story, which: int, how: int) -> None:
    fields: dict[str, Any] = {
        "handler": ["h", "h", "g", "missing"][which % 4],
        "rule": _rule(which, how),
        "content": bytes([which, how]),
        "expires_us": [None, SECOND][how % 7 == 0],
    }
    name, before = f"r{len(story.names)}", dict(story.names)
    item = story.item(name, **fields)
    if which % 3 == 0:
        reply = story.perform(Submit([item]))
    elif which % 3 == 1:
        item.schedule_name, item.schedule_origin = f"s{how % 2}", "call"
        reply = story.perform(PutSchedule(item))
    else:
        item.schedule_name, item.schedule_origin = item.handler, "code"
        items = [item] if how % 4 else []
        reply = story.perform(Declare([Declaration(item.handler)], items))
    if isinstance(reply, ActionQueueError) or item.run_id not in story.seen:
        story.names = before


def _of_schedule(story: Story, which: int, how: int) -> None:
    known = sorted(story.state.schedules.values(), key=lambda each: each.task_id)
    if not known:
        return
    name = known[which % len(known)].name or known[which % len(known)].task_id.hex()
    if how % 3 == 0:
        story.perform(Trigger(name, story.next_id(story.now), f"t{how}"))
    elif how % 3 == 1:
        story.perform(AskBackfill(name, story.now - (how + 1) * SECOND, story.now - SECOND, f"b{how}"))
    else:
        story.perform(Retire(name, f"e{how}"))


def _needs(which: int, how: int) -> dict[str, Any]:
    """Keys that contradict each other in capacity, two at once in either order, rates, states to hold over."""
    one, other = KeyNeed("one", 1 + which % 2), KeyNeed("other", 1 + how % 3)
    slow, fast = RateNeed("slow", 1, 3 * SECOND, 1 + which % 2), RateNeed("fast", 3, SECOND, 3)
    return {
        "limits": [(one,), (one, other), (other, one), (other,), ()][how % 5],
        "rates": [(), (), (slow,), (slow, fast), (RateNeed("slow", 2, 3 * SECOND, 1),)][(which + how) % 5],
        "hold": [(), ("retry_wait",), ("retry_wait", "suspended"), ("awaiting",)][which % 4],
    }


def _pause(story: Story, which: int, how: int) -> None:
    scope = [("engine", ""), ("queue", "mail"), ("handler", "h"), ("queue", "default")][which % 4]
    story.perform(Pause(*scope, by=f"p{how}"))


def _resume(story: Story, which: int, how: int) -> None:
    for scope, name in list(story.state.pauses):
        story.perform(Resume(scope, name, f"r{which + how}"))


def _slots(story: Story, which: int, how: int) -> None:
    if which % 3 == 0:
        story.set_queue("mail", [None, 0, 1, 2][how % 4])
    elif which % 3 == 1:
        story.set_executor("main", how % 4)
    else:
        story.register("g", concurrency=[None, 1, 2, 3][how % 4])
    if how % 7 == 6:
        story.set_aging([0, SECOND, 5 * SECOND][which % 3])


def _prune(story: Story, which: int, how: int) -> None:
    if not story.checked:
        story.perform(Prune(0, 0, 0, 0, story.now - which * SECOND - how))


def _signal(story: Story, which: int, how: int) -> None:
    """Of two names, with two keys or none; some again under an id that was sent before, with the same content or not."""
    story.signals_max = story.machine.signals_max = [2, 100][which % 2]
    key = ["", " key=k", " key=l"][how % 3]
    id = f" id=s{which % 4}" if how % 5 == 0 else ""
    try:
        story.play(f"signal {['go', 'stop'][which % 2]}{key}{id} payload={which % 3}")
    except AssertionError as error:
        if "SignalConflict" not in str(error):
            raise


def _wall(story: Story, which: int, how: int) -> None:
    story.perform(FollowWall((which - 15) * [SECOND, 100 * SECOND][how % 2]))


def _crash(story: Story, which: int, how: int) -> None:
    story.crash()
    story.now += (which % 3) * SECOND + how
    story.restart()


def _close(story: Story, which: int, how: int) -> None:
    story.perform(Pause("engine", "", "drain"))
    for name, (_, run_id) in story.names.items():
        if run_id in story.state.runs and story.where(name) is Where.RUNNING:
            story.finish(name, Outcome.INTERRUPTED if which % 2 else Outcome.LOST, abandoned=not which % 2)
    story.restart()
    _resume(story, which, how)


_ABOUT_NO_RUN = {
    "submit": _submit,
    "schedule": _schedule,
    "of_schedule": _of_schedule,
    "pause": _pause,
    "resume": _resume,
    "slots": _slots,
    "prune": _prune,
    "crash": _crash,
    "signal": _signal,
    "wall": _wall,
    "close": _close,
    "tick": lambda story, which, how: story.advance((which % 8) * SECOND + how),
    "declare": lambda story, which, how: story.perform(
        Declare([Declaration("g", priority=which, max_attempts=1 + how)])
    ),
    "project": lambda story, *_: story.project(),
}


# --- steps about a run ---------------------------------------------------------------------------------------------


def _finish(story: Story, name: str, how: int) -> None:
    outcome = [
        Outcome.COMPLETED,
        Outcome.FAILED,
        Outcome.TIMED_OUT,
        Outcome.SNOOZED,
        Outcome.INTERRUPTED,
        Outcome.LOST,
        Outcome.CANCELED,
        Outcome.FAILED,
    ][how % 8]
    fields: dict[str, Any] = {
        "draw": how / 31,
        "terminal": how % 16 == 15,
        "delay_us": SECOND if how % 5 == 0 else None,
    }
    if outcome is Outcome.COMPLETED:
        fields["output"] = Output(bytes([how]) * 16, how)
    elif outcome is Outcome.FAILED:
        fields |= {
            "error": ErrorInfo("ValueError", f"m{how}", "trace", "f"),
            "reason": "worker_died" if how > 20 else "",
        }
    story.finish(name, outcome, **fields)


def _wait(story: Story, name: str, how: int) -> None:
    if how % 2 == 0:
        story.play(f"finish {name} sleeps for={how % 5 * 2}s")
    else:
        key = ["", " key=k", " key=l"][how % 3]
        limit = ["", " timeout=5s", " timeout=0s"][how % 7 % 3]
        story.play(f"finish {name} awaits signal={['go', 'stop'][how % 2]}{key}{limit}")


def _progress(story: Story, name: str, how: int) -> None:
    story.play(f"progress {name} {how}")


def _step(story: Story, name: str, how: int) -> None:
    story.play(f"step {name} st{how % 5}")


def _retry(story: Story, name: str, how: int) -> None:
    new, new_id = f"r{len(story.names)}", story.next_id(story.now)
    command = RetryRun(story.id(name), new_id, f"b{how}", with_dependents=how % 2 == 0, fresh=how % 4 == 3)
    reply = story.perform(command)
    if not isinstance(reply, ActionQueueError):
        story.names[new] = (story.task_id(name), new_id)


def _depend(story: Story, name: str, how: int) -> None:
    names = list(story.names)
    on = (story.task_id(names[how % len(names)]),)
    story.perform(AddDependencies(story.task_id(name), on, f"d{how}"))


_ABOUT_A_RUN = {
    "depend": _depend,
    "finish": _finish,
    "progress": _progress,
    "wait": _wait,
    "step": _step,
    "retry": _retry,
    "misfit": lambda story, name, _: story.play(f"finish {name} misfit"),
    "cancel": lambda story, name, how: story.perform(
        CancelRun(story.id(name), ["cancel", "kill", "abandon"][how % 3], f"c{how}")
    ),
    "cancel_task": lambda story, name, how: story.perform(
        CancelTask(story.task_id(name), ["cancel", "kill", "abandon"][how % 3], f"c{how}")
    ),
    "pause_task": lambda story, name, how: story.perform(Pause("task", story.task_id(name).hex(), f"p{how}")),
    "reschedule": lambda story, name, how: story.perform(Reschedule(story.id(name), story.now + how * SECOND)),
    "reprioritize": lambda story, name, how: story.perform(Reprioritize(story.id(name), how - 15)),
}
