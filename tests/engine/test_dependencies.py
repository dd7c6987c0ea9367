"""Dependencies in the engine: facts that change while they are looked up, and what must not be pruned."""

from __future__ import annotations

import pytest

from actionqueue.core.errors import Conflict, UnknownTask
from actionqueue.core.spec import Depends, OutputPlace, Submission
from actionqueue.core.state import COMPLETED, Outcome
from actionqueue.core.submission import RetryRun, Submit
from actionqueue.engine import lookups
from actionqueue.engine.work import Ended, Post
from tests.engine.rig import DAY, WriterRig, submission


def after(*items: Submission, outputs: tuple[OutputPlace, ...] = ()) -> Depends:
    return Depends(tuple(item.task_id for item in items), outputs=outputs)


def test_what_a_live_task_depends_on_is_not_pruned() -> None:
    rig = WriterRig()
    first = submission()
    rig.submit(first)
    rig.end()
    rig.now += DAY
    chosen = rig.choose()
    second = submission(delay_us=DAY, depends=after(first))
    rig.submit(second)

    told = rig.post_prune(chosen)
    rig.run()

    assert isinstance(told.reply, Conflict)
    assert first.task_id in rig.reader.tasks_by_id([first.task_id])
    rig.check()


def test_a_dependency_that_was_pruned_while_it_was_looked_up_is_unknown() -> None:
    rig = WriterRig()
    first = submission()
    rig.submit(first)
    rig.end()
    rig.now += DAY
    chosen = rig.choose()
    told = rig.post(Submit([submission(depends=after(first))]))
    rig.step()
    (post,) = _looking(rig)
    rig.post_prune(chosen)
    rig.read_facts(post)
    rig.step()
    rig.writer.post(post)
    rig.run()

    assert isinstance(told.reply, UnknownTask)
    rig.check()


def _looking(rig: WriterRig) -> list[Post]:
    turn = rig.take()
    rig.commit(turn)
    return rig.release(turn, look_up=False)


@pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.FAILED])
def test_a_dependency_that_ends_while_it_is_looked_up_is_looked_up_again(outcome: Outcome) -> None:
    rig = WriterRig()
    first = submission()
    rig.submit(first)
    second = submission(key="other", depends=after(first))
    told = rig.post(Submit([second]))  # its key is looked up
    rig.step()
    (post,) = _looking(rig)
    rig.read_facts(post)
    rig.end(outcome, terminal=True)
    rig.writer.post(post)
    rig.run()

    assert told.reply == [(second.task_id, second.run_id, True)]
    assert (second.run_id in rig.state.runs) == (outcome is Outcome.COMPLETED)
    rig.check()


def test_who_waits_for_a_task_is_told_when_another_one_ends_it() -> None:
    rig = WriterRig()
    first = submission()
    rig.submit(first)
    second = submission(depends=after(first))
    third = submission(depends=after(second))
    rig.submit(second)
    rig.submit(third)
    waiting = rig.await_task(third.task_id)
    rig.run()

    rig.end(Outcome.FAILED, terminal=True)

    assert isinstance(waiting.reply, Ended)
    assert waiting.reply.reason.startswith("dependency:")
    rig.check()


def test_a_result_is_there_for_a_task_that_starts_in_the_commit_of_that_result() -> None:
    rig = WriterRig()
    first = submission()
    rig.submit(first)
    second = submission(body=b'{"n":null}', depends=after(first, outputs=(OutputPlace(("n",), 0),)))
    rig.submit(second)

    rig.finish(Outcome.COMPLETED, body=b"41")
    rig.step()
    turn = rig.take()
    rig.commit(turn)

    (joining,) = turn.joining
    assert joining.lately[first.task_id][0] == first.run_id
    assert joining.assignment.task_id == second.task_id


def test_a_retry_finds_the_dependents_in_the_tables() -> None:
    rig = WriterRig()
    first = submission()
    rig.submit(first)
    second = submission(depends=after(first))
    rig.submit(second)
    rig.end(Outcome.FAILED, terminal=True)
    again = submission().run_id

    rig.post(RetryRun(first.run_id, again, with_dependents=True))
    rig.run()
    assert second.task_id in rig.state.unmet
    rig.end()
    rig.end()

    ended = lookups.ended(rig.reader, second.task_id)  # of the newest run, whatever its id is
    assert ended is not None
    assert ended.state == COMPLETED
    rig.check()
