"""The options of an ``ActionQueue``, validated when it is constructed; no file is touched."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

from msgspec import Struct

from actionqueue.core.errors import InvalidSubmission
from actionqueue.core.instants import parse_duration_us
from actionqueue.core.spec import DURATION_US_MAX, name_problem

MEMORY = ":memory:"
SLOTS_MAX = 100_000
"""Slots of one named queue."""
_DURATIONS = ("drain_timeout", "stop_grace", "retention", "log_retention", "decide_wait")


class Settings(Struct, frozen=True):
    """What an ``ActionQueue`` was given. Durations are microseconds."""

    store: Path | str
    role: str
    concurrency: int
    threads: int
    processes: int
    queues: dict[str, int]
    drain_timeout_us: int
    stop_grace_us: int
    retention_us: int
    log_retention_us: int
    decide_wait_us: int
    live_runs_max: int
    aging_us: int
    imports: tuple[str, ...]
    resources: Callable[[], AbstractAsyncContextManager[Any]] | None

    @property
    def in_memory(self) -> bool:
        """Whether nothing is on disk."""
        return self.store == MEMORY

    @classmethod
    def checked(cls, **given: Any) -> Settings:
        """The settings; raises ``InvalidSubmission`` naming every problem."""
        problems: dict[str, str] = {}
        durations = _durations(given, problems)
        if given["role"] not in ("auto", "engine", "client"):
            problems["role"] = "give auto, engine or client"
        if given["processes"] is None:
            given["processes"] = os.cpu_count() or 1
        for name in ("concurrency", "threads", "processes", "live_runs_max"):
            value = given[name]
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                problems[name] = "give a whole number of at least 1"
        aging_us = _aging(given["aging"], problems)
        queues = _queues(given["queues"] or {}, problems)
        if isinstance(given["imports"], str) or not all(isinstance(each, str) for each in given["imports"]):
            problems["imports"] = "give a list of module names"
        store = _store(given["store"], problems)
        if problems:
            listed = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
            raise InvalidSubmission(f"ActionQueue: {listed}", problems=problems)
        return cls(
            store=store,
            role=given["role"],
            concurrency=given["concurrency"],
            threads=given["threads"],
            processes=given["processes"],
            queues=queues,
            live_runs_max=given["live_runs_max"],
            aging_us=aging_us,
            imports=tuple(given["imports"]),
            resources=given["resources"],
            **durations,
        )


def _queues(given: Any, problems: dict[str, str]) -> dict[str, int]:
    if not isinstance(given, Mapping):
        problems["queues"] = 'give a mapping of names to slots, such as {"mail": 4}'
        return {}
    for name, slots in given.items():
        if (problem := name_problem(name)) is not None:
            problems[f"queues[{name!r}]"] = f"the name is {problem}"
        elif type(slots) is not int or not 1 <= slots <= SLOTS_MAX:
            problems[f"queues[{name!r}]"] = f"give 1 to {SLOTS_MAX}"
    return dict(given)


def _aging(given: Any, problems: dict[str, str]) -> int:
    """How long waiting counts as a priority, or 0 where it does not."""
    if given is None:
        return 0
    try:
        aging_us = parse_duration_us(given, field="aging")
    except InvalidSubmission as error:
        problems["aging"] = error.message.removeprefix("aging: ")
        return 0
    if not 1 <= aging_us <= DURATION_US_MAX:
        problems["aging"] = "give a microsecond to 100 years"
    return aging_us


def _durations(given: Mapping[str, Any], problems: dict[str, str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in _DURATIONS:
        value: timedelta | float | str = given[name]
        try:
            found[f"{name}_us"] = parse_duration_us(value, field=name)
        except InvalidSubmission as error:
            problems[name] = error.message.removeprefix(f"{name}: ")
    return found


def _store(store: Any, problems: dict[str, str]) -> Path | str:
    if store == MEMORY:
        return MEMORY
    if not isinstance(store, str | os.PathLike) or not os.fspath(store):
        problems["store"] = 'give a path, or ":memory:"'
        return MEMORY
    text = os.fspath(store)
    if isinstance(text, bytes) or text.startswith(("postgresql://", "postgres://")):
        problems["store"] = "PostgreSQL is not supported by this version; give a path"
        return MEMORY
    return Path(text).absolute()
