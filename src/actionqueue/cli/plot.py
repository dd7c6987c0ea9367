"""Bar charts as text: a few lines high, as wide as the terminal, in blocks of eighths or, failing those, in ASCII.

Knows: how numbers over time are drawn. Must not know: what they count.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

HEIGHT = 5
"""Lines of a chart, without its axis."""
WIDTH_MAX = 120
"""Columns of a chart at most: it is read at a glance."""
COLUMNS_MIN = 20
EIGHTHS = " ▁▂▃▄▅▆▇█"
HALVES = " .#"
TICKS = 5
"""Instants that are written below the axis, at most."""


def plot(
    series: Sequence[tuple[str, Sequence[float]]],
    begin: datetime,
    end: datetime,
    *,
    width: int,
    blocks: bool,
) -> list[str]:
    """A chart for each series of numbers, one below the other, with one axis of time.

    >>> from datetime import UTC
    >>> noon = datetime(2026, 11, 2, 12, tzinfo=UTC)
    >>> for line in plot([("n", [0, 1, 2, 4])], noon, noon + timedelta(hours=1), width=32, blocks=True):
    ...     print(line)
    n
      4│                    ███████
       │                    ███████
       │             ▄▄▄▄▄▄▄███████
       │      ▂▂▂▂▂▂▂██████████████
       │      █████████████████████
      0└───────────────────────────
        12:00                  13:00
    """
    labels = [_label(max(values, default=0)) for _, values in series]
    margin = max(len(label) for label in labels) + 2
    columns = max(COLUMNS_MIN, min(width, WIDTH_MAX) - margin - 2)
    wall, corner, floor = "│└─" if blocks else "|+-"
    lines: list[str] = []
    for (name, values), label in zip(series, labels, strict=True):
        lines.append(name)
        rows = _bars(_spread(values, columns), max(values, default=0), blocks=blocks)
        for n, row in enumerate(rows):
            said = label if n == 0 else ""
            lines.append(f"{said:>{margin}}{wall}{row}".rstrip())
    lines += [f"{'0':>{margin}}{corner}{floor * columns}", f"{'':>{margin}} {_axis(begin, end, columns)}".rstrip()]
    return lines


def _label(most: float) -> str:
    return f"{most:,.0f}" if most >= 10 or most == int(most) else f"{most:.1f}"


def _spread(values: Sequence[float], columns: int) -> list[float]:
    """One number for each column: of several that fall into it, the largest."""
    count = len(values)
    if not count:
        return [0.0] * columns
    return [
        max(values[n * count // columns : max(n * count // columns + 1, -(-(n + 1) * count // columns))])
        for n in range(columns)
    ]


def _bars(values: Sequence[float], most: float, *, blocks: bool) -> list[str]:
    """Lines from the top down. What is more than nothing shows."""
    levels = EIGHTHS if blocks else HALVES
    parts = len(levels) - 1
    heights = [0 if value <= 0 or not most else max(1, round(value / most * HEIGHT * parts)) for value in values]
    return [
        "".join(levels[min(parts, max(0, height - line * parts))] for height in heights)
        for line in range(HEIGHT - 1, -1, -1)
    ]


def _axis(begin: datetime, end: datetime, columns: int) -> str:
    """Instants in UTC, evenly spread."""
    span = end - begin
    form = "%H:%M:%S" if span <= timedelta(minutes=30) else "%H:%M" if span <= timedelta(hours=36) else "%b %d %H:%M"
    texts = [f"{begin.astimezone(UTC):{form}}"]
    ticks = max(2, min(TICKS, columns // (len(texts[0]) + 6)))
    texts += [f"{(begin + span * n / (ticks - 1)).astimezone(UTC):{form}}" for n in range(1, ticks)]
    line = ""
    for n, text in enumerate(texts):
        at = n * (columns - 1) // (ticks - 1)
        at = at if n == 0 else at - len(text) // 2 if n < ticks - 1 else columns - len(text) + 1
        line = f"{line:<{at}}{text}"
    return line
