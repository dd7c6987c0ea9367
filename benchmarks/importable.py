"""A handler that worker processes can import; a row declares it again on its own queue."""

from __future__ import annotations

from actionqueue import ActionQueue

nowhere = ActionQueue(":memory:")


@nowhere.task(executor="process")
def no_op(a: str) -> None: ...
