"""The real engine in a simulated world: stories drawn from seeds, and what the simulator itself must be able to do."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actionqueue.core import attempts
from actionqueue.core.attempts import Finish
from actionqueue.core.lanes import Lane, Slots
from actionqueue.core.limits import Limits
from actionqueue.core.places import Places
from actionqueue.core.state import Run, State
from actionqueue.engine.committer import Committer
from actionqueue.engine.engine import Engine
from actionqueue.engine.inbox import InboxReader
from actionqueue.engine.work import Turn
from actionqueue.engine.writer import Writer
from actionqueue.testing.__main__ import main
from actionqueue.testing.coverage import REACHABLE, WAITING, missing, table
from actionqueue.testing.shrink import kind_of, shrunk
from actionqueue.testing.steps import drawn, from_text, to_text
from actionqueue.testing.stories import Told, tell
from actionqueue.testing.world import World

SEEDS = 60
"""Told in every run of the tests: as many as fit into a few seconds."""
TRIED = 60
"""Stories in which a defect must show."""


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, SEEDS, 10))
def test_no_story_shows_a_defect(first: int) -> None:
    for seed in range(first, first + 10):
        told = tell(seed)
        assert told.problems == [], f"python -m actionqueue.testing --seed {seed} --shrink"


@pytest.mark.soak
def test_a_thousand_stories_show_no_defect_and_reach_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "1000", "--from", "1000000"]) == 0, capsys.readouterr().out


@pytest.mark.slow
def test_a_story_is_as_long_and_as_eventful_as_it_is_said_to_be() -> None:
    stories = [tell(seed) for seed in range(1000, 1011)]
    assert sorted(told.commands for told in stories)[5] >= 200
    assert sorted(told.coverage["fault crash"] for told in stories)[5] >= 3
    assert all(told.coverage["fault clock_jump"] for told in stories)


# --- determinism --------------------------------------------------------------------------------------------------------


def test_a_seed_tells_the_same_story_to_the_byte() -> None:
    first, second = tell(5), tell(5)
    assert first.trace == second.trace
    assert len(first.trace) > 1_000
    assert first.trace != tell(6).trace


@pytest.mark.slow
def test_a_seed_tells_the_same_story_in_every_process() -> None:
    program = "from actionqueue.testing.stories import tell; import sys; sys.stdout.write(tell(5).trace)"
    traces = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert traces == {tell(5).trace}


# --- a story as text ----------------------------------------------------------------------------------------------------


def test_a_story_can_be_written_down_and_told_from_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = tell(3, drawn(3)[:20])
    text = to_text(told.seed, told.steps, told.notes[1:])
    assert from_text(text) == (3, told.steps)
    path = tmp_path / "story.txt"
    path.write_text(text)
    assert main(["--story", str(path)]) == 0
    assert capsys.readouterr().out == text


def test_a_line_that_is_no_step_is_refused() -> None:
    with pytest.raises(ValueError, match="not a step: 'explode 1 -'"):
        from_text("seed 1\nexplode 1 -\n")


def test_any_part_of_a_story_is_a_story() -> None:
    steps = drawn(8)
    for part in (steps[::2], steps[1::2], steps[60:], []):
        assert tell(8, part).problems == []


# --- what is reached ----------------------------------------------------------------------------------------------------


def test_what_is_reached_too_rarely_or_is_not_in_the_table_is_named() -> None:
    reached = tell(0).coverage
    reached["event Unheard"] = 1
    reached["place LANE"] = 99
    assert "place LANE: reached 99 times, not 100" in missing(reached, 1000)
    assert "event Unheard: reached, and not in the table" in missing(reached, 1000)
    assert not {*REACHABLE} & {*WAITING}
    assert "remote workers" in table(reached, 1)


# --- the simulator can fail -----------------------------------------------------------------------------------------------


def forget_fence(patch: pytest.MonkeyPatch) -> None:
    real = attempts.finish_event

    def finish_event(state: State, report: Finish, now: int) -> Any:
        run = state.runs.get(report.run_id)
        if run is not None and run.attempt is not None:
            report.attempt_id, report.fence = run.attempt.id, run.attempt.fence
        return real(state, report, now)

    patch.setattr(attempts, "finish_event", finish_event)


def forget_epoch(patch: pytest.MonkeyPatch) -> None:
    from actionqueue.testing.faults import FaultyStore

    def commit(self: FaultyStore, batch: Any) -> None:
        batch.epoch = self._memory.epoch
        batch.expected_seq = self._memory._tables.last_seq
        self._disk.commit(batch)

    patch.setattr(FaultyStore, "commit", commit)


def reply_before_commit(patch: pytest.MonkeyPatch) -> None:
    real = Committer.take

    def take(self: Committer, turn: Turn) -> None:
        settled, turn.settled = turn.settled, []
        for ticket, reply in settled:
            ticket.settle(reply)
        real(self, turn)

    patch.setattr(Committer, "take", take)


def never_release_a_slot(patch: pytest.MonkeyPatch) -> None:
    real = Places.leave_running

    def leave_running(self: Places, run: Run) -> None:
        queue = run.task.lane.queue
        real(self, run)
        queue.running[run.id_bytes] = run

    patch.setattr(Places, "leave_running", leave_running)


def ignore_a_full_queue(patch: pytest.MonkeyPatch) -> None:
    real = Places.guard

    def guard(self: Places, lane: Lane) -> Any:
        blocker = real(self, lane)
        return None if isinstance(blocker, Slots) and blocker.kind == "queue" else blocker

    patch.setattr(Places, "guard", guard)


def count_no_failures(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attempts, "_count", lambda run, outcome: None)


def decide_inbox_rows_twice(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(InboxReader, "_without_decided", lambda self, rows: rows)


def drop_wakeups(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Places, "wake", lambda self, slots: None)


def start_in_any_order(patch: pytest.MonkeyPatch) -> None:
    from actionqueue.core import places

    patch.setattr(places, "_turn", lambda run: (run.order,))
    real = Places.enter_lane

    def enter_lane(self: Places, run: Run) -> None:
        run._effective_priority = -run.priority
        real(self, run)
        run._effective_priority = run.priority

    patch.setattr(Places, "enter_lane", enter_lane)


def start_when_paused(patch: pytest.MonkeyPatch) -> None:
    real = Writer.step

    def step(self: Writer, now: int) -> None:
        places = self.machine.state.places
        held, places.engine_pause = places.engine_pause, None
        real(self, now)
        places.engine_pause = places.engine_pause or held

    patch.setattr(Writer, "step", step)


def ignore_a_held_key(patch: pytest.MonkeyPatch) -> None:
    real = Places.guard

    def guard(self: Places, lane: Lane) -> Any:
        blocker = real(self, lane)
        return None if isinstance(blocker, Slots) and blocker.kind == "key" else blocker

    patch.setattr(Places, "guard", guard)


def take_no_tokens(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Limits, "take", lambda self, bucket, now, entries: None)


def let_go_over_a_rest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attempts, "holds_keys", lambda run: False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "defect",
    [
        forget_fence,
        forget_epoch,
        reply_before_commit,
        never_release_a_slot,
        ignore_a_full_queue,
        count_no_failures,
        decide_inbox_rows_twice,
        drop_wakeups,
        start_in_any_order,
        start_when_paused,
        ignore_a_held_key,
        take_no_tokens,
        let_go_over_a_rest,
    ],
)
def test_a_defect_shows(defect: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        defect(patch)
        assert any(tell(seed).problems for seed in range(TRIED))


@pytest.mark.slow
def test_a_failing_story_is_cut_down_to_a_few_steps_that_fail_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        ignore_a_full_queue(patch)
        told = next(told for seed in range(TRIED) if (told := tell(seed)).problems)
        short = shrunk(told)
        assert kind_of(short.problems[0]) == kind_of(told.problems[0])
        assert len(short.steps) <= 8
        again = tell(*from_text(to_text(short.seed, short.steps)))
        assert again.problems == short.problems


def test_a_failing_seed_is_printed_with_the_command_that_tells_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Told(4, [], [], ["something does not hold"], tell(0, []).coverage, 0)
    monkeypatch.setattr("actionqueue.testing.__main__.tell", lambda seed: told)
    assert main(["--seeds", "1", "--from", "4", "--quiet"]) == 1
    assert "python -m actionqueue.testing --seed 4\n" in capsys.readouterr().out


def test_a_story_that_was_told_leaves_nothing_in_memory() -> None:
    """Twenty thousand are told in a row; a structure that hides from the collector would keep each of them whole."""

    def there() -> int:
        gc.collect()
        return sum(isinstance(each, World | Engine | State) for each in gc.get_objects())

    before = there()
    tell(5)

    assert there() <= before
