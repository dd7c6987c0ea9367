"""The log as JSON lines, one commit a line, and back: to read, to keep, to send with a bug report.

::

    {"actionqueue_export": 1, "from_seq": 1, "redacted": false, "release": "0.2.0"}
    {"first_seq": 1, "last_seq": 2, "at": "2026-11-24T09:00:00.000000Z", "epoch": 1, "events": [
        {"event": "EngineOpened", "at": "2026-11-24T09:00:00.000000Z", "number": 1, …},
        {"event": "TaskSubmitted", "task_id": "019ab…", "handler": "send_invoice", …}]}

Ids are UUIDs, other bytes hexadecimal digits, instants RFC 3339 with microseconds; what has its default is left out.
Nothing is lost on the way: ``read_export`` gives the same events. Payloads and results are not in the log, so they are
not in an export. *Redacted*, every text of the application (names, keys, tags, messages, tracebacks, metadata) and
every digest is replaced by a token that is the same wherever the same text stood, and different in each export; it
still replays.
"""

from __future__ import annotations

import builtins
import os
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import msgspec
from msgspec import Struct, inspect, json
from msgspec.structs import fields

from actionqueue.core.awaiting import CHILDREN, SIGNAL, SLEEP
from actionqueue.core.errors import InvalidSubmission
from actionqueue.core.instants import SECOND_US
from actionqueue.core.machine import Event
from actionqueue.core.records import STEP
from actionqueue.core.spec import DEFAULT_QUEUE
from actionqueue.core.steps import NOTE
from actionqueue.core.version import __version__
from actionqueue.store.codec import decode_events
from actionqueue.store.port import Commit
from actionqueue.store.sqlite_reader import SQLiteReader

FORMAT = 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INSTANT = re.compile(r"(^|_)(at|until)$")
_ID = re.compile(r"(^|_)(id|ids|token)$|^(retry_of|latest|on|failed)$")
_CODES = frozenset({
    "event", "reason", "scope", "how", "version", "on_lost", "hold",
    "misfire", "overlap", "on_failure", "expression", "timezone", "schedule_origin",
})  # fmt: skip
"""Fields whose texts are the engine's own words, or say when a schedule occurs: redacting leaves them."""
_KINDS = (SLEEP, SIGNAL, CHILDREN, STEP, NOTE)
_EVENTS = {kind.__name__: kind for kind in Event.__args__}


class ExportedCommit(Struct, frozen=True, kw_only=True):
    """One commit of an export."""

    first_seq: int
    last_seq: int
    at: int
    epoch: int
    events: tuple[Any, ...]


# --- writing ----------------------------------------------------------------------------------------------------


class Log(Protocol):
    """What is exported: a store's reader, or anything else that has commits."""

    def commits(self, after_seq: int) -> Iterator[Commit]:
        """The commits after a sequence, in order."""
        ...


def export_lines(
    log: Log, *, after_seq: int = 0, since: int | None = None, until: int | None = None, redact: bool = False
) -> Iterator[str]:
    """The lines of an export, the first one its header. ``since`` and ``until`` are instants, of whole commits.

    Raises ``StoreDamaged`` where the log is, after the lines before.
    """
    plain = _Redacted(os.urandom(16)).plain if redact else _plain
    began = False
    for commit in log.commits(after_seq):
        if (since is not None and commit.at < since) or (until is not None and commit.at >= until):
            continue
        if not began:
            began = True
            yield _header(commit.first_seq, redact=redact)
        events = [
            {"event": type(event).__name__, **plain(event, "event")}
            for event in decode_events(commit.events, commit.version)
        ]
        line = {"first_seq": commit.first_seq, "last_seq": commit.last_seq, "at": _moment(commit.at)}
        yield json.encode({**line, "epoch": commit.epoch, "events": events}).decode()
    if not began:
        yield _header(0, redact=redact)


def export_store(path: Path, **wanted: Any) -> Iterator[str]:
    """``export_lines`` of the store at ``path``, beside its engine or without one. Raises what reading a store does."""
    reader = SQLiteReader(path)
    try:
        yield from export_lines(reader, **wanted)
    finally:
        reader.close()


def _header(from_seq: int, *, redact: bool) -> str:
    header = {"actionqueue_export": FORMAT, "from_seq": from_seq, "redacted": redact, "release": __version__}
    return json.encode(header).decode()


def _plain(value: Any, name: str) -> Any:
    match value:
        case Struct():
            return _tagged(value) | {field: _plain(inner, field) for field, inner in _changed(value)}
        case Enum():
            return value.name
        case bytes():
            return str(UUID(bytes=value)) if len(value) == 16 and _ID.search(name) else value.hex()
        case bool() | None | float() | str():
            return value
        case int():
            return _moment(value) if _INSTANT.search(name) else value
        case dict():
            return {key: _plain(inner, "") for key, inner in value.items()}
        case _:
            return [_plain(inner, name) for inner in value]


def _changed(value: Struct) -> Iterator[tuple[str, Any]]:
    """The fields that do not have their default."""
    for each in fields(value):
        inner = getattr(value, each.name)
        if each.required or inner != each.default:
            yield each.name, inner


def _tagged(value: Struct) -> dict[str, str]:
    """Where a field may hold one of several structs: which one it is. Events say it themselves."""
    kind = type(value)
    return {"type": kind.__name__} if kind.__struct_config__.tag is not None and kind.__name__ not in _EVENTS else {}


def _moment(at: int) -> str | int:
    try:
        return f"{(_EPOCH + timedelta(microseconds=at)).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"
    except OverflowError:
        return at


class _Redacted:
    """Writes values as ``_plain`` does, without what is the application's own."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def plain(self, value: Any, name: str) -> Any:
        match value:
            case Struct():
                kept = "name" if getattr(value, "scope", "") == "task" else ""  # it is the task's id
                changed = (
                    (field, inner if field == kept else self.plain(inner, field))
                    for field, inner in _changed(value)
                    if field != "metadata"
                )
                return _tagged(value) | dict(changed)
            case str() if name not in _CODES and value != DEFAULT_QUEUE and not _is_builtin(value, name):
                return f"~{self._token(value.encode(), 4).hex()}" if value else value
            case bytes() if not _ID.search(name):
                return self._token(value, len(value)).hex()
            case dict():
                return {self.plain(key, ""): self.plain(inner, "") for key, inner in value.items()}
            case list() | tuple() | set() | frozenset():
                return [self.plain(inner, name) for inner in value]
            case _:
                return _plain(value, name)

    def _token(self, value: bytes, bytes_count: int) -> bytes:
        return blake2b(value, key=self._key, digest_size=min(64, max(1, bytes_count))).digest()


def _is_builtin(value: str, name: str) -> bool:
    """An error of a class that is Python's own says nothing of the application, nor does the kind of a wait or record."""
    return name == "kind" and (hasattr(builtins, value) or value in _KINDS)


# --- reading ----------------------------------------------------------------------------------------------------


def read_export(lines: Iterable[str]) -> Iterator[ExportedCommit]:
    """The commits of an export. Raises ``InvalidSubmission`` naming the line that is none of one."""
    number = 0
    for number, line in enumerate(lines, 1):
        try:
            content = json.decode(line)
            if number == 1:
                _check_header(content)
                continue
            events = tuple(_event_of(each) for each in content["events"])
            yield ExportedCommit(
                first_seq=content["first_seq"], last_seq=content["last_seq"], at=_instant(content["at"]),
                epoch=content["epoch"], events=events,
            )  # fmt: skip
        except (msgspec.MsgspecError, LookupError, TypeError, ValueError) as error:
            raise InvalidSubmission(
                f"line {number} is not of an export of a log: {error}", problems={"line": str(number)}
            ) from error
    if not number:
        raise InvalidSubmission("an export has a header at least; this is empty", problems={"line": "1"})


def _check_header(content: Any) -> None:
    if not isinstance(content, dict) or content.get("actionqueue_export") != FORMAT:
        raise ValueError(f"its header does not say actionqueue_export {FORMAT}")


def _event_of(content: dict[str, Any]) -> Any:
    name = content.pop("event")
    if name not in _EVENTS:
        raise ValueError(f"there is no event {name!r} in this release")
    return _struct_of(_EVENTS[name], content)


def _struct_of(kind: type[Any], content: dict[str, Any]) -> Any:
    readers: dict[str, Callable[[Any], Any]] = _readers(kind)  # type: ignore[arg-type]  # classes are hashable
    return kind(**{name: readers[name](value) for name, value in content.items() if name != "type"})


@cache
def _readers(kind: Any) -> dict[str, Callable[[Any], Any]]:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return {field.name: _reader(field.type) for field in info.fields}


def _reader(info: inspect.Type) -> Callable[[Any], Any]:
    match info:
        case inspect.BytesType():
            return lambda value: bytes.fromhex(value.replace("-", ""))
        case inspect.IntType():
            return _instant
        case inspect.StructType(cls=kind):
            return lambda value: _struct_of(kind, value)
        case inspect.EnumType(cls=kind):
            return lambda value: kind[value]
        case inspect.ListType(item_type=item):
            read = _reader(item)
            return lambda value: [read(each) for each in value]
        case inspect.VarTupleType(item_type=item):
            read = _reader(item)
            return lambda value: tuple(read(each) for each in value)
        case inspect.TupleType(item_types=items):
            reads = [_reader(item) for item in items]
            return lambda value: tuple(read(each) for read, each in zip(reads, value, strict=True))
        case inspect.UnionType(types=types):
            others = [each for each in types if not isinstance(each, inspect.NoneType)]
            read = _reader(others[0]) if len(others) == 1 else _reader_of_one(others)
            return lambda value: None if value is None else read(value)
        case _:
            return lambda value: value


def _reader_of_one(kinds: list[inspect.Type]) -> Callable[[Any], Any]:
    """Of several structs, the one that ``type`` names; of texts and numbers, what is there."""
    named = {kind.cls.__name__: kind.cls for kind in kinds if isinstance(kind, inspect.StructType)}
    return lambda value: _struct_of(named[value["type"]], value) if isinstance(value, dict) else value


def _instant(text: str | int) -> int:
    if isinstance(text, int):
        return text
    since = datetime.fromisoformat(text) - _EPOCH
    return (since.days * 86_400 + since.seconds) * SECOND_US + since.microseconds
