"""``actionqueue demo``: the standard library of this machine, indexed by a queue that is killed half way.

It is a program as users write them: the public API, handlers in a module (``jobs``), an engine in a process of its own
(``engine``), a client that submits and reads (``story``). It shows nothing that the queue does not do for everyone.
"""

from __future__ import annotations

from collections.abc import Sequence

STORE_VARIABLE = "ACTIONQUEUE_STORE"
"""The environment variable by which the demo's processes, and the command line after it, find the store."""


def main(argv: Sequence[str]) -> int:
    """Run the demo with these command line arguments.

    The exit code: 0 when everything it claims holds, 1 when something does not, 2 when there is nothing to index.
    """
    from actionqueue.demo.story import main as tell

    return tell(argv)


__all__ = ["STORE_VARIABLE", "main"]
