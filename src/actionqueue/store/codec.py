"""Events, commands and replies to bytes and back, with the versions that say how.

Fields are only ever added, at the end and with defaults. An event this version does not know is a typed error that
touches nothing.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import msgpack

from actionqueue.core.equipment import Equipment
from actionqueue.core.errors import ActionQueueError, StoreDamaged, StoreTooNew, error_kinds
from actionqueue.core.ids import AttemptId, Id, RunId, TaskId
from actionqueue.core.machine import Command, Event
from actionqueue.core.schedules import PutSchedule
from actionqueue.core.submission import Submit

EVENTS_VERSION = 1
DIGEST_BYTES = 16
CHAIN_START = bytes(32)
REFUSAL_BEGINS = b"\x92\x01"
"""How the encoding of a reply begins that is a refusal."""

_encode = msgpack.Encoder().encode
_events = msgpack.Decoder(list[Event])
_slots = msgpack.Decoder(list[tuple[str, str, int, int]])
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises; texts that are not UTF-8 and values nested too deeply are no errors of its own."""
_command = msgpack.Decoder(Command)  # type: ignore[type-var, unused-ignore]  # a union, which msgspec takes


def encode_events(events: list[Any]) -> bytes:
    """A batch of events as the body of one commit."""
    return _encode(events)


def decode_events(body: bytes, version: int = EVENTS_VERSION) -> list[Event]:
    """The events of one commit; ``StoreTooNew`` for an unknown event or a newer version, else ``StoreDamaged``."""
    if version > EVENTS_VERSION:
        raise StoreTooNew(
            f"the log has events of version {version}; this release reads up to {EVENTS_VERSION}. Upgrade actionqueue.",
            found=version,
            supported=EVENTS_VERSION,
        )
    try:
        return _events.decode(body)
    except msgspec.ValidationError as error:
        raise StoreTooNew(f"the log has an event this release does not know ({error}). Upgrade actionqueue.") from error
    except _UNREADABLE as error:
        raise StoreDamaged(
            f"the log has a commit that cannot be read ({error}); run `actionqueue verify`", place="commits"
        ) from error


def encode_command(command: Command) -> bytes:
    """A command as the body of an inbox row."""
    return _encode(command)


def decode_command(body: bytes) -> Command:
    """A command from an inbox row; raises ``msgspec.DecodeError`` (``ValidationError`` included) when it is none."""
    try:
        decoded: Command = _command.decode(body)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error
    return decoded


def summary_of(command: Command) -> dict[str, Any]:
    """What a command is about, for a list of those that were refused: plain values, few bytes."""
    about: dict[str, Any] = {"command": command.__struct_config__.tag}
    if isinstance(command, Submit | PutSchedule) and command.items:
        first = command.items[0]
        about |= {"count": len(command.items), "handler": first.handler, "task_id": str(TaskId(bytes=first.task_id))}
    for name, kind in (("run_id", RunId), ("task_id", TaskId)):
        id = getattr(command, name, None)
        if isinstance(id, bytes) and len(id) == 16:
            about[name] = str(kind(bytes=id))
    return about


def encode_equipment(equipment: Equipment) -> bytes:
    """What an engine runs things with, as a fact."""
    return _encode(equipment)


def decode_equipment(body: bytes) -> Equipment:
    """The same, back."""
    return msgpack.decode(body, type=Equipment)


def encode_slots(slots: list[tuple[str, str, int, int]]) -> bytes:
    """(kind, name, taken, capacity) of each executor and bounded queue."""
    return _encode(slots)


def decode_slots(body: bytes) -> list[tuple[str, str, int, int]]:
    """The same, back."""
    return _slots.decode(body)


def chain(previous: bytes, body: bytes) -> bytes:
    """The hash of a commit: BLAKE2b-256 over the hash before it and its events."""
    return blake2b(previous + body, digest_size=32).digest()


def digest(body: bytes) -> bytes:
    """BLAKE2b-128 of a payload or an output."""
    return blake2b(body, digest_size=DIGEST_BYTES).digest()


def encode_reply(reply: object, seq: int = 0) -> bytes:
    """A reply, or a refusal, as bytes; ``seq`` is the sequence as of which everything that was decided is there."""
    if isinstance(reply, ActionQueueError):
        facts = {
            name: str(value) if not isinstance(value, int | str | dict | None) else value
            for name, value in reply.facts.items()
        }
        return _encode([1, [reply.code, reply.message, facts]])
    return _encode([0, reply, seq])


def decode_reply(body: bytes) -> Any:
    """The reply; a refusal comes back as an error (not raised)."""
    refused, content, *_ = msgpack.decode(body)
    if not refused:
        return content
    code, message, facts = content
    for name, kind in _IDS.items():
        if isinstance(facts.get(name), str):
            facts[name] = kind.parse(facts[name], field=name)
    return error_kinds().get(code, ActionQueueError)(message, **facts)


def seq_of_reply(body: bytes) -> int:
    """The sequence in an encoded reply; 0 where it has none, as a refusal, which changed nothing."""
    refused, _, *seq = msgpack.decode(body)
    return seq[0] if seq and not refused else 0


_IDS: dict[str, type[Id]] = {"run_id": RunId, "task_id": TaskId, "attempt_id": AttemptId}
"""Facts of refusals that are texts only on their way."""
