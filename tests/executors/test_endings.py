"""What is told of an exception: bounded, useful, and never an exception itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from actionqueue.core.attempts import Progress
from actionqueue.core.state import ErrorInfo
from actionqueue.executors.endings import (
    ERROR_KIND_CHARACTERS_MAX,
    ERROR_MESSAGE_CHARACTERS_MAX,
    TRACEBACK_CHARACTERS_MAX,
    describe,
)
from actionqueue.executors.port import Assignment, AttemptControl


def described(raises: Callable[[], object]) -> ErrorInfo:
    try:
        raises()
    except BaseException as error:
        return describe(error)
    raise AssertionError("nothing was raised")


def divide() -> None:
    1 / 0


def fail_because_of() -> None:
    try:
        divide()
    except ZeroDivisionError as error:
        raise LookupError("no rate for that day") from error


def fail_in_groups() -> None:
    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(divide))
            group.create_task(asyncio.to_thread(fail_because_of))

    asyncio.run(both())


def test_the_traceback_tells_the_cause() -> None:
    info = described(fail_because_of)

    assert (info.kind, info.message) == ("LookupError", "no rate for that day")
    assert "ZeroDivisionError" in info.traceback
    assert "direct cause" in info.traceback
    assert info.traceback.rstrip().endswith("LookupError: no rate for that day")


def test_the_traceback_of_a_group_tells_its_members() -> None:
    info = described(fail_in_groups)

    assert info.kind == "ExceptionGroup"
    assert "in divide" in info.traceback


def test_failures_of_one_kind_at_one_place_have_one_fingerprint_and_others_have_not() -> None:
    first, second, other = described(divide), described(divide), described(fail_because_of)

    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != other.fingerprint


def raise_with(message: str, name: str = "Failure") -> Callable[[], object]:
    def raises() -> None:
        raise type(name, (Exception,), {})(message)

    return raises


def test_everything_is_bounded() -> None:
    info = described(raise_with("x" * 100_000, "Long" * 1_000))

    assert len(info.kind) == ERROR_KIND_CHARACTERS_MAX
    assert len(info.message) == ERROR_MESSAGE_CHARACTERS_MAX
    assert len(info.traceback) <= TRACEBACK_CHARACTERS_MAX


@pytest.mark.parametrize("message", ["\ud800", "\x00", "é\n"])
def test_odd_text_is_described(message: str) -> None:
    assert described(raise_with(message)).fingerprint


class Hostile(Exception):
    def __str__(self) -> str:
        raise ValueError("no")

    __repr__ = __str__


def raise_hostile() -> None:
    raise Hostile


def test_an_exception_that_cannot_be_printed_is_described() -> None:
    info = described(raise_hostile)

    assert info.kind.endswith("Hostile")
    assert "while printing the message" in info.message


@pytest.mark.parametrize(
    ("done", "total", "error"),
    [("50%", None, TypeError), (0.5, 1, TypeError), (1, 2.5, TypeError), (-1, 5, ValueError)],
)
def test_progress_that_could_not_be_stored_is_refused_where_it_is_reported(done: Any, total: Any, error: Any) -> None:
    told: list[Progress] = []
    control = AttemptControl(cast("Assignment", None), told.append)

    with pytest.raises(error):
        control.report_progress(done, total, "")

    assert told == []


def test_surrogates_in_a_message_can_be_stored() -> None:
    info = described(raise_with("file \udcff"))

    assert info.message.encode()
    assert info.traceback.encode()
