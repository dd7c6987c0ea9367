"""The places at which a handler can be cut off: each await, each call of its context, and its return.

``Places`` counts them and, at the one it was told, ends the process: nothing that the handler does afterwards counts, and
nothing is said of it any more. An async handler that waits is left where it waits for good. A context call cannot be
left hanging: there the handler is ended by ``Died``, and its ``finally`` blocks run, as they would not in a real crash.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from actionqueue.core.attempts import Progress
from actionqueue.executors.port import Assignment, AttemptControl
from actionqueue.testing.faults import Died

_SEEN_OF_CONTROL = frozenset(("assignment", "canceled", "reason", "report_progress"))


class Places:
    """Counts the places that a handler passes, and kills at number ``kill_at`` (from 0; None: at none)."""

    def __init__(self, kill_at: int | None) -> None:
        self.kill_at = kill_at
        self.passed: list[str] = []
        self.killed_at: str | None = None
        self.left: list[Coroutine[Any, Any, Any]] = []
        """Where an async handler was left: kept, or else its ``finally`` blocks would run."""

    def pass_by(self, place: str) -> None:
        """The handler is at a place. Raises ``Died`` where it is to be killed, and ever after."""
        if self.killed_at is None:
            self.passed.append(place)
            if len(self.passed) - 1 == self.kill_at:
                self.killed_at = place
        if self.killed_at is not None:
            raise Died


class WatchedControl(AttemptControl):
    """A control that notices when the handler's context asks it something."""

    __slots__ = ("_places",)

    def __init__(self, assignment: Assignment, emit: Callable[[Progress], None] | None, places: Places) -> None:
        super().__init__(assignment, emit)
        self._places = places

    def __getattribute__(self, name: str) -> Any:
        if name in _SEEN_OF_CONTROL:
            caller = sys._getframe(1)  # noqa: SLF001 - which call of the context it is
            outer = caller.f_back
            is_outermost = outer is None or outer.f_globals.get("__name__") != "actionqueue.context"
            if caller.f_globals.get("__name__") == "actionqueue.context" and is_outermost:
                line = 0 if outer is None else outer.f_lineno
                object.__getattribute__(self, "_places").pass_by(f"ctx.{caller.f_code.co_name} at line {line}")
        return object.__getattribute__(self, name)


@types.coroutine
def watched(coroutine: Coroutine[Any, Any, Any], places: Places) -> Generator[Any, Any, Any]:
    """Run a handler's coroutine; where it is killed it is left, and never goes on."""
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            yielded = coroutine.send(value) if error is None else coroutine.throw(error)
        except StopIteration as end:
            places.pass_by("its return")
            return end.value
        try:
            places.pass_by(f"an await at line {_line_of(coroutine)}")
        except Died:
            places.left.append(coroutine)
            raise
        try:
            value, error = (yield yielded), None
        except BaseException as thrown:
            value, error = None, thrown


def _line_of(coroutine: Coroutine[Any, Any, Any]) -> int:
    frame = getattr(coroutine, "cr_frame", None)
    return 0 if frame is None else int(frame.f_lineno)
