"""How results look: JSON for programs, aligned tables and short times for people.

Texts of users are shown on one line and without control characters, so that nothing they hold can move the cursor.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from actionqueue.core.instants import DAY_US, HOUR_US, MINUTE_US, SECOND_US, timedelta_us
from actionqueue.core.plain import plain

ID_DIGITS = 8
FLEXIBLE_WIDTH_MIN = 8
WIDTH_DEFAULT = 80
GAP = "  "


# --- JSON -------------------------------------------------------------------------------------------------------


def print_json(value: Any) -> None:
    """One JSON document, on one line."""
    sys.stdout.write(msgspec.json.encode(plain(value)).decode())
    sys.stdout.write("\n")
    sys.stdout.flush()


def stored(body: bytes | None, name: str) -> dict[str, Any]:
    """A stored payload or result under ``name``: as JSON where it is some, else as hexadecimal digits."""
    if body is None:
        return {name: None}
    try:
        return {name: msgspec.json.decode(body)}
    except msgspec.DecodeError:
        return {name: None, f"{name}_hex": body.hex()}


# --- texts ------------------------------------------------------------------------------------------------------


def one_line(text: str) -> str:
    """The text without line breaks and control characters."""
    return "".join(char if char.isprintable() else " " for char in text)


def short_id(id: UUID | str) -> str:
    """The last eight digits, as tables show it."""
    return str(id).replace("-", "")[-ID_DIGITS:]


def ago(then: datetime | None, now: datetime) -> str:
    """How long since, or until."""
    if then is None:
        return "-"
    past = now - then
    return span(past) if past >= timedelta(0) else f"in {span(-past)}"


def span(length: timedelta) -> str:
    """A duration, short: two units at most, "12m27s", "2h5m"; below a minute one, "3.2s", "8ms".

    >>> span(timedelta(minutes=12, seconds=27, microseconds=5)), span(timedelta(seconds=3.24)), span(timedelta(0))
    ('12m27s', '3.2s', '0s')
    """
    us = timedelta_us(length)
    for unit, name, small, small_name in _UNITS:
        if us >= unit:
            rest = us % unit // small
            return f"{us // unit}{name}{rest}{small_name}" if rest else f"{us // unit}{name}"
    for unit, name in ((SECOND_US, "s"), (1000, "ms"), (1, "us")):
        if us >= unit:
            return f"{us // unit}{name}" if us >= 10 * unit or unit == 1 else f"{us // (unit // 10) / 10:g}{name}"
    return "0s"


_UNITS = (
    (DAY_US, "d", HOUR_US, "h"),
    (HOUR_US, "h", MINUTE_US, "m"),
    (MINUTE_US, "m", SECOND_US, "s"),
)


def counted(count: int, noun: str) -> str:
    """A number with its noun in the right form."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def moment(then: datetime | None) -> str:
    """An instant in UTC, to the second."""
    return "-" if then is None else then.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def size(bytes_count: int) -> str:
    """A number of bytes."""
    amount = float(bytes_count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError


def preview(body: bytes | None, characters_max: int = 500) -> str:
    """The beginning of a payload or result."""
    if body is None:
        return "-"
    text = one_line(body.decode("utf-8", "replace"))
    return text if len(text) <= characters_max else f"{text[:characters_max]}… ({size(len(body))})"


# --- tables -----------------------------------------------------------------------------------------------------


def columns_of_terminal() -> int | None:
    """How wide lines may be: of a terminal its width, else ``COLUMNS``; None when nothing bounds them."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or WIDTH_DEFAULT
    except (OSError, ValueError, AttributeError):
        return None


def width_of(text: str) -> int:
    """Columns that the text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def cut(text: str, width: int) -> str:
    """The text, shortened with … where it is wider."""
    if width_of(text) <= width:
        return text
    kept, used = [], 0
    for char in text:
        used += width_of(char)
        if used > width - 1:
            break
        kept.append(char)
    return "".join(kept) + "…"


class Column:
    """A heading; numbers stand to the right, and a flexible column gives way when the line is too long."""

    __slots__ = ("flexible", "heading", "right")

    def __init__(self, heading: str, *, right: bool = False, flexible: bool = False) -> None:
        self.heading = heading
        self.right = right
        self.flexible = flexible


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Lines with aligned columns, none wider than ``width``. Columns that are empty in every row are left out.

    >>> print(
    ...     table(
    ...         [Column("ID"), Column("N", right=True), Column("WHAT", flexible=True)],
    ...         [["a1", "10", "something long"], ["b2", "9", "short"]],
    ...         width=18,
    ...     )
    ... )
    ID   N  WHAT
    a1  10  something…
    b2   9  short
    """
    rows = [[one_line(cell) for cell in row] for row in rows]
    used = [n for n in range(len(columns)) if not rows or any(row[n] for row in rows)]
    columns = [columns[n] for n in used]
    rows = [[row[n] for n in used] for row in rows]
    widths = [max([width_of(column.heading), *(width_of(row[n]) for row in rows)]) for n, column in enumerate(columns)]
    if width is not None:
        _shrink(widths, columns, width)
    cells = [[column.heading for column in columns], *rows]
    lines = [GAP.join(_cells(line, columns, widths)).rstrip() for line in cells]
    return "\n".join(lines if width is None else [cut(line, width) for line in lines])


def _shrink(widths: list[int], columns: Sequence[Column], width: int) -> None:
    """Take from the widest flexible column, again and again, until the line fits or nothing more can be taken."""
    spare = sum(widths) + len(GAP) * (len(widths) - 1) - width
    flexible = [n for n, column in enumerate(columns) if column.flexible]
    while spare > 0 and flexible:
        widest = max(flexible, key=lambda n: widths[n])
        if widths[widest] <= FLEXIBLE_WIDTH_MIN:
            return
        widths[widest] -= 1
        spare -= 1


def _cells(line: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> list[str]:
    cells = []
    for text, column, width in zip(line, columns, widths, strict=True):
        shown = cut(text, width)
        fill = " " * (width - width_of(shown))
        cells.append(fill + shown if column.right else shown + fill)
    return cells


def fields(pairs: Sequence[tuple[str, str | None]], width: int | None = None) -> str:
    """Names and values, a line each; those whose value is None are left out, long values go on below themselves."""
    shown = [(name, value) for name, value in pairs if value is not None]
    indent = max((len(name) for name, _ in shown), default=0) + len(GAP)
    lines = []
    for name, value in shown:
        parts = _wrapped(one_line(value), None if width is None else max(20, width - indent))
        lines += [f"{name:<{indent}}{parts[0]}", *(" " * indent + part for part in parts[1:])]
    return "\n".join(lines)


def _wrapped(text: str, width: int | None) -> list[str]:
    if width is None or width_of(text) <= width:
        return [text]
    import textwrap

    return textwrap.wrap(text, width) or [""]
