"""Work that needs a processor of its own, in worker processes that are killed for real when they take too long.

    python examples/processes.py

Handlers for processes are functions of a module or of the main script; what runs the program stands under
``if __name__ == "__main__":``, since each worker process imports the file.
"""

import os

from actionqueue import CONTEXT, ActionQueue, Context, Retry, RunFailed

queue = ActionQueue("jobs.db", processes=2, stop_grace="2s")


@queue.task(executor="process")
def count_primes(below: int) -> tuple[int, int]:
    """How many primes there are, and which process counted them."""
    sieve = bytearray([1]) * below
    for n in range(2, int(below**0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, below, n)))
    return sum(sieve[2:]), os.getpid()


@queue.task(executor="process", timeout="500ms", retry=Retry(max_attempts=1))
def never_ends() -> int:
    """Stuck in C, where no exception reaches it: its process gets SIGTERM, then SIGKILL."""
    return sum(range(10**15))


@queue.task(executor="process", retry=Retry(max_attempts=2))
def dies(*, ctx: Context = CONTEXT) -> str:
    """A process that dies fails its attempt; the next one has a new process, and the engine does not notice."""
    if ctx.attempt_number == 1:
        os._exit(7)
    return f"still here, in attempt {ctx.attempt_number}"


if __name__ == "__main__":
    with queue.running():
        jobs = count_primes.submit_many([(below,) for below in (10_000, 100_000, 1_000_000)])
        counted = [job.result(timeout=60) for job in jobs]
        print("primes:", [primes for primes, _ in counted])
        print("counted in this process:", os.getpid() in {pid for _, pid in counted})

        try:
            never_ends.submit().result(timeout=60)
        except RunFailed as error:
            print("stopped:", error.reason)

        job = dies.submit()
        print(job.result(timeout=60))
        first = job.runs()[0].attempts[0]
        print("its first attempt:", first.outcome, "|", first.error and first.error.message)
