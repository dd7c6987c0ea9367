"""Schedules: the policies that imply many runs.

``Repeat`` and ``Cron`` exist as declared data so that code can be written against them; this version refuses to run
them, at declaration and at submission, with ``NotSupported``.
"""

from __future__ import annotations

from msgspec import Struct


class Repeat(Struct, frozen=True, tag="repeat"):
    """``count`` runs, ``every`` apart. Refused by this version."""

    count: int
    every: str | float
    first_at: int | None = None
    misfire: str = "catch_up"
    misfire_grace: str | float = "60s"
    misfire_window: str | float | None = None
    overlap: str = "allow"


class Cron(Struct, frozen=True, tag="cron"):
    """A run at each time that ``expression`` names in ``timezone``. Refused by this version."""

    expression: str
    timezone: str = "UTC"
    max_occurrences: int | None = None
    starts_at: int | None = None
    ends_at: int | None = None
    jitter: str | float | None = None
    misfire: str = "coalesce"
    misfire_grace: str | float = "60s"
    misfire_window: str | float | None = None
    overlap: str = "skip"
