"""What an engine's process has to run things with: executors, handlers, bounds of queues. Not in the log.

Knows: how to read them off the places, and how to give them to other places. They are written beside the tables, so that
another process can tell what the engine could start (``explain``, ``forecast``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from actionqueue.core.retry import AttemptTerms

if TYPE_CHECKING:
    from actionqueue.core.places import Places


class EquippedHandler(Struct, frozen=True, array_like=True):
    """A registered handler: the executor it runs on, its terms, and how many of its runs may run at once."""

    name: str
    executor: str
    terms: AttemptTerms
    concurrency: int | None = None


class Equipment(Struct, frozen=True, array_like=True):
    """Executors and bounded queues with their capacities, and handlers; ``aging_us`` is how ready runs gain priority."""

    executors: tuple[tuple[str, int], ...] = ()
    queues: tuple[tuple[str, int], ...] = ()
    handlers: tuple[EquippedHandler, ...] = ()
    aging_us: int = 0


def equipment_of(places: Places) -> Equipment:
    """What these places were given."""
    return Equipment(
        executors=tuple((each.name, each.capacity or 0) for each in places.executors.values()),
        queues=tuple((each.name, each.capacity) for each in places.queues.values() if each.capacity is not None),
        handlers=tuple(
            EquippedHandler(name, executor, terms, _bound_of(places, name))
            for name, (executor, terms) in places.handlers.items()
        ),
        aging_us=places.aging_us,
    )


def _bound_of(places: Places, handler: str) -> int | None:
    slots = places.bounds.get(handler)
    return None if slots is None else slots.capacity


def equip(places: Places, equipment: Equipment) -> None:
    """Give ``places`` the same."""
    places.set_aging(equipment.aging_us)
    for name, slots in equipment.executors:
        places.set_executor(name, slots)
    for name, capacity in equipment.queues:
        places.set_queue(name, capacity)
    for each in equipment.handlers:
        places.register(each.name, each.executor, each.terms, each.concurrency)
