"""Identifiers: their forms, their order, and where they come from."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import uuid
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from actionqueue.core import ids
from actionqueue.core.errors import InvalidSubmission
from actionqueue.core.ids import NIL, AttemptId, Id, IdSource, RunId, TaskId, derived_id, fresh_id_bytes, id_bytes

KINDS = pytest.mark.parametrize("kind", [TaskId, RunId, AttemptId])
NOW_US = 1_700_000_000_123_456
ID_INSTANT_LAST = 2**48 * 1000 - 1
TEXT = "018bcfe5-6800-7000-8000-00000000000a"


def source(seed: int = 1) -> IdSource:
    return IdSource(random.Random(seed).randbytes)


# --- forms -----------------------------------------------------------------------------------------------------------


@KINDS
@given(value=st.uuids())
def test_an_id_survives_text_json_bytes_and_pickle(kind: type[Id], value: uuid.UUID) -> None:
    """ids_roundtrip#1, ids_roundtrip#2, ids_roundtrip#3, serde_roundtrip#1."""
    an_id = kind.parse(value)

    for again in (
        kind.parse(str(an_id)),
        kind.parse(json.loads(json.dumps(str(an_id)))),
        kind.parse(an_id.bytes),
        pickle.loads(pickle.dumps(an_id)),
        copy.deepcopy(an_id),
    ):
        assert again == an_id
        assert type(again) is kind


@KINDS
@given(value=st.uuids())
def test_an_id_made_from_a_uuid_is_that_uuid(kind: type[Id], value: uuid.UUID) -> None:
    """ids_roundtrip#4, ids_roundtrip#5, ids_roundtrip#6."""
    an_id = kind.parse(value)

    assert an_id == value
    assert hash(an_id) == hash(value)
    assert isinstance(an_id, uuid.UUID)
    assert an_id.bytes == value.bytes


@KINDS
@pytest.mark.parametrize("text", [TEXT, TEXT.upper(), TEXT.replace("-", ""), f"urn:uuid:{TEXT}"])
def test_every_text_form_of_a_uuid_is_read(kind: type[Id], text: str) -> None:
    assert str(kind.parse(text)) == TEXT


def test_an_id_that_has_its_kind_already_is_kept_as_it_is() -> None:
    run_id = RunId.new()

    assert RunId.parse(run_id) is run_id
    assert type(TaskId.parse(run_id)) is TaskId


@KINDS
@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "x",
        TEXT[:-1],
        TEXT + "0",
        f" {TEXT}",
        f"{TEXT}\n",
        f"{{{TEXT}}}",
        TEXT.replace("a", "g"),
        "018bcfe568-00-7000-8000-00000000000a",
        "018bcfe56800700080000000000000_a",
        "\u0660" * 32,
        "0" * 100_000,
        b"",
        bytes(15),
        bytes(17),
        TEXT.encode(),
        bytearray(16),
        None,
        7,
        1.5,
        True,
        ["a"],
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_not_an_id_is_refused_and_the_field_named(kind: type[Id], value: object) -> None:
    with pytest.raises(InvalidSubmission) as refusal:
        kind.parse(value, field="parent")  # type: ignore[arg-type]

    assert list(refusal.value.facts["problems"]) == ["parent"]  # type: ignore[call-overload]
    assert isinstance(refusal.value, ValueError)
    assert len(str(refusal.value)) < 200


@KINDS
@pytest.mark.parametrize("nil", [NIL, uuid.UUID(int=0), str(uuid.UUID(int=0)), "0" * 32])
def test_the_nil_id_is_refused_unless_it_is_asked_for(kind: type[Id], nil: str | uuid.UUID | bytes) -> None:
    with pytest.raises(InvalidSubmission, match=r"field.*nil"):
        kind.parse(nil, field="field")

    assert kind.parse(nil, allow_nil=True).bytes == NIL
    assert id_bytes(nil) == NIL


@KINDS
def test_an_id_shows_its_kind_and_cannot_be_changed(kind: type[Id]) -> None:
    an_id = kind.parse(TEXT)

    assert repr(an_id) == f"{kind.__name__}('{TEXT}')"
    with pytest.raises(TypeError):
        an_id.int = 1  # type: ignore[misc]
    with pytest.raises((AttributeError, TypeError)):
        an_id.note = "x"


# --- fresh ids -------------------------------------------------------------------------------------------------------


@KINDS
def test_fresh_ids_differ_and_increase(kind: type[Id]) -> None:
    """ids_roundtrip#7, ids_roundtrip#8, ids_roundtrip#9, mixed_attempt_outcomes/02 (its first half)."""
    fresh = [kind.new() for _ in range(2_000)]

    assert len(set(fresh)) == len(fresh)
    assert sorted(fresh) == fresh
    assert all(type(an_id) is kind for an_id in fresh)


@KINDS
def test_a_fresh_id_is_a_version_7_uuid_of_the_present(kind: type[Id], monkeypatch: pytest.MonkeyPatch) -> None:
    later_ns = 4_000_000_000_123_456_789
    monkeypatch.setattr(ids, "time_ns", lambda: later_ns)
    monkeypatch.setattr(ids, "_process_ids", ids._ProcessIds())

    an_id = kind.new()

    assert (an_id.version, an_id.variant) == (7, uuid.RFC_4122)
    assert an_id.int >> 80 == later_ns // 1_000_000


def test_fresh_ids_increase_across_kinds_and_while_the_clock_stands_or_steps_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    instants_ns = iter([5_000_000, 5_000_000, 4_999_000, 1_000, 0, 5_000_999, 5_001_000])
    monkeypatch.setattr(ids, "_process_ids", ids._ProcessIds())
    monkeypatch.setattr(ids, "time_ns", lambda: next(instants_ns))

    made = [
        kind.new().bytes if kind else fresh_id_bytes()
        for kind in (TaskId, RunId, None, AttemptId, TaskId, RunId, RunId)
    ]

    assert sorted(set(made)) == made


def test_threads_never_get_the_same_id_and_each_sees_its_own_increase() -> None:
    with ThreadPoolExecutor(4) as threads:
        per_thread = list(threads.map(lambda _: [fresh_id_bytes() for _ in range(2_000)], range(4)))

    assert len({raw for made in per_thread for raw in made}) == 8_000
    assert all(sorted(made) == made for made in per_thread)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_makes_other_ids_than_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "time_ns", lambda: NOW_US * 1000)
    fresh_id_bytes()
    readable, writable = os.pipe()

    child = os.fork()
    if child == 0:
        os.write(writable, fresh_id_bytes())
        os._exit(0)
    parents = fresh_id_bytes()
    os.waitpid(child, 0)
    os.close(writable)
    childs = os.read(readable, 16)
    os.close(readable)

    assert len(childs) == 16
    assert childs != parents


# --- the source ------------------------------------------------------------------------------------------------------


@given(
    instants=st.lists(
        st.integers(NOW_US, NOW_US + 5_000)
        | st.integers(0, ID_INSTANT_LAST + 10_000)
        | st.integers(-10, 2_000)
        | st.just(2**64 - 1),
        max_size=60,
    ),
    seed=st.integers(0, 2**32),
)
@example(instants=[NOW_US] * 10, seed=0)
@example(instants=[2**64 - 1, 2**64 - 1, ID_INSTANT_LAST, 0], seed=0)
def test_a_source_gives_strictly_increasing_version_7_ids_whatever_the_clock_does(
    instants: list[int], seed: int
) -> None:
    ids_of = source(seed)

    made = [ids_of.next(now_us) for now_us in instants]

    assert all(before < after for before, after in pairwise(made))
    assert all((value.version, value.variant) == (7, uuid.RFC_4122) for value in map(as_uuid, made))


@given(now_us=st.integers(1, ID_INSTANT_LAST))
@example(now_us=ID_INSTANT_LAST)
def test_an_id_carries_the_millisecond_and_its_fraction(now_us: int) -> None:
    value = int.from_bytes(source().next(now_us), "big")

    assert value >> 80 == now_us // 1000
    assert (value >> 64) & 0xFFF == now_us % 1000 * 4096 // 1000


def test_ids_of_one_source_sort_by_microsecond_even_against_those_of_another() -> None:
    one, other = source(1), source(2)

    interleaved = [(one if at % 2 else other).next(NOW_US + at) for at in range(3_000)]

    assert sorted(interleaved) == interleaved


def test_the_same_seed_and_instants_make_the_same_ids_and_another_seed_others() -> None:
    instants = [NOW_US + at * 137 for at in range(500)]
    one, same, other = source(1), source(1), source(2)

    made = [one.next(now_us) for now_us in instants]

    assert [same.next(now_us) for now_us in instants] == made
    assert not {other.next(now_us) for now_us in instants} & set(made)


@pytest.mark.parametrize("drawn", [bytes(8), b"\xff" * 8], ids=["all zeros", "all ones"])
def test_an_extreme_draw_leaves_the_layout_whole_and_ids_increasing(drawn: bytes) -> None:
    ids_of = IdSource(lambda _: drawn)

    made = [ids_of.next(NOW_US) for _ in range(1_000)]

    assert sorted(set(made)) == made
    assert {(value.version, value.variant) for value in map(as_uuid, made)} == {(7, uuid.RFC_4122)}


def test_randomness_is_drawn_once_for_a_millisecond() -> None:
    draws: list[int] = []

    def random_bytes(count: int) -> bytes:
        draws.append(count)
        return bytes(count)

    ids_of = IdSource(random_bytes)
    draws.clear()
    for now_us in range(5_000_000, 5_003_000):
        ids_of.next(now_us)

    assert len(draws) == 3


def as_uuid(raw: bytes) -> uuid.UUID:
    return uuid.UUID(bytes=raw)


def test_a_derived_id_is_the_same_each_time_and_comes_after_those_before_its_base() -> None:
    earlier, base = fresh_id_bytes(), fresh_id_bytes()
    while base[:8] == earlier[:8]:  # the clock tells no two of them apart
        base = fresh_id_bytes()
    labels = [b"%d" % n for n in range(1_000)]

    derived = [derived_id(base, label) for label in labels]

    assert derived == [derived_id(base, label) for label in labels]
    assert len(set(derived)) == len(labels)
    assert min(derived) > earlier
    assert all(TaskId(bytes=each).version == 7 for each in derived)
