"""The first program: a function becomes a task, and its call is on disk before it runs.

    python examples/hello.py

Run it again: the store is still there, and `actionqueue runs --store jobs.db` lists what both programs did.
"""

from actionqueue import ActionQueue

queue = ActionQueue("jobs.db")


@queue.task
def hello(name: str) -> str:
    """Runs in a thread of the engine, which is this process while the ``with`` below lasts."""
    return f"hello {name}"


if __name__ == "__main__":
    with queue.running():
        print(hello.submit("world").result(timeout=10))
