"""What happens to a task that fails: it is tried again, or not, and every attempt is kept.

    python examples/retries.py

Three ways to fail: an error that may pass, an error that will not, and a service that says when to come back.
"""

from actionqueue import CONTEXT, ActionQueue, Context, Retry, RetryAfter, RunFailed, RunRecord, TerminalFailure, delays

queue = ActionQueue("jobs.db")


@queue.task(retry=Retry(max_attempts=4, backoff=delays("50ms", "100ms")))
def flaky(*, ctx: Context = CONTEXT) -> str:
    """Fails twice; with 4 attempts it gets there in the third, after 50 and 100 ms."""
    if ctx.attempt_number < 3:
        raise ConnectionError("the service cannot be reached")
    return f"done in attempt {ctx.attempt_number} of {ctx.max_attempts}"


@queue.task
def told_to_wait(*, ctx: Context = CONTEXT) -> str:
    """The service names the delay, so the backoff does not."""
    if ctx.attempt_number == 1:
        raise RetryAfter("200ms", "the service asked for a pause")
    return "done after the pause"


@queue.task(no_retry_on=(ValueError,))
def hopeless(text: str) -> int:
    """``int`` raises ``ValueError`` however often it is asked: that fails for good, as ``TerminalFailure`` does."""
    if not text:
        raise TerminalFailure("there is nothing to read")
    return int(text)


def story(run: RunRecord) -> str:
    """The attempts of a run in one line."""
    return ", ".join(f"{attempt.number}: {attempt.outcome}" for attempt in run.attempts)


if __name__ == "__main__":
    with queue.running():
        for job in (flaky.submit(), told_to_wait.submit()):
            print(job.result(timeout=10), "|", story(job.runs()[0]))

        failed = hopeless.submit_many([("twelve",), ("",)])
        for each in failed:
            try:
                each.result(timeout=10)
            except RunFailed as error:
                print(error.error_message, "|", story(each.runs()[0]))

        # A failed run stays failed. Retrying it makes a new run of the same task, linked to the old one.
        old = failed[0].run_id
        print("retried as a new run:", queue.get_run(queue.retry_run(old)).retry_of == old)
