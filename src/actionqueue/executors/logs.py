"""Log records made inside a handler carry its run: ``run_id``, ``handler`` and ``attempt``, whatever logger they use.

A record factory is the only place that sees every record whatever loggers and handlers an application has; ours wraps the
one it finds, once, and adds nothing outside handlers.
"""

from __future__ import annotations

import logging
import uuid
from typing import Any

from actionqueue.executors.port import current_attempt

_MARK = "_actionqueue_factory"


def install() -> None:
    """Wrap the process's record factory; does nothing the second time."""
    wrapped = logging.getLogRecordFactory()
    if getattr(wrapped, _MARK, False):
        return

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = wrapped(*args, **kwargs)
        control = current_attempt.get()
        if control is not None:
            assignment = control.assignment
            record.run_id = str(uuid.UUID(bytes=assignment.run_id))
            record.handler = assignment.runnable.name
            record.attempt = assignment.attempt_number
        return record

    setattr(make, _MARK, True)
    logging.setLogRecordFactory(make)
