"""The FastAPI example, with two handlers added that nothing but their end can stop."""

import os
import threading
from typing import Any

from actionqueue import CONTEXT, Context
from examples.fastapi_app import app, queue

__all__ = ["app", "queue", "spin", "stick"]


@queue.task
def stick(*, ctx: Context = CONTEXT) -> None:
    """A thread that is stuck for ever."""
    ctx.progress(os.getpid())
    threading.Event().wait()


@queue.task(executor="process")
def spin(*, ctx: Context = CONTEXT) -> None:
    """A process in a loop of C code."""
    ctx.progress(os.getpid())
    sum(range(10**15))


@app.post("/misbehave", status_code=202)
async def misbehave() -> dict[str, Any]:
    """Start both."""
    return {"runs": [str((await task.asubmit()).run_id) for task in (stick, spin)]}


@app.get("/pid")
async def pid() -> dict[str, Any]:
    """Which process answers."""
    return {"pid": os.getpid()}
