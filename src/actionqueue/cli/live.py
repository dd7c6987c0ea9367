"""Drawing the same thing again and again: over itself on a terminal, one after another elsewhere."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

HOME_AND_CLEAR = "\x1b[H\x1b[J"
PAUSE_S = 0.1


def redraw(draw: Callable[[datetime], str], interval_s: float, frames: int | None) -> None:
    """Print what ``draw`` gives every ``interval_s`` seconds, ``frames`` times or (None) until interrupted.

    An interrupt is noted and looked at between two frames: raised in the middle of one it could be lost.
    """

    def show(drawn: int) -> None:
        _print_frame(draw(datetime.now(UTC)), frames, drawn)

    repeat(show, interval_s, frames)


def repeat(show: Callable[[int], None], interval_s: float, times: int | None) -> None:
    """Call ``show`` with 0, 1, 2, … every ``interval_s`` seconds, ``times`` times or (None) until interrupted."""
    interrupts: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    try:
        shown = 0
        while not interrupts and (times is None or shown < times):
            show(shown)
            shown += 1
            if shown != times:
                _pause(max(0.1, interval_s), interrupts)
    finally:
        signal.signal(signal.SIGINT, previous)


def _print_frame(frame: str, frames: int | None, drawn: int) -> None:
    on_terminal = sys.stdout.isatty()
    if on_terminal and frames != 1:
        lines = frame.split("\n")[: os.get_terminal_size(sys.stdout.fileno()).lines - 1]
        frame = HOME_AND_CLEAR + "\n".join(lines)
    print(frame, flush=True)
    if not on_terminal and frames != drawn + 1:
        print(flush=True)


def _pause(seconds: float, interrupts: list[int]) -> None:
    until = time.monotonic() + seconds
    while not interrupts and (left := until - time.monotonic()) > 0:
        time.sleep(min(PAUSE_S, left))
