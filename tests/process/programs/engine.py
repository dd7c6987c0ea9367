"""An engine until SIGTERM: ``engine.py STORE [OPTIONS]``. Prints "engine" when it is one, "stopped" at the end."""

import threading

from jobs import arguments, make_queue, say

path, options = arguments()
wait = options.pop("wait_for_store", False)
queue = make_queue(path, **options)


def announce() -> None:
    """Say when the engine answers."""
    while True:
        session = queue.session
        if session is not None and session.engine is not None:
            queue.stats()
            say("engine")
            return
        threading.Event().wait(0.005)


threading.Thread(target=announce, daemon=True).start()
queue.run_forever(wait_for_store=wait)
say("stopped")
