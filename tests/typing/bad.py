"""What both type checkers must refuse: exactly the lines marked ``# error``. Checked by test_typing.py, never run."""

from __future__ import annotations

from datetime import datetime

from actionqueue import CONTEXT, ActionQueue, Context, Limit, Rate, Retry, RunRecord, TaskHandle

queue = ActionQueue("jobs.db")
ActionQueue()  # error
ActionQueue("jobs.db", role="boss")  # error
ActionQueue("jobs.db", thread=3)  # error


@queue.task
def hello(name: str, *, times: int = 1) -> str:
    return name * times


@queue.task(timeout="30s")
async def fetch(url: str, *, ctx: Context = CONTEXT) -> bytes:
    return url.encode()


# --- wrong arguments

hello.submit(3)  # error
hello.submit()  # error
hello.submit("a", "b")  # error
hello.submit("a", times="b")  # error
hello.submit("a", time=2)  # error
hello.bind(3)  # error
hello.bind()  # error
hello.bind("a", time=2)  # error
hello(3)  # error
fetch.submit(7)  # error
fetch.submit("a", ctx=7)  # error
fetch.options(priority=1).submit(7)  # error
fetch.options(priority=1).bind("a", "b")  # error

# --- wrong options

hello.options(5)  # error
hello.options(dealy="15m")  # error
hello.options(at="tomorrow")  # error
hello.options(priority="high")  # error
hello.options(retry=3)  # error
hello.options(tags=3)  # error
hello.options(metadata=["a"])  # error
queue.submit_many([hello])  # error
queue.submit_many([("a",)])  # error
hello.submit_many([3])  # error
hello.options(limits=["k"])  # error
hello.options(hold=["running"])  # error
Retry(max_attempts="3")  # error
Limit("k", "3")  # error
Limit(capacity=3)  # error
Rate("k", 10, "1s")  # error
Rate("k", count=10)  # error


@queue.task(retries=3)  # error
def wrong_option() -> None: ...


@queue.task(rate="10/s")  # error
def wrong_rate() -> None: ...


@queue.task(executor="fibre")  # error
def wrong_executor() -> None: ...


# --- wrong results


def results() -> None:
    number: int = hello.submit("a").result()  # error
    handle: TaskHandle[int] = hello.submit("a")  # error
    handles: list[TaskHandle[int]] = queue.submit_many([hello.bind("a")])  # error
    text: str = fetch.submit("a").result()  # error
    print(number, handle, handles, text)


async def awaited() -> None:
    handle: TaskHandle[bytes] = fetch.asubmit("a")  # error
    number: int = await (await hello.asubmit("a")).aresult()  # error
    await hello.asubmit(3)  # error
    print(handle, number)


# --- reading and controlling


def read() -> None:
    queue.runs(states="failed")  # error
    queue.runs(since="yesterday")  # error
    queue.runs(state=3)  # error
    queue.tasks(tag="billing")  # error
    queue.cancel_run(3)  # error
    queue.cancel_run(how="kill")  # error
    queue.cancel_run("018bcfe5", how="hard")  # error
    queue.pause(tenant="a")  # error
    queue.reprioritize("018bcfe5", "high")  # error
    queue.reschedule("018bcfe5", "15m")  # error
    queue.get_run("018bcfe5").sate  # error
    queue.run_until_idle(timeout=datetime.now)  # error


@queue.on_failure  # error
def wrong_hook(run: str) -> None: ...


def read_only(run: RunRecord) -> None:
    run.state = "completed"  # error
