"""Concurrency keys in the engine: who holds one, who waits, what gives it back, and who still holds it after a restart.

The original's gate is an object that tests ask to acquire and release; here a run takes its keys as an attempt of it
starts, so the scenarios are told by attempts that a hand ends one by one. The holder of a key is the run that runs.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from actionqueue import ActionQueue, Limit, Retry, TaskHandle, TerminalFailure, fixed
from actionqueue.executors.port import Assignment
from actionqueue.verify import verify
from tests.process.support import inspect, leftovers
from tests.scenarios.world import Hand, ManualClock, advance, look


class Jobs:
    """A queue whose runs are named by their argument, and the attempts that the hand was given."""

    def __init__(self, store: str | Path, hand: Hand, **options: Any) -> None:
        self.queue = ActionQueue(store, drain_timeout=0, stop_grace="10s")
        self.hand = hand
        self.handles: dict[str, TaskHandle[Any]] = {}
        self.attempts: dict[str, Assignment] = {}

        @self.queue.task(name="work", **({"retry": Retry(5, fixed("10s"))} | options))
        def work(name: str, key: str = "k") -> None:
            raise AssertionError("nobody runs this")

        self.work = self.queue.handlers["work"]

    def submit(self, name: str, key: str | None = "k", **options: Any) -> None:
        """One under a key, or under none."""
        needs: dict[str, Any] = {"limits": []} if key is None else {"concurrency_key": key}
        self.handles[name] = self.work.options(**(needs | options)).submit(name)
        look(self.queue)

    def started(self) -> list[str]:
        """Who has started since the last look, in order."""
        look(self.queue)
        names = []
        while self.hand.handed_over:
            attempt = self.hand.take()
            name = attempt.payload.decode().split('"')[3]
            self.attempts[name] = attempt
            names.append(name)
        return names

    def complete(self, name: str) -> list[str]:
        """It completes; who starts."""
        self.hand.returns(self.attempts.pop(name))
        return self.started()

    def fail(self, name: str, error: BaseException | None = None) -> list[str]:
        """It fails; who starts."""
        self.hand.raises(self.attempts.pop(name), error or ValueError("no"))
        return self.started()

    def states(self) -> dict[str, str | None]:
        """Of all."""
        return {name: handle.state() for name, handle in self.handles.items()}

    def holders(self, key: str) -> set[str]:
        """Who holds a key, as the engine knows it."""
        names = {handle.run_id.bytes: name for name, handle in self.handles.items()}

        def look_up(state: Any) -> set[str]:
            slots = state.places.limits.keys.get(key)
            return set() if slots is None else {names[run_id] for run_id in slots.running}

        return inspect(self.queue, look_up)

    def account(self) -> tuple[dict[str, int], int, bool]:
        """What every surface says of the same."""
        stats, report = self.queue.stats(), self.queue.audit()
        by_row = Counter(run.state for run in self.queue.runs())
        counts = {state: number for state, number in stats.runs.items() if number}
        assert counts == by_row
        assert report.is_consistent, str(report)
        return counts, stats.blocked, report.open == sum(counts.get(each, 0) for each in ("ready", "running"))


# --- one key -------------------------------------------------------------------------------------------------------


def test_under_one_key_the_second_run_does_not_start(store: str | Path, clock: ManualClock, hand: Hand) -> None:
    """concurrency_key/01, concurrency_same_key#1, #2, #6: and after a restart it still does not."""
    jobs = Jobs(store, hand)
    with jobs.queue.running():
        jobs.submit("1")
        jobs.submit("2")
        assert jobs.started() == ["1"]
        assert (jobs.states(), jobs.holders("k")) == ({"1": "running", "2": "ready"}, {"1"})
        assert jobs.account() == ({"running": 1, "ready": 1}, 1, True)
    hand.close(0)
    with jobs.queue.running():
        assert jobs.started() == ["2"], "the first was lost with its engine, and backs off"
        assert (jobs.states(), jobs.holders("k")) == ({"1": "retry_wait", "2": "running"}, {"2"})
        advance(jobs.queue, clock, "10s")
        assert (jobs.started(), jobs.states()["1"], jobs.holders("k")) == ([], "ready", {"2"})
        assert jobs.complete("2") == ["1"]
        assert jobs.complete("1") == []
        assert inspect(jobs.queue, leftovers) == []


@pytest.mark.parametrize("how", ["completed", "failed", "canceled"])
def test_each_end_gives_the_key_to_the_one_that_waits(
    store: str | Path, clock: ManualClock, hand: Hand, how: str
) -> None:
    """concurrency_key/03, /06, cancellation/03, concurrency_same_key#4, #7."""
    jobs = Jobs(store, hand)
    with jobs.queue.running():
        jobs.submit("1")
        jobs.submit("2")
        assert jobs.started() == ["1"]
        if how == "completed":
            assert jobs.complete("1") == ["2"]
        elif how == "failed":
            assert jobs.fail("1", TerminalFailure("for good")) == ["2"]
        else:
            assert jobs.handles["1"].cancel() == 1
            assert jobs.started() == [], "until its code has ended the key is held"
            assert jobs.fail("1") == ["2"]
        assert (jobs.states(), jobs.holders("k")) == ({"1": how, "2": "running"}, {"2"})
        assert jobs.account() == ({how: 1, "running": 1}, 0, True)
        assert jobs.complete("2") == []
        assert jobs.holders("k") == set()


def test_three_runs_pass_one_key_along(store: str | Path, clock: ManualClock, hand: Hand) -> None:
    """concurrency_same_key#9."""
    jobs = Jobs(store, hand)
    with jobs.queue.running():
        for name in "abc":
            jobs.submit(name)
        assert jobs.started() == ["a"]
        for name, following in (("a", ["b"]), ("b", ["c"]), ("c", [])):
            assert jobs.holders("k") == {name}
            assert jobs.complete(name) == following


def test_a_report_of_one_that_does_not_hold_the_key_gives_nothing_back(
    store: str | Path, clock: ManualClock, hand: Hand
) -> None:
    """concurrency_same_key#5: a late one, after the key went on, is refused and the holder keeps it."""
    jobs = Jobs(store, hand)
    with jobs.queue.running():
        for name in "abc":
            jobs.submit(name)
        assert jobs.started() == ["a"]
        late = jobs.attempts["a"]
        jobs.queue.cancel_run(jobs.handles["a"].run_id, how="abandon")
        assert jobs.started() == ["b"]
        hand.returns(late)
        assert (jobs.started(), jobs.holders("k")) == ([], {"b"})
        assert jobs.states() == {"a": "canceled", "b": "running", "c": "ready"}


def test_one_that_holds_its_key_already_starts_again_with_it(store: str | Path, clock: ManualClock, hand: Hand) -> None:
    """concurrency_same_key#3: nobody comes in between."""
    jobs = Jobs(store, hand, hold=["retry_wait"])
    with jobs.queue.running():
        jobs.submit("a")
        jobs.submit("b", priority=9)
        assert jobs.started() == ["a"]
        assert (jobs.fail("a"), jobs.holders("k")) == ([], {"a"})
        advance(jobs.queue, clock, "10s")
        assert (jobs.started(), jobs.holders("k")) == (["a"], {"a"})
        assert jobs.complete("a") == ["b"]


def test_runs_without_a_key_ask_for_none(store: str | Path, clock: ManualClock, hand: Hand) -> None:
    """concurrency_key/04, concurrency_same_key#8."""
    jobs = Jobs(store, hand)
    with jobs.queue.running():
        jobs.submit("keyed 1")
        jobs.submit("keyed 2")
        jobs.submit("none 1", None)
        jobs.submit("none 2", None)
        assert jobs.started() == ["keyed 1", "none 1", "none 2"]
        assert jobs.holders("k") == {"keyed 1"}
        assert jobs.account() == ({"running": 3, "ready": 1}, 1, True)


# --- several keys --------------------------------------------------------------------------------------------------


def test_runs_of_different_keys_do_not_meet(store: str | Path, clock: ManualClock, hand: Hand) -> None:
    """concurrency_key/02, concurrency_diff_key#1, #4 to #7: taking or freeing one changes nothing of the other."""
    jobs = Jobs(store, hand)
    with jobs.queue.running():
        jobs.submit("1", "a")
        assert (jobs.started(), jobs.holders("a"), jobs.holders("b")) == (["1"], {"1"}, set())
        jobs.submit("2", "b")
        assert (jobs.started(), jobs.holders("a"), jobs.holders("b")) == (["2"], {"1"}, {"2"})
        assert jobs.account() == ({"running": 2}, 0, True)
        assert jobs.complete("1") == []
        assert (jobs.holders("a"), jobs.holders("b")) == (set(), {"2"})


def test_one_run_holds_three_keys_and_gives_them_back_together(
    store: str | Path, clock: ManualClock, hand: Hand
) -> None:
    """concurrency_diff_key#2, #3: there is no giving back of one alone, and each freed one can be taken."""
    jobs = Jobs(store, hand)
    with jobs.queue.running():
        jobs.submit("all", None, limits=[Limit("x"), Limit("y"), Limit("z")])
        for key in "xyz":
            jobs.submit(key, key)
        assert jobs.started() == ["all"]
        assert [jobs.holders(key) for key in "xyz"] == [{"all"}] * 3
        assert jobs.complete("all") == ["x", "y", "z"]
        assert [jobs.holders(key) for key in "xyz"] == [{"x"}, {"y"}, {"z"}]


def test_five_runs_on_two_keys_take_turns(store: str | Path, clock: ManualClock, hand: Hand) -> None:
    """concurrency_diff_key#8: exclusion for each key, handed over in turn."""
    jobs = Jobs(store, hand)
    with jobs.queue.running():
        for name, key in (("a1", "a"), ("a2", "a"), ("b1", "b"), ("a3", "a"), ("b2", "b")):
            jobs.submit(name, key)
        assert jobs.started() == ["a1", "b1"]
        assert jobs.complete("b1") == ["b2"]
        assert jobs.complete("a1") == ["a2"]
        assert (jobs.holders("a"), jobs.holders("b")) == ({"a2"}, {"b2"})
        assert jobs.complete("a2") == ["a3"]
        assert jobs.complete("b2") == []


# --- held over a backoff, and over a restart -----------------------------------------------------------------------


@pytest.mark.parametrize("is_held", [True, False])
def test_over_a_backoff_a_rival_waits_or_runs_as_hold_says_also_after_restarts(
    path: Path, clock: ManualClock, hand: Hand, is_held: bool
) -> None:
    """Section 5 numbers 4 and 47: the gate is not empty at opening."""
    jobs = Jobs(path, hand, hold=["retry_wait"] if is_held else [])
    with jobs.queue.running():
        jobs.submit("first")
        assert jobs.started() == ["first"]
        assert jobs.fail("first") == []
    for _ in range(2):
        with jobs.queue.running():
            assert (jobs.states()["first"], jobs.holders("k")) == ("retry_wait", {"first"} if is_held else set())
    with jobs.queue.running():
        jobs.submit("rival", priority=100)
        assert jobs.started() == ([] if is_held else ["rival"])
        advance(jobs.queue, clock, "10s")
        assert jobs.started() == (["first"] if is_held else [])
        if is_held:
            assert jobs.complete("first") == ["rival"]
            assert jobs.complete("rival") == []
        else:
            assert jobs.complete("rival") == ["first"]
            assert jobs.complete("first") == []
        assert inspect(jobs.queue, leftovers) == []
    assert verify(path).ok


# --- order and fairness --------------------------------------------------------------------------------------------


def test_a_head_that_its_key_blocks_holds_back_nobody_and_has_its_turn_first(
    store: str | Path, clock: ManualClock, hand: Hand
) -> None:
    """Section 5 numbers 37 and 38: many runs on one key, free workers, and other work beside them."""
    jobs = Jobs(store, hand)
    with jobs.queue.running():
        jobs.submit("holder")
        assert jobs.started() == ["holder"]
        for n in range(20):
            jobs.submit(f"blocked {n}", priority=50 + n % 2)
        for n in range(3):
            jobs.submit(f"low {n}", None, priority=-5)
        assert jobs.started() == ["low 0", "low 1", "low 2"]
        assert jobs.queue.stats().blocked == 20
        order = jobs.complete("holder")
        while len(order) < 20:
            order += jobs.complete(order[-1])
        assert order == [f"blocked {n}" for n in (*range(1, 20, 2), *range(0, 20, 2))]
