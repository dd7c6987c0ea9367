"""Dependencies as users write them: handles, ids and outputs, turned into what is submitted; and those added later.

Knows: the forms that a dependency may have. Must not know: what waiting for one means (``core/graph.py``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any
from uuid import UUID

from actionqueue.batching import BatchingOperating
from actionqueue.core.dependencies import AddDependencies
from actionqueue.core.errors import InvalidSubmission
from actionqueue.core.ids import TaskId
from actionqueue.core.spec import Depends
from actionqueue.operate import TaskKey, task_id_of
from actionqueue.operations import Operation, awaiting, blocking
from actionqueue.placeholder import Found, refusal

if TYPE_CHECKING:
    from actionqueue.handle import TaskHandle


def upstream_ids(given: Iterable[TaskHandle[Any] | TaskId | UUID | str]) -> tuple[bytes, ...]:
    """The ids of tasks given as handles or ids, each once; raises ``InvalidSubmission``."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        problem = "give a list of handles or task ids"
        raise InvalidSubmission(f"depends_on: {problem}", problems={"depends_on": problem})
    found: dict[bytes, None] = {}
    for each in given:
        task_id: Any = getattr(each, "id", each)
        found[TaskId.parse(task_id, field="depends_on").bytes] = None
    return tuple(found)


def chosen_depends(
    old: Depends | None,
    depends_on: Iterable[TaskHandle[Any] | TaskId | UUID | str] | None,
    on_failure: str | None,
    partial: bool | None,  # noqa: FBT001 - None leaves it as it was
) -> Depends | None:
    """What ``options`` chooses; what is None stays as it was. Without tasks it says how those in arguments count."""
    if depends_on is None and on_failure is None and partial is None:
        return old
    before = old or Depends(())
    if on_failure not in (None, "cancel", "run"):
        raise InvalidSubmission(
            "on_upstream_failure: give cancel or run", problems={"on_upstream_failure": "give cancel or run"}
        )
    return Depends(
        before.on if depends_on is None else upstream_ids(depends_on),
        on_failure or before.on_failure,
        before.partial if partial is None else bool(partial),
    )


def joined(chosen: Depends | None, found: Found, shown: Collection[str]) -> Depends:
    """``chosen`` and the tasks whose outputs are in the arguments. ``shown`` are the parameters that a key shows."""
    for name in found.names & set(shown):
        raise refusal(f"the argument {name}", "a key cannot show it")
    chosen = chosen or Depends(())
    on = tuple(dict.fromkeys((*found.on, *chosen.on)))  # those of outputs first: places count by their order
    return Depends(on, chosen.on_failure, chosen.partial, tuple(found.places))


class DependingOperating(BatchingOperating):
    """Adding dependencies to what has not started."""

    def _op_add_dependencies(
        self, task_id: TaskKey, depends_on: Iterable[TaskHandle[Any] | TaskId | UUID | str]
    ) -> Operation[int]:
        """Let a task that has not started wait for more tasks (handles or ids); how many of them are new to it.

        Where one of them does not complete, what the task was submitted with says what follows. Raises ``Conflict`` once
        it has started, ``DependencyCycle`` where they would wait for each other, ``AlreadyTerminal``, ``UnknownTask``,
        ``InvalidSubmission``.
        """
        command = AddDependencies(task_id_of(task_id), upstream_ids(depends_on), self.asker())
        return self._send(command, int)

    add_dependencies = blocking(_op_add_dependencies)
    aadd_dependencies = awaiting(_op_add_dependencies)
