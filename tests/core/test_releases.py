"""What explain names as the release releases, in states that nobody thought of; and every reason has one, or needs none."""

from __future__ import annotations

import typing
from collections import Counter
from datetime import timedelta
from types import UnionType

import pytest

from actionqueue.core.explain import Explanation, explain
from actionqueue.core.instants import to_datetime
from actionqueue.core.plain import parsed, plain
from actionqueue.core.reasons import (
    ArgumentsMisfit,
    AskRetry,
    Ended,
    HandlerMissing,
    InProgress,
    ItsTurn,
    Reason,
    RegisterHandler,
    TakesItsTurn,
    release_of,
)
from actionqueue.core.sentences import told
from tests.core.random_stories import drawn
from tests.core.releases import ask_through
from tests.core.story import play

REASONS = {kind.__name__ for kind in typing.get_args(Reason)}


def ask_in_stories(seeds: range) -> tuple[Counter[str], Counter[str]]:
    asked: Counter[str] = Counter()
    released: Counter[str] = Counter()
    for seed in seeds:
        story = ask_through(seed, drawn(seed, 60))
        asked += story.reasons
        released += story.released
        story.state.dispose()
    return asked, released


def in_table(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {counts[name]}" for name in sorted(REASONS))


@pytest.mark.slow
def test_what_is_named_as_the_release_releases_and_a_little_less_does_not() -> None:
    """Every reason there is, a hundred times at least, in states that nobody thought of."""
    asked, released = ask_in_stories(range(400))

    assert set(asked) == REASONS
    assert not [name for name in REASONS if asked[name] < 100], in_table(asked)
    assert not [name for name in REASONS - {"InProgress"} if released[name] < 100], in_table(released)


@pytest.mark.soak
def test_what_is_named_as_the_release_releases_in_many_more_stories() -> None:
    asked, released = ask_in_stories(range(1_000, 11_000))
    print(f"asked: {in_table(asked)}\nreleased: {in_table(released)}")


def test_every_reason_has_a_release_or_needs_none() -> None:
    assert isinstance(Reason, UnionType)
    needs_none = {Ended("completed", "completed", to_datetime(0)), InProgress(1, to_datetime(0), None)}
    assert [release_of(each) for each in needs_none] == [None, None]
    assert release_of(Ended("canceled", "expired", to_datetime(0))) == AskRetry()
    assert release_of(ArgumentsMisfit("h")) == RegisterHandler("h", fitting=True)
    assert release_of(HandlerMissing("h")) == RegisterHandler("h", fitting=False)
    assert release_of(TakesItsTurn(None)) == ItsTurn()


def test_instants_of_another_day_have_their_date() -> None:
    story = play("submit a delay=3s")
    found = explain(story.state, story.run("a"), story.now)

    tomorrow = parsed(plain(found) | {"at": plain(found.at + timedelta(days=1))}, Explanation)

    assert "due at 2023-11-14 22:13:23Z" in told(tomorrow)
    assert found.headline == "due at 22:13:23Z"
