"""Events, commands and replies as bytes: every kind there and back, and nothing changed goes unseen."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import inspect

from actionqueue.core.errors import ActionQueueError, IdempotencyConflict, StoreDamaged, StoreTooNew, error_kinds
from actionqueue.core.ids import TaskId
from actionqueue.core.machine import APPLY, DECIDE, SUBMITTING, Command, Event
from actionqueue.core.spec import Submission, TaskOptions
from actionqueue.core.submission import Submit
from actionqueue.store.codec import (
    CHAIN_START,
    EVENTS_VERSION,
    chain,
    decode_command,
    decode_events,
    decode_reply,
    digest,
    encode_command,
    encode_events,
    encode_reply,
    seq_of_reply,
)
from tests.core.random_stories import act_out, drawn

EVENT_KINDS = typing.get_args(Event)
COMMAND_KINDS = typing.get_args(Command)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def values_of(kind: Any) -> st.SearchStrategy[Any]:  # noqa: C901 - one line per type
    """Every value a field of this type can have, so that a field added tomorrow is covered tomorrow."""
    match kind:
        case inspect.NoneType():
            return st.none()
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType():
            return st.integers(-(2**31), 2**63 - 1)
        case inspect.FloatType():
            return st.floats(allow_nan=False)
        case inspect.StrType():
            return st.text(max_size=12)
        case inspect.BytesType():
            return st.binary(max_size=20)
        case inspect.AnyType():
            return json_values
        case inspect.EnumType(cls=cls):
            return st.sampled_from(list(cls))
        case inspect.ListType(item_type=item):
            return st.lists(values_of(item), max_size=3)
        case inspect.VarTupleType(item_type=item):
            return st.lists(values_of(item), max_size=3).map(tuple)
        case inspect.TupleType(item_types=items):
            return st.tuples(*map(values_of, items))
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(values_of(key), values_of(value), max_size=2)
        case inspect.UnionType(types=types):
            return st.one_of(*map(values_of, types))
        case inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: values_of(field.type) for field in fields})
        case _:
            raise NotImplementedError(kind)


def one_of(kinds: tuple[type, ...]) -> st.SearchStrategy[Any]:
    return st.one_of(*(values_of(inspect.type_info(kind)) for kind in kinds))


events = one_of(EVENT_KINDS)
commands = one_of(COMMAND_KINDS)
BODY = encode_events(act_out(drawn(3, 60)).log)


# --- there and back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVENT_KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_every_kind_of_event_comes_back_as_it_was(kind: type, data: st.DataObject) -> None:
    """proptest_wal_replay#1, section 5 number 67: all kinds."""
    event = data.draw(values_of(inspect.type_info(kind)))

    (back,) = decode_events(encode_events([event]))

    assert type(back) is kind
    assert back == event


@pytest.mark.parametrize("kind", COMMAND_KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_every_kind_of_command_comes_back_as_it_was(kind: type, data: st.DataObject) -> None:
    """Section 5 number 67."""
    command = data.draw(values_of(inspect.type_info(kind)))

    back = decode_command(encode_command(command))

    assert type(back) is kind
    assert back == command


@given(st.lists(events, max_size=8))
def test_a_batch_comes_back_in_order(batch: list[Any]) -> None:
    """wal_reader_streaming#1."""
    assert decode_events(encode_events(batch)) == batch


def test_every_kind_is_in_the_machines_tables_and_has_a_tag_of_its_own() -> None:
    assert set(APPLY) == set(EVENT_KINDS)
    assert set(DECIDE) | set(SUBMITTING) == set(COMMAND_KINDS)
    for kinds in (EVENT_KINDS, COMMAND_KINDS):
        assert len({kind.__struct_config__.tag for kind in kinds}) == len(kinds)


def test_random_stories_hold_every_kind_of_event() -> None:
    """What the replay tests replay is everything there is."""
    seen = {type(event) for seed in range(8) for event in act_out(drawn(seed, 120)).log}

    assert seen == set(EVENT_KINDS)


# --- what is not as it was -----------------------------------------------------------------------------------------


@given(st.integers(0, len(BODY) * 8 - 1), st.binary(min_size=32, max_size=32))
def test_a_flipped_bit_never_passes_the_chain(bit: int, before: bytes) -> None:
    """proptest_wal_replay#2, wal_corruption_recovery/07, section 5 number 17."""
    flipped = bytearray(BODY)
    flipped[bit // 8] ^= 1 << bit % 8

    assert chain(before, bytes(flipped)) != chain(before, BODY)
    assert digest(bytes(flipped)) != digest(BODY)


@given(st.lists(st.lists(events, max_size=3), min_size=2, max_size=5), st.data())
def test_commits_cannot_be_dropped_swapped_or_repeated(batches: list[list[Any]], data: st.DataObject) -> None:
    """Section 5 numbers 18 and 19."""
    bodies = [encode_events(batch) + bytes([n]) for n, batch in enumerate(batches)]

    def hashes(order: list[bytes]) -> bytes:
        head = CHAIN_START
        for body in order:
            head = chain(head, body)
        return head

    n = data.draw(st.integers(0, len(bodies) - 2))
    swapped = [*bodies[:n], bodies[n + 1], bodies[n], *bodies[n + 2 :]]
    for other in (bodies[:n] + bodies[n + 1 :], swapped, [*bodies[: n + 1], *bodies[n:]]):
        assert hashes(other) != hashes(bodies)


@given(st.integers(0, len(BODY) - 1), st.integers(0, 255))
def test_changed_bytes_decode_to_events_or_to_a_typed_error(place: int, value: int) -> None:
    """Section 5 number 67: no crash."""
    changed = bytearray(BODY)
    changed[place] = value
    try:
        decode_events(bytes(changed))
    except (StoreTooNew, StoreDamaged):
        return


NESTED = encode_command(Submit([Submission(b"t", b"r", "h", b"", b"", options=TaskOptions(metadata={"m": "deep"}))]))
cut_short = st.tuples(commands.map(encode_command), st.integers(0, 100)).map(lambda pair: pair[0][: pair[1]])


@given(st.binary(max_size=60) | cut_short)
@example(b"\x94\xa5pause\xa1\xff\xa0\xa0")  # a text that is not UTF-8
@example(NESTED.replace(b"\xa4deep", b"\x91" * 100_000 + b"\xc0"))
@example(b"\x92\xa6submit\xdd\xff\xff\xff\xff")  # four thousand million items are announced
def test_what_is_no_command_is_a_typed_error(body: bytes) -> None:
    """ARCHITECTURE section 6: an undecodable row never stops the engine."""
    try:
        command = decode_command(body)
    except msgspec.DecodeError:
        return
    assert isinstance(command, COMMAND_KINDS)


def test_an_event_of_a_later_release_is_a_typed_error() -> None:
    """Section 5 number 62, snapshot_model_parity#4."""
    with pytest.raises(StoreTooNew):
        decode_events(msgspec.msgpack.encode([[99, 1, 2]]))
    with pytest.raises(StoreTooNew) as refusal:
        decode_events(encode_events([]), EVENTS_VERSION + 1)
    assert refusal.value.facts == {"found": EVENTS_VERSION + 1, "supported": EVENTS_VERSION}


@pytest.mark.parametrize("kind", EVENT_KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=10)
@given(data=st.data())
def test_an_event_without_its_youngest_fields_gets_their_defaults(kind: type, data: st.DataObject) -> None:
    """Fields are only added at the end, with defaults: what an earlier release wrote is read by this one."""
    event = data.draw(values_of(inspect.type_info(kind)))
    fields = msgspec.structs.fields(kind)
    written = msgspec.msgpack.decode(encode_events([event]))[0]
    optional = sum(not field.required for field in fields)

    for missing in range(optional + 1):
        (back,) = decode_events(msgspec.msgpack.encode([written[: len(written) - missing]]))
        for field in fields[len(fields) - missing :]:
            assert getattr(back, field.name) == field.default


# --- replies -------------------------------------------------------------------------------------------------------


@given(json_values)
def test_a_reply_comes_back_as_it_was(reply: Any) -> None:
    assert decode_reply(encode_reply(reply)) == reply


def test_a_reply_says_as_of_which_sequence_it_is_and_a_refusal_does_not() -> None:
    assert seq_of_reply(encode_reply([1, 2], 77)) == 77
    assert seq_of_reply(encode_reply(ActionQueueError("no"), 77)) == 0
    assert seq_of_reply(msgspec.msgpack.encode([0, 7])) == 0, "as replies were once written"
    assert decode_reply(msgspec.msgpack.encode([0, 7])) == 7


@pytest.mark.parametrize("kind", error_kinds().values(), ids=lambda kind: kind.__name__)
def test_a_refusal_comes_back_as_the_same_kind_of_error(kind: type[ActionQueueError]) -> None:
    error = kind("what is wrong", limit="n", maximum=3, problems={"at": "late"}, nothing=None)

    back = decode_reply(encode_reply(error))

    assert type(back) is kind
    assert (back.message, back.facts) == (error.message, error.facts)


def test_ids_in_a_refusal_are_ids_again_where_it_arrives() -> None:
    task_id = TaskId.parse("018bcfe5-6800-7000-8000-000000000001")

    back = decode_reply(encode_reply(IdempotencyConflict("taken", task_id=task_id, key=None)))

    assert back.facts == {"task_id": task_id, "key": None}
    assert type(back.task_id) is TaskId
