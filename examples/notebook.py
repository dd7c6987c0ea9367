"""A queue in a notebook: a cell may be run again, with a changed function, while the engine runs.

    python examples/notebook.py

This file stands for the notebook: it runs the cell below twice, as Jupyter does, in one interactive namespace.
"""

CELL = """
from actionqueue import ActionQueue

try:
    queue.close()                # the engine of the last time this cell ran
except NameError:
    pass

queue = ActionQueue("jobs.db")
engine = queue.running()
engine.__enter__()               # runs until the next time, or until the kernel ends

@queue.task
def shout(text: str) -> str:
    return text.upper() + "!" * TIMES

print(shout.submit("hello").result(timeout=10))
"""


def main() -> None:
    """Run the cell twice; the second time its function does more."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for times in (1, 3):
        namespace["TIMES"] = times
        exec(compile(CELL, "<cell>", "exec"), namespace)
    exec("queue.close()", namespace)


if __name__ == "__main__":
    main()
