"""The log as JSON lines: every event there and back, nothing of the application in a redacted one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import json
from msgspec.structs import replace

from actionqueue import ActionQueue, Retry, fixed
from actionqueue.core.check import check, fingerprint
from actionqueue.core.epochs import Declare
from actionqueue.core.errors import InvalidSubmission
from actionqueue.core.machine import Machine
from actionqueue.core.needs import KeyNeed
from actionqueue.core.rules import CronRule
from actionqueue.core.schedules import PutSchedule, Retire
from actionqueue.core.state import Declaration, State
from actionqueue.core.submission import TaskSubmitted
from actionqueue.export import export_lines, read_export
from actionqueue.store.codec import CHAIN_START, EVENTS_VERSION, encode_events
from actionqueue.store.port import Commit
from actionqueue.testing import Simulation
from actionqueue.testing.__main__ import main as command
from actionqueue.testing.faults import Disk
from actionqueue.testing.replay import feed
from actionqueue.testing.replay import replayed as replay
from actionqueue.verify import verify
from tests.core.random_stories import act_out, drawn
from tests.core.story import SECOND, Story, play
from tests.core.test_codec import EVENT_KINDS, one_of


class OneCommit:
    """A log of one commit."""

    def __init__(self, events: list[Any]) -> None:
        self._events = events

    def commits(self, after_seq: int) -> Iterator[Commit]:
        count = len(self._events)
        yield Commit(after_seq + 1, after_seq + count, 5, 1, EVENTS_VERSION, encode_events(self._events), CHAIN_START)


@given(st.lists(one_of(EVENT_KINDS), min_size=1, max_size=3))
def test_every_event_comes_back_as_it_was(events: list[Any]) -> None:
    lines = list(export_lines(OneCommit(events)))

    (commit,) = read_export(lines)
    assert list(commit.events) == events
    assert (commit.first_seq, commit.last_seq, commit.at, commit.epoch) == (1, len(events), 5, 1)


@pytest.fixture(scope="module")
def log() -> list[Any]:
    """Everything that can happen, some of it."""
    return act_out(drawn(3, 600)).log


def replayed(events: Iterable[Any]) -> State:
    machine = Machine()
    machine.replay(events)
    return machine.state


def read_back(lines: Iterable[str]) -> list[Any]:
    return [event for commit in read_export(lines) for event in commit.events]


def test_a_story_replays_from_its_export_to_the_same_state(log: list[Any]) -> None:
    assert fingerprint(replayed(read_back(export_lines(OneCommit(log))))) == fingerprint(replayed(log))


def test_a_redacted_export_replays_and_holds_no_text_of_the_application(log: list[Any]) -> None:
    lines = list(export_lines(OneCommit(log), redact=True))
    plain = list(export_lines(OneCommit(log)))

    state, whole = replayed(read_back(lines)), replayed(log)
    assert check(state) == []
    assert state.counts == whole.counts
    assert state.tasks.keys() == whole.tasks.keys()
    for text in ("missing", "mail", "ValueError: "):
        if any(f'"{text}"' in line for line in plain):
            assert not any(f'"{text}"' in line for line in lines)
    assert json.decode(lines[0])["redacted"] is True
    handlers = {event.handler for event in log if isinstance(event, TaskSubmitted)}
    tokens = re.findall(r'"event":"TaskSubmitted"[^}]*?"handler":"(~[0-9a-f]{8})"', lines[1])
    assert len(set(tokens)) == len(handlers), "equal texts have equal tokens"


def test_a_redacted_export_keeps_who_holds_which_key_and_tells_no_key() -> None:
    story = play("submit a limits=secret:2 hold=retry_wait\nsubmit b limits=secret:2\npause task b\nfinish a failed")
    story.perform(Declare([Declaration("h", limits=(KeyNeed("secret:{who}"),), defaults={"who": "acme"})]))

    lines = list(export_lines(OneCommit(story.log), redact=True))

    assert not any("secret" in line or "acme" in line for line in lines)
    state = replayed(read_back(lines))
    assert [set(slots.running) for slots in state.places.limits.keys.values()] == [{story.id("a"), story.id("b")}]
    assert list(state.pauses) == [("task", story.task_id("b").hex())]


def test_a_redacted_export_keeps_when_schedules_occur_and_tells_no_name() -> None:
    """Rules and origins survive, so that what is derived from the replayed state is what the store would derive."""
    story = Story()
    for name, origin in (("secret", "call"), ("h", "code")):
        rule = CronRule(
            "*/5 * * * * *", "Europe/Berlin", None, None, None, 0, "coalesce", 2 * SECOND, None, "cancel_running"
        )
        item = story.item(name, "h", rule=rule, content=b"c")
        item.schedule_name, item.schedule_origin = name, origin
        story.perform(Declare([Declaration("h")], [item]) if origin == "code" else PutSchedule(item))
    story.advance(17 * SECOND)
    story.perform(Retire("secret", "somebody"))

    lines = list(export_lines(OneCommit(story.log), redact=True))

    assert not any(f'"{text}"' in line for line in lines for text in ("secret", "somebody", "h"))
    state, schedules = replayed(read_back(lines)), story.state.schedules
    assert state.schedules.keys() == schedules.keys()
    (of_code,) = state.schedule_names.values()
    assert of_code.name == of_code.handler, "equal texts have equal tokens"
    for task_id, whole in schedules.items():
        found = state.schedules[task_id]
        assert (found.rule, found.origin, found.index, found.cursor) == (
            whole.rule, whole.origin, whole.index, whole.cursor,
        )  # fmt: skip
        assert (found.skipped, found.pending, found.over) == (whole.skipped, whole.pending, whole.over)


def test_an_export_fed_to_a_disk_is_a_sound_store(log: list[Any]) -> None:
    disk = Disk()

    machine = feed(disk, export_lines(OneCommit(log)))

    assert machine.state.counts == replayed(log).counts
    assert verify(disk.memory.reader(), name="the fed one").problems == ()


def test_a_part_of_a_log_cannot_be_fed(log: list[Any]) -> None:
    header, line = export_lines(OneCommit(log))

    with pytest.raises(ValueError, match="give all of it"):
        feed(Disk(), [header, line.replace('"first_seq":1,', '"first_seq":7,')])


def test_a_log_that_leads_to_what_cannot_be_is_told_with_the_commit() -> None:
    events = [event for event in act_out(drawn(3, 60)).log if isinstance(event, TaskSubmitted)]
    twice = [events[0], replace(events[0], task_id=events[1].task_id)]

    with pytest.raises(AssertionError, match="ends at sequence 2"):
        replay(export_lines(OneCommit(twice)))


@pytest.mark.parametrize("redact", [False, True])
def test_the_command_replays_an_exported_log(
    log: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], redact: bool
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(export_lines(OneCommit(log), redact=redact)))

    assert command(["--export", str(path)]) == 0

    assert capsys.readouterr().out.startswith(f"sound to sequence {len(log)}: ")


def test_a_simulation_goes_on_where_an_exported_log_ends() -> None:
    seen: list[str] = []
    queue = ActionQueue("jobs.db")

    @queue.task(name="greet", retry=Retry(max_attempts=3, backoff=fixed("10m")))
    def greet(name: str) -> None:
        seen.append(name)
        if len(seen) == 1:
            raise ValueError(name)

    with Simulation(queue) as sim:
        job = greet.submit("the real one")
        sim.run_until_idle()
        assert job.state() == "retry_wait"
        lines = list(export_lines(sim.disk.memory.reader()))
        then = sim.now

    with Simulation(queue, export=lines, stand_ins=lambda handler: {"name": f"instead, for {handler}"}) as sim:
        assert sim.now == then
        assert queue.get_run(job.run_id).state == "retry_wait"
        sim.advance("10m")
        assert queue.get_run(job.run_id).state == "completed"
        sim.check()
    assert seen == ["the real one", "instead, for greet"]


def test_two_redacted_exports_have_no_token_in_common(log: list[Any]) -> None:
    first, second = (set(re.findall("~[0-9a-f]{8}", "".join(export_lines(OneCommit(log), redact=True)))) for _ in "12")

    assert first
    assert not first & second


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2"),
        ('{"first_seq": 1}', "line 2"),
        ('{"first_seq":1,"last_seq":1,"at":0,"epoch":1,"events":[{"event":"Nonsense"}]}', "no event 'Nonsense'"),
        ('{"first_seq":1,"last_seq":1,"at":0,"epoch":1,"events":[{"event":"EngineOpened","at":1}]}', "line 2"),
        ("[]", "line 2"),
    ],
)
def test_a_line_that_is_none_of_an_export_is_named(line: str, said: str) -> None:
    with pytest.raises(InvalidSubmission, match=said):
        list(read_export(['{"actionqueue_export": 1}', line]))


@pytest.mark.parametrize("lines", [[], ["{}"], ["[]"], ['{"actionqueue_export": 2}']])
def test_what_has_no_header_of_ours_is_no_export(lines: list[str]) -> None:
    with pytest.raises(InvalidSubmission, match="header"):
        list(read_export(lines))


def test_an_export_of_an_empty_range_is_a_header(log: list[Any]) -> None:
    assert len(list(export_lines(OneCommit(log), since=10))) == 1
    assert len(list(export_lines(OneCommit(log), until=5))) == 1
    assert len(list(export_lines(OneCommit(log), since=5, until=6))) == 2
