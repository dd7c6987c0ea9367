"""Lanes and slots: what Ready runs wait in, and what they wait for.

A **lane** is all Ready runs of one handler in one queue, in order. **Slots** are something of which only so many runs
may have one at a time: a queue's or an executor's. ``core/places.py`` moves lanes between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, field

from actionqueue.core.ready import Key, ReadyRuns

if TYPE_CHECKING:
    from actionqueue.core.retry import AttemptTerms
    from actionqueue.core.state import PauseMark, Run


class Slots(Struct, eq=False):
    """Something of which only so many runs may have one at a time: a queue or an executor.

    ``running`` is the holders themselves, never a count kept beside them. ``capacity`` None is unlimited.
    """

    kind: str
    name: str
    capacity: int | None = None
    running: dict[bytes, Run] = field(default_factory=dict)
    waiting: list[tuple[int, int, int, Lane]] = field(default_factory=list)
    """A heap of (key, key, serial, lane): lanes that need one, by the key of their best run."""
    lanes: int = 0
    """How many lanes belong to it, where it is a queue."""

    @property
    def free(self) -> bool:
        """Whether one more run may take a slot."""
        return self.capacity is None or len(self.running) < self.capacity


class Lane(Struct, eq=False):
    """The Ready runs of one handler in one queue."""

    handler: str
    queue: Slots
    named: bytes
    """Handler and queue as the checksums of rows cover them."""
    executor: Slots | None = None
    terms: AttemptTerms | None = None
    pause: PauseMark | None = None
    ready: ReadyRuns = field(default_factory=ReadyRuns)
    tasks: int = 0
    """How many live tasks refer to it (``check`` counts them); without any it may be forgotten."""
    held: dict[bytes, Run] = field(default_factory=dict)
    misfits: dict[bytes, Run] = field(default_factory=dict)
    unfit: set[bytes] = field(default_factory=set)
    """Runs that reported misfitting arguments since the handler was registered, until they are Ready again."""
    outdated: set[bytes] = field(default_factory=set)
    """Runs that were running when the handler was registered again: what they report of arguments is of the old one."""
    spot: Slots | None = None
    key: Key = (0, 0)
    woken_by: Slots | None = None

    def note_misfit(self, run_id: bytes) -> None:
        """A run reported that its arguments do not fit: it waits for another handler, unless there is one already."""
        if run_id in self.outdated:
            self.outdated.discard(run_id)
        else:
            self.unfit.add(run_id)
