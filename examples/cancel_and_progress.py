"""Watching a long run and stopping it: progress, cancel, and what becomes of the rest.

python examples/cancel_and_progress.py
"""

import asyncio
import threading
import time

from actionqueue import CONTEXT, ActionQueue, Context, RunCanceled

queue = ActionQueue("jobs.db", stop_grace="5s")
cleaned_up = threading.Event()


@queue.task
def copy(files: int, *, ctx: Context = CONTEXT) -> int:
    """Plain code looks now and then whether it should stop; a thread cannot be stopped otherwise."""
    for done in range(files):
        ctx.check_canceled()
        ctx.progress(done, files, f"file {done}")
        time.sleep(0.01)
    return files


@queue.task
async def wait(seconds: float, *, ctx: Context = CONTEXT) -> None:
    """Async code is stopped at its next await, and may clean up."""
    try:
        ctx.progress(0)
        await asyncio.sleep(seconds)
    finally:
        cleaned_up.set()


if __name__ == "__main__":
    with queue.running():
        job = copy.submit(10_000)
        while (run := job.runs()[0]).progress is None:  # it is recorded with the next commit
            time.sleep(0.01)
        print("running:", run.state, "| of", run.progress.total)

        print("asked to stop:", job.cancel())
        try:
            job.result(timeout=10)
        except RunCanceled as error:
            print("ended:", error.reason)

        later = wait.options(delay="1h").submit(60)
        print("what waits is canceled at once:", queue.cancel_run(later.run_id), later.state())

        now = wait.submit(60)
        while now.runs()[0].progress is None:
            time.sleep(0.01)
        print("all that still live:", queue.cancel_runs(handler="wait"))
        print("cleaned up:", cleaned_up.wait(10))
        print("nothing is left:", queue.run_until_idle(timeout=10).runs["running"])
