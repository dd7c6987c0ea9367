"""Handlers of worker processes that do steps and wait."""

from __future__ import annotations

import os
from typing import Any

from actionqueue import CONTEXT, ActionQueue, Context, Retry

queue = ActionQueue(os.environ.get("WAITING_STORE", "waiting.db"), processes=2)


@queue.task(executor="process")
def waits(n: int, *, ctx: Context = CONTEXT) -> list[Any]:
    """A step, a wait, a step."""
    first = ctx.step("first", lambda: n)
    got = ctx.receive("go")
    return [first, got.payload, ctx.step("last", lambda: n)]


@queue.task(executor="process", retry=Retry(max_attempts=1))
def too_large(*, ctx: Context = CONTEXT) -> None:
    """A step whose result is more than may be recorded."""
    ctx.step("big", lambda: "x" * (2 * 1024 * 1024))
