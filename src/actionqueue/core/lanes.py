"""Lanes and slots: what Ready runs wait in, and what they wait for.

A **lane** is all Ready runs of one handler in one queue that need the same, in order. **Slots** are something of which
only so many runs may have one at a time: a queue's, an executor's, a handler's, those at a key. ``core/places.py`` moves
lanes between them.

Lanes of one handler and queue are a *family*. Its *base* is the plain lane, of runs that need nothing else: the one in
``Places.lanes``, and the only one most families ever have. The others are in the base's ``kin``, named by what their
runs need (``Needs``); they come and go with their tasks. There may be a million of them (a key for each customer), so
they are lean: what few lanes have is made when it is first used, and none of it is anything for the garbage collector
to look at (the cycles through lanes run through tasks and runs, which it does not see either; ``State.dispose``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from msgspec import Struct, field

from actionqueue.core.needs import KeyNeed, RateNeed
from actionqueue.core.ready import Key, ReadyRuns

if TYPE_CHECKING:
    from actionqueue.core.retry import AttemptTerms
    from actionqueue.core.state import PauseMark, Run

Needs = tuple[tuple[KeyNeed, ...], tuple[RateNeed, ...], bytes]
"""What names a lane within its family: keys, rates, and the task whose own lane it is while that is paused."""
NO_NEEDS: Needs = ((), (), b"")


class Slots(Struct, eq=False, gc=False):
    """Something of which only so many runs may have one at a time: a queue, an executor, a handler.

    ``running`` is the holders themselves, never a count kept beside them. ``capacity`` None is unlimited.
    """

    kind: str
    name: str
    capacity: int | None = None
    running: dict[bytes, Run] = field(default_factory=dict)
    waiting: list[tuple[int, int, int, Lane]] | None = None
    """A heap of (key, key, serial, lane): lanes that need one, by the key of their best run."""
    lanes: int = 0
    """How many lanes belong to it, where it is a queue, or need it, where it is a key's."""

    @property
    def free(self) -> bool:
        """Whether one more run may take a slot."""
        return self.capacity is None or len(self.running) < self.capacity


class KeySlots(Slots, kw_only=True):
    """The slots at a key, for the runs that were submitted with one capacity.

    Runs may come with different capacities for one key. Each capacity has slots of its own, with the lanes that wait by
    it; they share their holders (``running`` is one dict), so that each run goes by its own capacity. ``twin`` leads to
    the next of the same key.
    """

    asked: int
    """The capacity that the runs came with; ``capacity`` is what applies."""
    twin: KeySlots | None = None


class Meter(Struct, eq=False, gc=False):
    """The fill of a rate's key: ``tat`` is the instant from which its bucket is full again."""

    key: str
    tat: int = 0
    buckets: int = 0
    """How many buckets go by it."""
    timed: bool = False
    """Whether it will be looked at when ``tat`` has passed, to be forgotten."""


class Bucket(Slots, kw_only=True):
    """A rate of one key, as some tasks were submitted with it, and the lanes that wait for a token. It has no holders."""

    need: RateNeed
    meter: Meter
    interval_us: int
    slack_us: int
    """How far ahead of the present the meter may be when a start is allowed: (burst - 1) intervals."""
    wake_at: int | None = None
    """The instant its timer is set to."""

    @property
    def free(self) -> bool:
        """Never: whether there is a token depends on the instant; its timer wakes who waits for one."""
        return False

    @property
    def next_at(self) -> int:
        """The instant from which it has a token."""
        return self.meter.tat - self.slack_us


class Lane(Struct, eq=False, gc=False):
    """The Ready runs of one handler in one queue that need the same."""

    handler: str
    queue: Slots
    named: bytes
    """Handler and queue as the checksums of rows cover them."""
    base: Lane | None = None
    """The plain lane of its family; None where it is that itself."""
    needs: Needs = NO_NEEDS
    limited: bool = False
    """Whether it needs more than slots of its queue and executor: whether any of the next three is there."""
    bound: Slots | None = None
    """Slots of its handler, where that has a concurrency of its own."""
    keys: tuple[KeySlots, ...] = ()
    rates: tuple[Bucket, ...] = ()
    executor: Slots | None = None
    terms: AttemptTerms | None = None
    pause: PauseMark | None = None
    ready: ReadyRuns = field(default_factory=ReadyRuns)
    tasks: int = 0
    """How many live tasks, and lanes as their ``holding``, refer to it (``check`` counts them)."""
    kin: dict[Needs, Lane] | None = None
    """The other lanes of the family, where it is a base."""
    holding: Lane | None = None
    """Where runs queue that hold their keys already: the lane that needs all but the keys. Made on first use."""
    held: dict[bytes, Run] | None = None
    misfits: dict[bytes, Run] | None = None
    """Of the whole family, in its base, as the next two."""
    unfit: set[bytes] | None = None
    """Runs that reported misfitting arguments since the handler was registered, until they are Ready again."""
    outdated: set[bytes] | None = None
    """Runs that were running when the handler was registered again: what they report of arguments is of the old one."""
    spot: Slots | None = None
    key: Key = (0, 0)
    woken_by: Slots | None = None

    def family(self) -> Iterator[Lane]:
        """A base and its kin."""
        yield self
        if self.kin:
            yield from tuple(self.kin.values())

    def note_misfit(self, run_id: bytes) -> None:
        """A run reported that its arguments do not fit: it waits for another handler, unless there is one already."""
        base = self.base or self
        if base.outdated and run_id in base.outdated:
            base.outdated.discard(run_id)
        elif base.unfit is None:
            base.unfit = {run_id}
        else:
            base.unfit.add(run_id)

    def take_misfit(self, run_id: bytes) -> bool:
        """Whether that run has reported so, and no handler was registered since; asked once, when it is Ready again."""
        unfit = (self.base or self).unfit
        if unfit is None or run_id not in unfit:
            return False
        unfit.discard(run_id)
        return True
