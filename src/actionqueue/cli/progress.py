"""How far something is that takes long."""

from __future__ import annotations

import sys


class Progress:
    """A line on the terminal that says how far it is."""

    def __init__(self, doing: str = "reading") -> None:
        self._doing = doing
        self._shown = ""

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Say so, where it changed."""
        line = f"{self._doing} the {phase}" + (f" {min(100, 100 * done // total)} %" if total else "")
        if line != self._shown:
            self._shown = line
            print(f"\r\x1b[K{line} …", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Take the line away."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
