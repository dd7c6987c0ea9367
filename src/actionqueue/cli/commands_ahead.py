"""``forecast``: what will happen, as lines with a plot of the load, and as JSON."""

from __future__ import annotations

import sys
from argparse import Namespace
from datetime import datetime, timedelta

from actionqueue.cli.opening import exact_instant, open_store
from actionqueue.cli.plot import plot
from actionqueue.cli.progress import Progress
from actionqueue.cli.render import WIDTH_DEFAULT, columns_of_terminal, print_json, width_of
from actionqueue.cli.running import DONE, Misuse
from actionqueue.core.errors import InvalidDuration
from actionqueue.core.forecast import Forecast
from actionqueue.core.forecast_text import lines_of
from actionqueue.core.instants import parse_duration_us
from actionqueue.core.plain import plain

HOURS_MAX = 366 * 24
COLUMNS_MIN = 40
INDENT = 10
"""Of what goes on in the next line."""


def forecast(options: Namespace) -> int:
    """Look ahead."""
    progress = Progress("looking into")
    try:
        found = open_store(options).forecast(
            _until(options), what_if=options.what_if, progress=progress if sys.stderr.isatty() else None
        )
    finally:
        progress.end()
    if options.json:
        print_json(plain(found))
        return DONE
    width = columns_of_terminal()
    for line in lines_of(found, _plot(found, width)):
        for part in _fitting(line, width):
            print(_printable(part))
    return DONE


def _fitting(line: str, width: int | None) -> list[str]:
    """The line, or the lines it is broken into where it is too wide: nothing is left out."""
    if width is None or width_of(line) <= width:
        return [line]
    import textwrap

    return textwrap.wrap(line, max(width, COLUMNS_MIN), subsequent_indent=" " * INDENT)


def _until(options: Namespace) -> datetime | timedelta:
    if options.until is None:
        if not 0 < options.hours <= HOURS_MAX:
            raise Misuse(f"--hours: give a number above 0, at most {HOURS_MAX}")
        return timedelta(hours=options.hours)
    try:
        return timedelta(microseconds=parse_duration_us(options.until, field="--until"))
    except InvalidDuration:
        return exact_instant(options.until, "--until")


def _plot(found: Forecast, width: int | None) -> list[str]:
    if not found.load:
        return []
    end = found.reached
    values = [
        ("running", [each.running for each in found.load]),
        ("waiting", [float(each.waiting) for each in found.load]),
    ]
    return plot(values, found.at, end, width=width or WIDTH_DEFAULT, blocks=_can_print("▁█│└─"))


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True


def _printable(line: str) -> str:
    """The line with what the output's encoding has no character for in plainer ones."""
    if _can_print(line):
        return line
    plainer = line.replace("…", "..").replace("×", "x").replace("│", "|")
    return plainer.encode("ascii", "replace").decode()
