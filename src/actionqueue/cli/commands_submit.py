"""``submit``: a task by its handler's name, with what the handler declares where nothing is given."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

import msgspec

from actionqueue.app import ActionQueue
from actionqueue.by_name import submission_by_name
from actionqueue.cli.opening import exact_instant, existing_path, find_task_id, note_queued
from actionqueue.cli.render import print_json, stored
from actionqueue.cli.running import DONE, Misuse, note
from actionqueue.handle import TaskHandle

DECIDE_WAIT = "5s"
"""How long a submission with a key waits for an engine that is there."""


def submit(options: Namespace) -> int:
    """Submit, and with ``--wait`` print the result."""
    queue = _queue(options, DECIDE_WAIT)
    declarations = queue.declarations()
    declared = declarations.get(options.handler)
    item = submission_by_name(
        options.handler,
        _arguments(options.args),
        declared=declared,
        at=None if options.at is None else exact_instant(options.at, "--at"),
        delay=options.delay,
        queue=options.queue,
        priority=options.priority,
        max_attempts=options.max_attempts,
        expires=options.expires,
        idempotency_key=options.key,
        tags=options.tag,
        depends_on=[find_task_id(queue, each) for each in options.after],
        on_upstream_failure=options.on_upstream_failure,
    )
    if declared is None:
        known = ", ".join(sorted(declarations)) or "none"
        note(f"note: no engine has declared a handler {options.handler!r} here (but: {known}); it waits until one does")
    has_engine = queue.engine_holder() is not None
    if not has_engine:  # nobody decides whether the key is taken: do not wait for it
        queue = _queue(options, "0s")
    handle: TaskHandle[Any] = queue.submission_of_one(item, None).run()
    if options.wait is None:
        _tell(options, handle, {}, queued=not has_engine)
        note_queued(0 if has_engine else 1, queue.store)
        return DONE
    return _wait(options, queue, handle)


def _queue(options: Namespace, decide_wait: str) -> ActionQueue:
    queue = ActionQueue(existing_path(options), role="client", decide_wait=decide_wait)
    options.opened.append(queue)
    return queue


def _arguments(text: str) -> dict[str, Any]:
    if text == "-":
        text = sys.stdin.read()
    try:
        arguments = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise Misuse(f'--args: not JSON ({error}); give an object, such as \'{{"name": "world"}}\'') from None
    if not isinstance(arguments, dict):
        raise Misuse('--args: give an object with the arguments by name, such as \'{"name": "world"}\'')
    return arguments


def _tell(options: Namespace, handle: TaskHandle[Any], more: dict[str, Any], *, queued: bool) -> None:
    if options.json:
        ids = {"task_id": handle.id, "run_id": handle.run_id, "created": handle.created}
        print_json({**ids, "queued": queued, **more})
    elif handle.created is False:
        print(f"task {handle.id} was submitted before with this key; its first run is {handle.run_id}")
    else:
        print(f"task {handle.id}, run {handle.run_id}")


def _wait(options: Namespace, queue: ActionQueue, handle: TaskHandle[Any]) -> int:
    """The result of the task's newest run; a failure is an error of this command."""
    if queue.engine_holder() is None:
        note_queued(1, queue.store)
    body: bytes | None = handle.result(timeout=None if options.wait is True else options.wait)
    if options.json:
        _tell(options, handle, stored(body, "result"), queued=False)
    else:
        sys.stdout.write("null" if body is None else body.decode("utf-8", "backslashreplace"))
        sys.stdout.write("\n")
    return DONE
