"""``python -m actionqueue.demo.engine STORE``: the engine of the demo, in a process that can be killed.

It ends when the demo does, however that ends: its standard input is a pipe whose other end only the demo holds.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from actionqueue import StoreError
from actionqueue.demo import STORE_VARIABLE


def main(store: str) -> None:
    """Be the engine of that store until SIGTERM; why it cannot be goes to the log, in a sentence."""
    os.environ[STORE_VARIABLE] = store
    from actionqueue.demo.jobs import queue

    threading.Thread(target=_stop_with_the_demo, daemon=True).start()
    try:
        queue.run_forever()
    except StoreError as error:
        sys.exit(error.message)


def _stop_with_the_demo() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        continue
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1])
