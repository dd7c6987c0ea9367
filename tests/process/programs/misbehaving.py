"""Handlers that misbehave, each as a plain and as an async function; and an engine that runs them.

As a program: ``misbehaving.py STORE NAME EXECUTOR``, an engine until its handlers end it. Some never end: those of the
test's own process end when it sets ``RELEASE``, those of other processes with these. The plain ones are declared here,
where worker processes find them; ``declare`` puts them on the queue of a test.
"""

import asyncio
import ctypes
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from actionqueue import ActionQueue, Retry, Task, TerminalFailure, fixed

RELEASE = threading.Event()
RESULT_BYTES_MAX = 1_000

plain = ActionQueue(":memory:").task(executor="process", result_bytes_max=RESULT_BYTES_MAX)


class OddError(BaseException):
    """Not an Exception."""


@plain
def raises_exception() -> None:
    raise ValueError("as handlers do")


@plain
def raises_base_exception() -> None:
    raise OddError("not an Exception")


@plain
def raises_system_exit() -> None:
    sys.exit(3)


@plain
def raises_keyboard_interrupt() -> None:
    raise KeyboardInterrupt


@plain
def raises_terminal_failure() -> None:
    raise TerminalFailure("for good")


@plain
def returns_what_is_no_json() -> object:
    return object()


@plain
def returns_too_much() -> str:
    return "x" * (RESULT_BYTES_MAX + 1)


@plain
def exits_the_process() -> None:
    os._exit(7)


@plain
def crashes_the_process() -> None:
    ctypes.string_at(0)


@plain
def holds_the_interpreter() -> None:
    sum(range(10**15))  # one call of C code, which looks neither at signals nor at other threads


# --- those that do not end ---------------------------------------------------------------------------------------


@plain
def never_returns() -> None:
    RELEASE.wait()


@plain
def ignores_its_stop() -> None:
    while not RELEASE.is_set():
        try:
            RELEASE.wait()
        except BaseException:
            continue


@plain
def blocks_its_thread() -> None:
    RELEASE.wait()


async def never_returns_async() -> None:
    await asyncio.get_running_loop().create_future()


async def ignores_its_stop_async() -> None:
    while not RELEASE.is_set():
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            continue


async def blocks_its_thread_async() -> None:
    RELEASE.wait()


def _async(task: Task[Any, Any]) -> Callable[[], Awaitable[Any]]:
    async def handler() -> Any:
        return task()

    handler.__name__ = handler.__qualname__ = f"{task.name}_async"
    return handler


raises_exception_async = _async(raises_exception)
raises_base_exception_async = _async(raises_base_exception)
raises_system_exit_async = _async(raises_system_exit)
raises_keyboard_interrupt_async = _async(raises_keyboard_interrupt)
raises_terminal_failure_async = _async(raises_terminal_failure)
returns_what_is_no_json_async = _async(returns_what_is_no_json)
returns_too_much_async = _async(returns_too_much)
exits_the_process_async = _async(exits_the_process)
crashes_the_process_async = _async(crashes_the_process)


@plain
def behaves() -> str:
    """What shows that the slot is free again."""
    return "well"


async def behaves_async() -> str:
    """The same."""
    return "well"


def declare(
    queue: ActionQueue, name: str, executor: str, timeout: float | None = None
) -> tuple[Task[Any, Any], Task[Any, Any]]:
    """The misbehaving handler of that name on that executor, and one that behaves on the same."""
    suffix = "_async" if executor == "async" else ""
    options: dict[str, Any] = {
        "executor": executor,
        "retry": Retry(2, fixed(0.01)),
        "max_lost": 1,
        "result_bytes_max": RESULT_BYTES_MAX,
        "timeout": timeout,
    }
    module = sys.modules[__name__]
    bad = queue.task(**options)(getattr(module, name + suffix))
    good = queue.task(executor=executor)(getattr(module, "behaves" + suffix))  # type: ignore[call-overload]
    return bad, good


if __name__ == "__main__":
    from jobs import say

    own = ActionQueue(sys.argv[1], concurrency=1, threads=1, processes=1)
    bad, good = declare(own, sys.argv[2], sys.argv[3])
    with own.running():
        session = own.session
        assert session is not None
        say("engine")
        for line in sys.stdin:
            if line.strip() == "bad":
                bad.submit()
            elif line.strip() == "good":
                say("good", good.submit().result(timeout=30))
                break
