"""What the engine's threads do once in a million times, written down as a sequence of moves."""

from __future__ import annotations

import pytest

from actionqueue.core.control import CancelRun, CancelTask, Reprioritize
from actionqueue.core.epochs import Close
from actionqueue.core.errors import (
    ActionQueueError,
    AlreadyTerminal,
    Conflict,
    IdempotencyConflict,
    NotRetryable,
    StoreUnavailable,
    UnknownRun,
    UnknownTask,
)
from actionqueue.core.ids import RunId, fresh_id_bytes
from actionqueue.core.reasons import Where
from actionqueue.core.rules import RepeatRule
from actionqueue.core.run import RunState
from actionqueue.core.state import CANCELED, COMPLETED, FAILED, ErrorInfo, Outcome
from actionqueue.core.submission import RetryRun, Submit
from actionqueue.engine.work import Ended
from actionqueue.engine.writer import LOOK_UP_AGAIN_US, POSTS_PER_STEP_MAX, PROJECTION_DELAY_US
from tests.engine.rig import DAY, UNSETTLED, Told, WriterRig, submission
from tests.scenarios.world import SECOND

ERROR = ErrorInfo("E", "it failed")


def failed_once(key: str | None = None) -> tuple[WriterRig, bytes, bytes]:
    """A task whose only attempt failed, a month ago: (rig, task id, run id)."""
    rig = WriterRig()
    item = submission(key, max_attempts=1)
    rig.submit(item)
    rig.end(Outcome.FAILED, error=ERROR)
    rig.now += 31 * DAY
    return rig, item.task_id, item.run_id


def is_refused(told: Told, kind: type[ActionQueueError]) -> bool:
    return isinstance(told.reply, kind)


# --- pruning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retry_is_over", [False, True])
def test_a_retry_that_comes_between_choosing_and_pruning_keeps_its_task(retry_is_over: bool) -> None:
    rig, task_id, run_id = failed_once()
    retried = fresh_id_bytes()
    told = rig.post(RetryRun(run_id, retried))
    rig.run()
    assert told.reply == (task_id, retried)

    chosen = rig.choose()  # the retry runs, and no table says so: this is the task with one failed run
    assert [(row[0], row[8]) for row in chosen[1]] == [(task_id, 1)]
    if retry_is_over:
        rig.finish(Outcome.COMPLETED, body=b'"precious"')
    pruned = rig.post_prune(chosen)
    rig.run()

    assert is_refused(pruned, Conflict)
    if not retry_is_over:
        rig.finish(Outcome.COMPLETED, body=b'"precious"')
    rig.check()
    assert rig.reader.blobs([retried]) == {retried: b'"precious"'}
    assert (rig.state.counts[COMPLETED], rig.state.counts[FAILED], rig.state.tasks_total) == (1, 1, 1)


def test_a_retry_decided_between_choosing_and_pruning_keeps_its_task() -> None:
    """The other order: it is chosen first, and the retry ends before the prune is decided."""
    rig, task_id, run_id = failed_once()
    chosen = rig.choose()
    retried = fresh_id_bytes()
    told = rig.post(RetryRun(run_id, retried))
    rig.run()
    rig.end(body=b'"precious"')
    for _ in range(3):  # projections after which what ended would be forgotten, were nobody looking
        rig.submit(submission(delay_us=DAY))
        rig.writer.ask_projection()
        rig.run()

    pruned = rig.post_prune(chosen)
    rig.run()

    assert told.reply == (task_id, retried)
    assert is_refused(pruned, Conflict)
    rig.check()
    assert rig.reader.blobs([retried]) == {retried: b'"precious"'}


@pytest.mark.parametrize("first_is", ["in the same step", "on its way to the disk"])
def test_what_was_pruned_is_not_counted_off_twice(first_is: str) -> None:
    """Housekeeping gave up waiting for the first answer, on a slow disk."""
    rig, _, _ = failed_once()
    first, second = rig.choose(), rig.choose()
    one = rig.post_prune(first)
    if first_is == "in the same step":
        two = rig.post_prune(second)
    else:
        rig.step()
        turn = rig.take()
        rig.writer.count_lookup(-1)
        second = rig.choose()
        two = rig.post_prune(second)
        rig.step()
        rig.commit(turn)
        rig.release(turn)
    rig.run()

    assert one.reply is None
    assert is_refused(two, Conflict)
    assert (rig.state.counts[FAILED], rig.state.tasks_total) == (0, 0)
    rig.check()


@pytest.mark.parametrize("named_by", ["key", "task id"])
@pytest.mark.parametrize("projected", [False, True])
def test_a_submission_whose_task_was_pruned_before_it_was_decided_makes_a_new_one(
    named_by: str, projected: bool
) -> None:
    rig = WriterRig()
    chosen_id = {} if named_by == "key" else {"task_id": fresh_id_bytes(), "task_id_given": True}
    key = "k" if named_by == "key" else None
    body = b'{"same":1}'
    first = submission(key, body=body, **chosen_id)
    rig.submit(first)
    rig.end()
    rig.now += 31 * DAY

    again = submission(key, body=body, **chosen_id)
    told = rig.post(Submit([again]))
    rig.step()
    turn = rig.take()
    rig.commit(turn)
    (post,) = rig.release(turn, look_up=False)
    rig.read_facts(post)  # it finds the task …
    pruned = rig.post_prune(rig.choose())
    if projected:
        rig.writer.ask_projection()
    rig.run()
    assert pruned.reply is None
    assert rig.reader.tasks_by_id([first.task_id]) == {}  # … which is gone when
    rig.writer.post(post)  # it comes back
    rig.run()

    assert told.reply == [(again.task_id, again.run_id, True)]
    rig.end()
    rig.check()
    assert list(rig.reader.tasks_by_id([again.task_id])) == [again.task_id]
    assert rig.reader.blobs([again.task_id]) == {again.task_id: body}


def test_the_retry_of_a_run_that_was_pruned_before_it_was_decided_is_of_an_unknown_run() -> None:
    rig, _, run_id = failed_once()
    told = rig.post(RetryRun(run_id, fresh_id_bytes()))
    rig.step()
    turn = rig.take()
    rig.commit(turn)
    (post,) = rig.release(turn, look_up=False)
    rig.read_facts(post)
    rig.post_prune(rig.choose())
    rig.run()
    rig.writer.post(post)
    rig.run()

    assert is_refused(told, UnknownRun)
    assert not rig.state.runs
    rig.check()


def test_what_a_pruned_task_ended_with_is_not_told_of_a_new_task_with_its_id() -> None:
    rig = WriterRig()
    task_id = fresh_id_bytes()
    rig.submit(submission(task_id=task_id, task_id_given=True))
    rig.end(Outcome.FAILED, error=ERROR, terminal=True)
    rig.now += 31 * DAY
    rig.post_prune(rig.choose())
    rig.run()
    asked = rig.await_task(task_id)
    rig.run()
    assert asked.reply is None, "there is no such task"

    rig.submit(submission(task_id=task_id, task_id_given=True))
    rig.finish(Outcome.COMPLETED, body=b"1")
    rig.step()  # decided, and not yet durable
    asked = rig.await_task(task_id)
    rig.run()

    assert isinstance(asked.reply, Ended)
    assert (asked.reply.state, asked.reply.body) == (COMPLETED, b"1")
    rig.check()


# --- results of retries ------------------------------------------------------------------------------------------------


def test_a_result_asked_for_before_the_end_of_a_retry_is_durable_is_that_of_the_retry() -> None:
    rig, task_id, run_id = failed_once()
    retried = fresh_id_bytes()
    rig.post(RetryRun(run_id, retried))
    rig.run()
    rig.finish(Outcome.COMPLETED, body=b"2")
    rig.step()
    turn = rig.take()

    asked = rig.await_task(task_id)  # while the turn that ends the retry is being written
    rig.step()
    assert asked.reply is UNSETTLED, "nothing is told before it is durable"
    rig.commit(turn)
    rig.release(turn)
    rig.run()

    assert isinstance(asked.reply, Ended)
    assert (asked.reply.run_id, asked.reply.state, asked.reply.body) == (retried, COMPLETED, b"2")
    rig.check()


def test_whoever_waits_for_a_retry_is_told_its_end_when_that_is_durable() -> None:
    rig, task_id, run_id = failed_once()
    before = rig.await_task(task_id)
    rig.post(RetryRun(run_id, fresh_id_bytes()))
    rig.run()
    waiting = rig.await_task(task_id)
    rig.run()
    assert before.reply.state == FAILED
    assert waiting.reply is UNSETTLED

    rig.finish(Outcome.COMPLETED)
    rig.step()
    turn = rig.take()
    assert waiting.reply is UNSETTLED
    rig.commit(turn)
    rig.release(turn)

    assert waiting.reply.state == COMPLETED
    rig.check()


@pytest.mark.parametrize("end", [Outcome.COMPLETED, Outcome.FAILED])
def test_only_the_newest_run_of_a_chain_can_be_retried(end: Outcome) -> None:
    rig, _, run_id = failed_once()
    newest = fresh_id_bytes()
    rig.post(RetryRun(run_id, newest))
    rig.run()
    rig.end(end, terminal=True)

    told = rig.post(RetryRun(run_id, fresh_id_bytes()))
    rig.run()

    assert is_refused(told, NotRetryable)
    assert told.reply.by == RunId(bytes=newest)
    assert not rig.state.runs
    again = rig.post(RetryRun(newest, fresh_id_bytes()))
    rig.run()
    assert is_refused(again, NotRetryable) is (end is Outcome.COMPLETED)
    rig.check()


def test_a_second_retry_that_looked_up_before_the_first_had_ended_is_refused() -> None:
    """Both found the same failed run, newest of its chain; by the time the second is decided the first is over."""
    rig, task_id, run_id = failed_once()
    first, second = fresh_id_bytes(), fresh_id_bytes()
    told = [rig.post(RetryRun(run_id, each)) for each in (first, second)]
    rig.step()
    turn = rig.take()
    rig.commit(turn)
    one, two = rig.release(turn, look_up=False)
    rig.read_facts(one)
    rig.read_facts(two)
    rig.writer.post(one)
    rig.run()
    rig.end()
    rig.writer.post(two)
    rig.run()

    assert told[0].reply == (task_id, first)
    assert is_refused(told[1], NotRetryable)
    assert len(rig.started) == 2
    rig.check()


# --- look-ups ----------------------------------------------------------------------------------------------------------


def fail(post: object) -> None:
    """What the look-up thread makes of a reader that cannot answer at this moment."""
    post.as_of, post.failure = 0, StoreUnavailable("locked by another process", cause="busy")  # type: ignore[attr-defined]


def test_a_look_up_that_fails_for_the_moment_refuses_no_command_of_the_inbox() -> None:
    rig = WriterRig()
    item = submission("k")
    told = rig.post(Submit([item]), command_id=b"c" * 16)
    rig.step()
    turn = rig.take()
    rig.commit(turn)
    (post,) = rig.release(turn, look_up=False)
    fail(post)
    rig.writer.post(post)
    rig.run()

    assert told.reply is UNSETTLED
    assert rig.reader.reply(b"c" * 16) is None, "what is recorded is final"
    assert not rig.writer.is_idle()
    rig.now += LOOK_UP_AGAIN_US
    rig.run()
    assert told.reply == [(item.task_id, item.run_id, True)]
    assert rig.reader.reply(b"c" * 16) is not None
    assert len(rig.started) == 1
    rig.end()
    rig.check()


def test_a_look_up_that_fails_is_not_made_again_at_once() -> None:
    """Each time costs a commit; while it fails that would be all the disk does."""
    rig = WriterRig()
    rig.post(Submit([submission("k")]), command_id=b"c" * 16)
    for _ in range(3):
        began = rig.now
        rig.step()
        turn = rig.take()
        rig.commit(turn)
        (post,) = rig.release(turn, look_up=False)
        fail(post)
        rig.writer.post(post)
        rig.run()
        assert rig.looked_up == 0
        assert not rig.writer.has_work()
        assert rig.writer.next_wake(committing=False) == began + LOOK_UP_AGAIN_US
        assert rig.writer.next_wake(committing=True) == began + LOOK_UP_AGAIN_US
        rig.now += LOOK_UP_AGAIN_US


@pytest.mark.parametrize("of", ["the task", "the run"])
def test_a_cancel_is_decided_after_the_submission_before_it_whose_look_up_fails(of: str) -> None:
    """Rows of one sender are decided in their order: it was acknowledged, and must not be unknown."""
    rig = WriterRig(slots=0)
    item = submission("k")
    submitted = rig.post(Submit([item]), command_id=b"c" * 16)
    cancel = CancelTask(item.task_id) if of == "the task" else CancelRun(item.run_id)
    canceled = rig.post(cancel, command_id=b"d" * 16)
    for _ in range(2):
        rig.step()
        turn = rig.take()
        rig.commit(turn)
        first, *others = rig.release(turn, look_up=False)
        assert isinstance(first.command, Submit)
        fail(first)
        rig.writer.post(first)
        for other in others:
            rig.look_up(other)
        rig.run()
        assert (submitted.reply, canceled.reply) == (UNSETTLED, UNSETTLED)
        rig.now += LOOK_UP_AGAIN_US
    rig.run()

    assert submitted.reply == [(item.task_id, item.run_id, True)]
    assert canceled.reply == 1
    assert rig.writer._coming == set()
    rig.check()


def test_a_cancel_of_what_a_refused_submission_would_have_made_is_of_something_unknown() -> None:
    rig = WriterRig(slots=0)
    item = submission("k")
    rig.submit(item)
    other = submission("k", content=b"d" * 16)
    refused = rig.post(Submit([other]), command_id=b"c" * 16)
    unknown = rig.post(CancelTask(other.task_id), command_id=b"d" * 16)
    rig.run()

    assert is_refused(refused, IdempotencyConflict)
    assert is_refused(unknown, UnknownTask)
    assert rig.writer._coming == set()


def test_whoever_waits_here_is_told_of_a_look_up_that_fails() -> None:
    rig = WriterRig()
    told = rig.post(Submit([submission("k")]))
    rig.step()
    turn = rig.take()
    rig.commit(turn)
    (post,) = rig.release(turn, look_up=False)
    fail(post)
    rig.writer.post(post)
    rig.run()

    assert is_refused(told, StoreUnavailable)
    rig.check()


def test_commands_about_what_has_left_memory_are_answered_from_the_tables() -> None:
    rig, task_id, run_id = failed_once()
    unknown = fresh_id_bytes()
    answers = [
        (rig.post(CancelRun(run_id)), AlreadyTerminal),
        (rig.post(Reprioritize(run_id, 1)), AlreadyTerminal),
        (rig.post(CancelRun(unknown)), UnknownRun),
        (rig.post(CancelTask(unknown)), UnknownTask),
    ]
    nothing = rig.post(CancelTask(task_id))
    rig.run()

    for told, kind in answers:
        assert is_refused(told, kind), told.reply
    assert nothing.reply == 0
    rig.check()


# --- when to step again ------------------------------------------------------------------------------------------------


def test_a_drain_that_begins_while_more_is_due_leaves_the_writer_nothing_to_do() -> None:
    rig = WriterRig(slots=1)
    told = rig.post(Submit([submission(delay_us=SECOND) for _ in range(4_500)]))
    rig.run()
    assert len(told.reply) == 4_500
    rig.now += 2 * SECOND
    rig.step()
    assert rig.writer.has_work(), "more is due than one step takes"

    rig.writer.draining = True
    rig.now += PROJECTION_DELAY_US
    rig.run()

    assert not rig.writer.has_work()
    assert rig.writer.next_wake(committing=False) is None, "nothing starts any more, so no timer matters"
    closed = rig.post(Close())
    rig.run()
    assert closed.reply is None


@pytest.mark.parametrize("committing", [False, True])
def test_an_engine_at_rest_has_nothing_to_wake_for(committing: bool) -> None:
    rig = WriterRig()
    rig.submit(submission())
    rig.end()
    rig.now += PROJECTION_DELAY_US
    rig.run()

    assert not rig.writer.has_work()
    assert rig.writer.next_wake(committing=committing) is None


def test_the_writer_wakes_for_the_first_instant_at_which_there_is_something_to_do() -> None:
    rig = WriterRig()
    rig.submit(submission(delay_us=5 * SECOND))
    rig.now += PROJECTION_DELAY_US
    rig.run()
    assert rig.writer.next_wake(committing=False) == rig.now - PROJECTION_DELAY_US + 5 * SECOND

    rig.writer.draining = True
    assert rig.writer.next_wake(committing=False) is None


def test_a_full_mailbox_is_emptied_in_steps() -> None:
    rig = WriterRig(slots=0)
    told = [rig.post(Submit([submission()])) for _ in range(2 * POSTS_PER_STEP_MAX + 1)]
    rig.step()
    assert rig.writer.has_work()
    rig.run()

    assert all(each.reply[0][2] for each in told)
    rig.check()


# --- arguments that do not fit -----------------------------------------------------------------------------------------


def test_what_an_attempt_of_the_old_handler_says_of_its_arguments_does_not_block_the_new_one() -> None:
    rig = WriterRig()
    item = submission()
    rig.submit(item)
    rig.register()  # new code, which the arguments fit

    rig.end(Outcome.INTERRUPTED, reason="arguments")

    assert len(rig.started) == 2, "it is tried again, by the new one"
    assert rig.state.runs[item.run_id].state is RunState.RUNNING
    rig.end(Outcome.INTERRUPTED, reason="arguments")
    assert rig.state.runs[item.run_id].where is Where.MISFIT, "which speaks for itself"
    rig.register()
    rig.run()
    rig.end()
    rig.check()


def test_whoever_waits_for_a_schedule_that_is_canceled_is_told_how_its_newest_run_ended() -> None:
    rig = WriterRig()
    item = submission(rule=RepeatRule(3, 3600 * SECOND, None, "catch_up", 60 * SECOND, None, "allow"))
    rig.submit(item)
    waiting = rig.await_task(item.task_id)
    rig.run()

    rig.finish(Outcome.COMPLETED)  # touched first
    rig.post(CancelTask(item.task_id))  # with the run that is ahead
    rig.run()

    assert isinstance(waiting.reply, Ended)
    assert rig.reader.runs_by_id([waiting.reply.run_id])[waiting.reply.run_id][4] == waiting.reply.state == CANCELED
    rig.check()
