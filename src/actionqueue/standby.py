"""Standing by: a client that becomes the engine when the holder of the store ends."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from pathlib import Path

from actionqueue.core.errors import ActionQueueError
from actionqueue.store.lock import read_holder

logger = logging.getLogger("actionqueue")

LOOK_S = 0.2
FAILED_LOOK_S_MAX = 5.0
"""How long it waits, at most, after a take-over that failed (a full disk, a damaged store)."""


class Standby:
    """Looks at the lock a few times a second and takes over when nobody holds it."""

    def __init__(self, store_path: Path, take_over: Callable[[], bool]) -> None:
        self._path = store_path
        self._take_over = take_over
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="actionqueue-standby", daemon=True)

    def start(self) -> None:
        """Begin looking."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; a take-over under way is finished first."""
        self._stopped.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(10.0)

    def _run(self) -> None:
        pause_s = LOOK_S
        while not self._stopped.wait(pause_s * random.uniform(0.75, 1.25)):
            try:
                if read_holder(self._path) is None and self._take_over():
                    return
                pause_s = LOOK_S
            except ActionQueueError as error:
                logger.warning("could not take the store over: %s; trying again", error)
                pause_s = min(2 * pause_s, FAILED_LOOK_S_MAX)
            except Exception:
                logger.exception("taking the store over failed; trying again")
                pause_s = min(2 * pause_s, FAILED_LOOK_S_MAX)
