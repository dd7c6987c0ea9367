"""What is limited, and how far each limit is used up."""

from __future__ import annotations

from actionqueue.core.instants import to_datetime
from actionqueue.core.plain import plain
from actionqueue.core.usage import LimitRecord, ListLimits, limits_of
from tests.core.story import SECOND, START, Story, play


def listed(story: Story, **wanted: object) -> list[LimitRecord]:
    return limits_of(story.state, story.now, ListLimits(**wanted))  # type: ignore[arg-type]


def test_limits_say_who_holds_them_and_how_many_wait() -> None:
    story = play("queue mail 2\nhandler g concurrency=1\nsubmit a b c limits=k:1\nsubmit d handler=g queue=mail")

    found = {(each.kind, each.name): each for each in listed(story)}

    assert next(iter(found)) == ("key", "k"), "what is waited for most comes first"
    assert found["key", "k"] == LimitRecord(
        kind="key", name="k", capacity=1, taken=1, holders=(story.run_id("a"),), waiting=2
    )
    assert found["queue", "mail"].holders == found["handler", "g"].holders == (story.run_id("d"),)
    assert found["executor", "main"].taken == 2
    assert ("queue", "default") not in found, "it has no bound"


def test_a_rate_tells_the_tokens_left_or_when_there_is_one() -> None:
    story = play("submit a rates=r:2/10s/3")
    assert [(each.tokens, each.next_at) for each in listed(story, kind="rate")] == [(2, None)]

    story.play("submit b c d e rates=r:2/10s/3")

    (rate,) = listed(story, kind="rate")
    assert (rate.tokens, rate.next_at, rate.waiting) == (0, to_datetime(START + 5 * SECOND), 2)
    story.play("tick 4s")
    assert listed(story, kind="rate")[0].tokens == 0


def test_limits_are_picked_by_kind_and_name_and_bounded_in_number() -> None:
    story = play("submit a limits=k,l\nsubmit b limits=m")

    assert [each.name for each in listed(story, kind="key", name="l")] == ["l"]
    assert len(listed(story, kind="key", most=2)) == 2
    assert story.perform(ListLimits("key", "m")) == plain(listed(story, kind="key", name="m"))
