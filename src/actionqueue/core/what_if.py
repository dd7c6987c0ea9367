"""What-if questions: changes to a state of one's own, as people write them.

=========================  ============================================================================================
``concurrency=8``          slots of async handlers; ``threads=``, ``processes=`` those of the other executors
``queue mail=4``           the concurrency of a queue (``none``: unbounded); ``handler send=2`` that of a handler
``limit customer:7=3``     the capacity of a key
``pause``, ``resume``      of the engine; or ``pause queue mail``, ``pause handler send``
=========================  ============================================================================================

Knows: how they are read, and which calls of the machine they mean. Must not know: what is made of the state afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from actionqueue.core.control import Pause, Resume
from actionqueue.core.errors import ActionQueueError, InvalidSubmission
from actionqueue.core.instants import shown
from actionqueue.core.machine import Machine
from actionqueue.core.needs import CAPACITY_MAX

EXECUTORS = {"concurrency": "async", "threads": "thread", "processes": "process"}
"""By what users call their slots."""
NAMES_SHOWN_MAX = 10

_FORMS = (
    "give concurrency=N, threads=N, processes=N, queue NAME=N, handler NAME=N, limit KEY=N,"
    " or pause or resume, alone or with queue NAME or handler NAME"
)


def change(machine: Machine, wanted: Sequence[str], now: int) -> None:
    """Make these changes, in order. Raises ``InvalidSubmission`` for what is not understood, or not there."""
    for text in wanted:
        if not isinstance(text, str):
            raise _refused(text, _FORMS)
        verb, _, rest = text.strip().partition(" ")
        if verb in ("pause", "resume"):
            _pause(machine, text, verb, rest.split(maxsplit=1), now)
        else:
            _bound(machine, text)


def _pause(machine: Machine, text: str, verb: str, scope: Sequence[str], now: int) -> None:
    kind, name = (*scope, "")[:2] if scope else ("engine", "")
    if kind not in ("engine", "queue", "handler") or bool(name) != (kind != "engine"):
        raise _refused(text, f"{verb} what? {_FORMS}")
    if name:
        _check_there(machine, text, kind, name)
    command = Pause(kind, name, "what if") if verb == "pause" else Resume(kind, name, "what if")
    outcome = machine.perform(command, now)
    if isinstance(outcome, ActionQueueError):
        raise outcome
    if not outcome[1]:
        raise _refused(text, f"it is {'paused already' if verb == 'pause' else 'not paused'}")


def _bound(machine: Machine, text: str) -> None:
    what, _, number = text.strip().rpartition("=")
    kind, _, name = what.strip().partition(" ")
    name, places = name.strip(), machine.state.places
    is_unbounded = kind in ("queue", "handler") and number.strip() == "none"
    capacity = None if is_unbounded else _whole(text, number)
    if not name and (executor := EXECUTORS.get(kind)) is not None and capacity is not None:
        _check_there(machine, text, "executor", executor)
        places.set_executor(executor, capacity)
        return
    if kind not in ("queue", "handler", "limit") or not name:
        raise _refused(text, _FORMS)
    _check_there(machine, text, kind, name)
    if kind == "queue":
        places.set_queue(name, capacity)
    elif kind == "limit" and capacity is not None:
        places.set_key_capacity(name, capacity)
    elif name not in places.handlers:
        raise _refused(text, "no engine has that handler")
    else:
        places.register(name, *places.handlers[name], capacity)


def _whole(text: str, number: str) -> int:
    number = number.strip()
    if not number.isdecimal() or not 0 <= int(number) <= CAPACITY_MAX:
        raise _refused(text, _FORMS if "=" not in text else f"give a whole number, 0 to {CAPACITY_MAX}")
    return int(number)


def _check_there(machine: Machine, text: str, kind: str, name: str) -> None:
    there = _names(machine, kind)
    if name in there:
        return
    shown_names = ", ".join(sorted(there)[:NAMES_SHOWN_MAX]) or "none"
    more = f" and {len(there) - NAMES_SHOWN_MAX} more" if len(there) > NAMES_SHOWN_MAX else ""
    raise _refused(text, f"there is no {_NOUNS[kind]} {name!r}; there are: {shown_names}{more}")


_NOUNS = {"queue": "queue", "handler": "handler", "limit": "key", "executor": "executor"}


def _names(machine: Machine, kind: str) -> set[str]:
    state = machine.state
    if kind == "queue":
        return {*state.places.queues, *(name for scope, name in state.pauses if scope == "queue")}
    if kind == "handler":
        return {*state.places.handlers, *(lane.handler for lane in state.places.lanes.values())}
    found: Iterable[str] = state.places.limits.keys if kind == "limit" else state.places.executors
    return set(found)


def _refused(text: object, problem: str) -> InvalidSubmission:
    return InvalidSubmission(f"what_if: {shown(text)}: {problem}", problems={"what_if": f"{shown(text)}: {problem}"})
