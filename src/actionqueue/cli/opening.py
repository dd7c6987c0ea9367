"""What commands begin with: the store that was named, the queue on it, instants and ids as people write them."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from actionqueue.administer import Administering
from actionqueue.cli.parser import FILTERS, store_of
from actionqueue.cli.progress import Progress
from actionqueue.cli.render import moment
from actionqueue.cli.running import Misuse, note
from actionqueue.core.errors import Conflict, InvalidDuration, NoEngine, StoreUnavailable, UnknownRun
from actionqueue.core.ids import RunId, TaskId
from actionqueue.core.instants import parse_duration_us
from actionqueue.store_client import StoreClient

T = TypeVar("T")

LOOK_S, LOOKS_BEHIND_AN_ENGINE = 0.1, 4
"""What an engine has just acknowledged is in the tables a tenth of a second later: an id that is not there yet."""


def open_store(options: Namespace) -> StoreClient:
    """The named store. Raises ``StoreUnavailable`` when there is none. Controls do not wait for an engine to come."""
    client = StoreClient(existing_path(options), decide_wait=0)
    options.opened.append(client)
    return client


def open_at(options: Namespace) -> tuple[StoreClient, datetime]:
    """The named store and now; or, with ``--at``, the store as it was then, and then. Raises ``BeyondLog``."""
    client = open_store(options)
    if options.at is None:
        return client, datetime.now(UTC)
    from actionqueue.past import PastStore

    at = instant(options.at, "--at")
    progress = Progress()
    try:
        past = PastStore(client, at, progress=progress if sys.stderr.isatty() else None)
    finally:
        progress.end()
    options.opened.append(past)
    if past.begins_at is not None:
        note(f"the log begins at {moment(past.begins_at)}: what was submitted before is not shown")
    return past, at


def existing_path(options: Namespace) -> Path:
    """The absolute path of the named store, which is there."""
    path = store_path(options)
    if not path.exists():
        raise StoreUnavailable(
            f"there is no store at {path}; an engine makes it when it first runs (actionqueue run MODULE:queue)",
            path=str(path),
            cause="missing",
        )
    return path


def store_path(options: Namespace) -> Path:
    """The absolute path of the named store. Raises ``Misuse`` when none was named."""
    store = store_of(options)
    if store is None:
        raise Misuse("which store? give --store PATH or set ACTIONQUEUE_STORE")
    if store == ":memory:" or "://" in store:
        raise Misuse(f"{store} cannot be reached from another process; give the path of a store")
    return Path(store).absolute()


def control(call: Callable[[], T]) -> tuple[T | None, int]:
    """What the engine answered; or, when there is none, how many commands were left in the inbox for it."""
    try:
        return call(), 0
    except NoEngine as error:
        queued = error.facts.get("queued")
        if not isinstance(queued, int):
            raise
        return None, queued


def note_queued(count: int, store: object) -> None:
    """Say that commands wait."""
    if count:
        what = "the command waits" if count == 1 else f"{count} commands wait"
        note(f"queued: no engine runs on {store}; {what} in the inbox and will be decided when one does")


# --- ids --------------------------------------------------------------------------------------------------------


def find_id(client: Administering, text: str) -> RunId | TaskId:
    """The run or task whose id is this or ends so. Raises ``UnknownRun``, ``Conflict`` when there are several."""
    ending = text.strip().lstrip("…").replace("-", "").lower()
    found = client.find_ids(ending)
    looks = LOOKS_BEHIND_AN_ENGINE if not found and client.engine_holder() is not None else 0
    while looks and not found:
        time.sleep(LOOK_S)
        found = client.find_ids(ending)
        looks -= 1
    if not found:
        raise UnknownRun(f"no run or task in this store has an id that ends with {text}")
    if len(found) > 1:
        listed = ", ".join(f"{_kind(id)} {id}" for id in found[:5])
        raise Conflict(f"{len(found)} ids end with {text}: {listed}{', …' if len(found) > 5 else ''}; give more of it")
    return found[0]


def find_task_id(client: Administering, text: str) -> TaskId:
    """The task whose id, or of whose run the id, is this or ends so. Raises as ``find_id`` does."""
    id = find_id(client, text)
    return id if isinstance(id, TaskId) else client.get_run(id).task_id


def _kind(id: RunId | TaskId) -> str:
    return "run" if isinstance(id, RunId) else "task"


# --- filters ----------------------------------------------------------------------------------------------------


def filters_of(options: Namespace, client: StoreClient) -> dict[str, Any]:
    """The filter options that were given, as ``runs(…)`` takes them."""
    wanted: dict[str, Any] = {}
    for name in FILTERS:
        value = getattr(options, name, None)
        if value is not None:
            wanted[name] = value
    if "state" in wanted:
        wanted["state"] = [state for given in wanted["state"] for state in given.split(",") if state]
    for name in ("since", "until"):
        if name in wanted:
            wanted[name] = instant(wanted[name], f"--{name}")
    if "task" in wanted:
        wanted["task"] = find_task_id(client, wanted["task"])
    return wanted


def instant(text: str, name: str) -> datetime:
    """An instant in ISO 8601 with a zone, or an age before now. Raises ``Misuse``."""
    try:
        return datetime.now(UTC) - timedelta(microseconds=parse_duration_us(text, field=name))
    except InvalidDuration:
        return exact_instant(text, name)


def exact_instant(text: str, name: str) -> datetime:
    """An instant in ISO 8601 with a zone. Raises ``Misuse``."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Misuse(
            f'{name}: {text!r} is no instant; give ISO 8601 with a zone, such as "2026-11-24T09:00:00Z"'
        ) from None
    if found.tzinfo is None:
        raise Misuse(f"{name}: {text!r} has no time zone; add one, such as {text}Z or {text}+01:00")
    return found
