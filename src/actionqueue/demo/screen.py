"""What the demo writes on: lines, and one status line that is drawn again in place where there is a terminal.

Where there is none (a pipe, a file, CI), the status is a plain line at every tenth of the way.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TextIO

WIDTH_MAX = 78
BAR_MIN = 10
CLEAR_LINE = "\r\x1b[2K"
BOLD, GREEN, RED, PLAIN = "\x1b[1m", "\x1b[32m", "\x1b[31m", "\x1b[0m"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How far the queue is."""

    done: int
    total: int
    failed: int
    running: int
    retrying: int
    seconds: float

    @property
    def share(self) -> float:
        """Of the way, 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 1.0

    def words(self) -> str:
        """The figures, as wide for every status of one total."""
        total = f"{self.total:,}"
        return (
            f"{int(self.share * 100):>3} %  {self.done:>{len(total)},}/{total} {self.failed:>2} failed "
            f"{self.running:>2} running {self.retrying:>2} to retry {self.seconds:5.1f} s"
        )


class Screen:
    """A terminal or a file."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._encoding = stream.encoding or "ascii"
        self._is_live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._has_color = self._is_live and not os.environ.get("NO_COLOR")
        self._full, self._empty = ("█", "░") if self._encoding.lower().startswith("utf") else ("#", ".")
        self._drawn = ""
        self._tenth = -1
        columns = shutil.get_terminal_size((WIDTH_MAX + 2, 24)).columns
        self.width = max(40, min(WIDTH_MAX, columns - 1))

    def say(self, *lines: str) -> None:
        """Print these lines; a status line stays above them as it was."""
        self.settle()
        for line in lines:
            self._write(line + "\n")

    def heading(self, text: str) -> None:
        """A heading, with room above it."""
        self.say("", self.colored(text, BOLD))

    def colored(self, text: str, color: str) -> str:
        """The text in a color, where the terminal has any."""
        return f"{color}{text}{PLAIN}" if self._has_color else text

    def status(self, status: Status) -> None:
        """Show how far it is."""
        if not self._is_live:
            tenth = int(status.share * 10)
            if tenth > self._tenth:
                self._tenth = tenth
                self._write(f"  {status.words()}\n")
            return
        words = status.words()
        cells = max(BAR_MIN, self.width - len(words) - 4)
        full = int(cells * status.share)
        drawn = f"  {self._full * full}{self._empty * (cells - full)}  {words}"[: self.width]
        if drawn != self._drawn:
            self._drawn = drawn
            self._write(CLEAR_LINE + drawn)

    def settle(self) -> None:
        """Leave the status line as it is, and go on below it."""
        if self._drawn:
            self._drawn = ""
            self._write("\n")

    def _write(self, text: str) -> None:
        self._stream.write(text.encode(self._encoding, "replace").decode(self._encoding))
        self._stream.flush()
