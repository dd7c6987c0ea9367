"""Texts that UTF-8 cannot say (file names of another encoding, decoded by ``os.fsdecode``) stop no engine."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from actionqueue import CONTEXT, ActionQueue, ActionQueueError, Context, RunFailed, TaskSpec
from actionqueue.core.control import CancelRun, Pause, Reprioritize, Reschedule, Resume
from actionqueue.core.errors import InvalidSubmission
from actionqueue.core.spec import TaskConstraints, TaskMetadata
from actionqueue.core.submission import Submit
from actionqueue.store.codec import decode_reply, encode_command
from actionqueue.store.memory import MemoryStore
from tests.engine.rig import Rows, ask, commands_in, engine_on, reading, reply_of, send, submission, submit
from tests.process.support import PATIENCE_S, eventually
from tests.scenarios.world import Hand, engine_of

BAD = os.fsdecode(b"caf\xe9.csv")

Act = Callable[[ActionQueue, Any], object]


def make(store: str | Path = ":memory:") -> tuple[ActionQueue, Any]:
    queue = ActionQueue(store)

    @queue.task(name="echo")
    async def echo(value: Any = 0) -> Any:
        return value

    return queue, echo


def check_lives(queue: ActionQueue, echo: Any) -> None:
    assert engine_of(queue).fenced is None
    assert echo.submit(7).result(timeout=PATIENCE_S) == 7
    assert queue.stats().paused == ()


# --- what is refused --------------------------------------------------------------------------------------------------


def spec(**fields: Any) -> Act:
    return lambda queue, echo: queue.submit(TaskSpec(**({"handler": "echo", "payload": b"[]"} | fields)))


REFUSED: dict[str, Act] = {
    "an idempotency key": lambda queue, echo: echo.options(idempotency_key=BAD).submit(1),
    "a tag": lambda queue, echo: echo.options(tags=["fine", BAD]).submit(1),
    "a description": lambda queue, echo: echo.options(description=BAD).submit(1),
    "metadata": lambda queue, echo: echo.options(metadata={"file": BAD}).submit(1),
    "the name of metadata": lambda queue, echo: echo.options(metadata={BAD: 1}).submit(1),
    "a queue": lambda queue, echo: echo.options(queue=BAD).submit(1),
    "an argument": lambda queue, echo: echo.submit(BAD),
    "one of many": lambda queue, echo: queue.submit_many([echo.bind(1), echo.options(tags=[BAD]).bind(2)]),
    "a spec's handler": spec(handler=BAD),
    "a spec's handler, with a key": spec(handler=BAD, idempotency_key="k"),
    "a spec's key": spec(idempotency_key=BAD),
    "a spec's queue": spec(constraints=TaskConstraints(queue=BAD)),
    "a spec's tag": spec(metadata=TaskMetadata(tags=(BAD,))),
    "a spec's description": spec(metadata=TaskMetadata(description=BAD)),
    "a spec's metadata": spec(metadata=TaskMetadata(extra={"file": BAD})),
    "a spec's content type": spec(content_type=BAD),
    "the queue to pause": lambda queue, echo: queue.pause(queue=BAD),
    "the handler to pause": lambda queue, echo: queue.pause(handler=BAD),
    "the queue to resume": lambda queue, echo: queue.resume(queue=BAD),
    "a handler's name": lambda queue, echo: queue.task(name=BAD)(_nothing),
    "a handler's queue": lambda queue, echo: queue.task(name="other", queue=BAD)(_nothing),
    "a handler's tag": lambda queue, echo: queue.task(name="other", tags=[BAD])(_nothing),
    "the name of a bounded queue": lambda queue, echo: ActionQueue(":memory:", queues={BAD: 1}),
}


def _nothing() -> None:
    return None


@pytest.mark.parametrize("what", REFUSED)
def test_half_a_surrogate_pair_is_refused_and_the_engine_goes_on(what: str) -> None:
    queue, echo = make()
    with queue.running():
        with pytest.raises(InvalidSubmission):
            REFUSED[what](queue, echo)
        check_lives(queue, echo)
        assert queue.stats().tasks == 1


@pytest.mark.parametrize(
    "what", ["an idempotency key", "a queue", "a spec's handler, with a key", "the queue to pause"]
)
def test_a_client_refuses_it_before_anything_is_sent(what: str, tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    queue, _ = make(path)
    with queue.running():
        client, sender = make(path)
        try:
            with pytest.raises(InvalidSubmission):
                REFUSED[what](client, sender)
            assert sender.submit(1).result(timeout=PATIENCE_S) == 1
        finally:
            client.close()
        assert list(queue.refusals()) == []


@pytest.mark.parametrize(
    "read",
    [
        lambda queue: queue.runs(handler=BAD),
        lambda queue: queue.runs(queue=BAD),
        lambda queue: queue.runs(tag=BAD),
        lambda queue: queue.runs(error=BAD),
        lambda queue: queue.tasks(key=BAD),
        lambda queue: queue.get_run(BAD),
    ],
)
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_to_look_for_it_finds_nothing_or_is_refused(
    read: Callable[[ActionQueue], Any], kind: str, tmp_path: Path
) -> None:
    queue, echo = make(":memory:" if kind == "memory" else tmp_path / "jobs.db")
    with queue.running():
        with suppress(ActionQueueError):
            assert not list(read(queue))
        check_lives(queue, echo)


@pytest.mark.parametrize("command", [Pause("queue", BAD, "me"), Resume("handler", BAD, "me")])
def test_the_core_refuses_a_scope_that_cannot_be_stored(command: Any) -> None:
    """Whoever sent it: the engine does not rely on its senders."""
    with engine_on(MemoryStore()) as engine:
        assert isinstance(reply_of(send(engine, command)), InvalidSubmission)
        submit(engine, submission(delay_us=3_600_000_000))


def test_a_command_whose_text_is_no_utf_8_is_refused_and_the_engine_goes_on() -> None:
    """Written into the inbox by something else than this package."""
    store, inbox, hand = MemoryStore(), Rows(), Hand()
    with engine_on(store, hand) as engine, reading(engine, inbox):
        command = encode_command(Submit([submission(handler="a handler's name")]))
        bad = inbox.put_body(command.replace(b"a handler's name", b"caf\xe9 is no UTF-8"[:16]))
        good = inbox.put(Submit([submission()]))
        hand.returns(hand.take())
        eventually(lambda: not commands_in(inbox), "both are decided")
        ask(engine, lambda state: None)
        for command_id, is_refused in ((bad, True), (good, False)):
            body = store.reader().reply(command_id)
            assert body is not None
            assert isinstance(decode_reply(body), ActionQueueError) is is_refused
        assert engine.fenced is None


def test_a_command_about_something_that_is_no_id_is_refused_and_the_engine_goes_on() -> None:
    """Written into the inbox by something else than this package."""
    store, inbox, hand = MemoryStore(), Rows(), Hand()
    with engine_on(store, hand) as engine, reading(engine, inbox):
        bad = [inbox.put(each) for each in (Reschedule(b"", 1), CancelRun(b"x" * 17), Reprioritize(b"r" * 16, 1, 77))]
        inbox.put(Submit([submission()]))
        hand.returns(hand.take())
        eventually(lambda: not commands_in(inbox), "all are decided")
        for command_id in bad:
            body = store.reader().reply(command_id)
            assert body is not None
            assert isinstance(decode_reply(body), ActionQueueError)
        assert engine.fenced is None


# --- what handlers say --------------------------------------------------------------------------------------------------


def raise_it(value: Any, ctx: Context) -> Any:
    raise ValueError(value)


def raise_a_class_of_that_name(value: Any, ctx: Context) -> Any:
    raise type(value, (Exception,), {"__module__": value})("it failed")


def return_it(value: Any, ctx: Context) -> Any:
    return [value, {value: value}]


def report_it(value: Any, ctx: Context) -> Any:
    ctx.progress(1, 2, value)
    return "done"


@pytest.mark.parametrize("executor", ["async", "thread"])
@pytest.mark.parametrize("say", [raise_it, raise_a_class_of_that_name, return_it, report_it])
def test_what_a_handler_says_in_such_texts_is_recorded_as_well_as_it_can_be(
    say: Callable[[Any, Context], Any], executor: str
) -> None:
    queue, echo = make()

    @queue.task(name="async", tags=["t"])
    async def in_loop(*, ctx: Context = CONTEXT) -> Any:
        return say(BAD, ctx)

    @queue.task(name="thread")
    def in_thread(*, ctx: Context = CONTEXT) -> Any:
        return say(BAD, ctx)

    with queue.running():
        job: Any = queue.handlers[executor]
        handle = job.options(retry=None).submit()
        if say is report_it:
            assert handle.result(timeout=PATIENCE_S) == "done"
        else:
            eventually(lambda: handle.runs()[0].attempts[0].finished_at is not None, "it has failed")
            attempt = handle.runs()[0].attempts[0]
            assert attempt.outcome == "failed"
            assert "\udce9" not in str(attempt)
        check_lives(queue, echo)


def test_a_result_that_cannot_be_encoded_fails_the_run_for_good() -> None:
    queue, _ = make()

    @queue.task
    async def name() -> str:
        return BAD

    with queue.running(), pytest.raises(RunFailed) as caught:
        name.submit().result(timeout=PATIENCE_S)
    assert caught.value.reason == "result_not_encodable"
