"""A process with ``running()`` that stays: ``standby.py STORE [OPTIONS]``. Prints its role, again when that changes."""

import sys
import threading

from jobs import arguments, make_queue, say

path, options = arguments()
queue = make_queue(path, **options)


def watch_role() -> None:
    """Say "engine" or "client", whenever it becomes that."""
    told = None
    while True:
        session = queue.session
        role = None if session is None else "engine" if session.line.is_engine else "client"
        if role is not None and role != told:
            say(role)
            told = role
        threading.Event().wait(0.005)


with queue.running():
    threading.Thread(target=watch_role, daemon=True).start()
    for line in sys.stdin:
        if line.strip() == "submit":
            job = queue.handlers["whoami"].submit()
            say("submitted", str(job.id))
            say("result", job.result(timeout=30))
        elif line.strip() == "quit":
            break
say("stopped")
