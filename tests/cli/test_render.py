"""How results look: widths, times, sizes, and texts that cannot move the cursor."""

from __future__ import annotations

import doctest
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actionqueue import RunId
from actionqueue.cli import render
from actionqueue.cli.render import (
    Column,
    ago,
    cut,
    fields,
    moment,
    one_line,
    plain,
    short_id,
    size,
    span,
    table,
    width_of,
)

NOW = datetime(2026, 11, 24, 9, 0, 0, tzinfo=UTC)


def test_the_examples_in_the_module_hold() -> None:
    assert doctest.testmod(render).failed == 0


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        ({"microseconds": 0}, "0s"), ({"microseconds": 7}, "7us"), ({"microseconds": 1234}, "1.2ms"),
        ({"milliseconds": 45}, "45ms"), ({"seconds": 9, "milliseconds": 990}, "9.9s"), ({"seconds": 59}, "59s"),
        ({"minutes": 1}, "1m"), ({"minutes": 12, "seconds": 27}, "12m27s"), ({"hours": 2, "minutes": 5}, "2h5m"),
        ({"days": 3, "hours": 4, "minutes": 59}, "3d4h"), ({"days": 400}, "400d"),
    ],
)  # fmt: skip
def test_durations_are_short(length: dict[str, int], expected: str) -> None:
    assert span(timedelta(**length)) == expected


def test_ages_look_both_ways() -> None:
    assert ago(NOW - timedelta(seconds=90), NOW) == "1m30s"
    assert ago(NOW + timedelta(seconds=90), NOW) == "in 1m30s"
    assert ago(None, NOW) == "-"
    assert moment(NOW.astimezone()) == "2026-11-24 09:00:00Z"


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (300 << 30, "300 GiB")],
)
def test_sizes(count: int, expected: str) -> None:
    assert size(count) == expected


def test_ids_and_instants_as_json() -> None:
    id = RunId("018bcfe5-6800-7000-8000-000000000001")

    assert plain({"id": id, "at": NOW}) == {"id": str(id), "at": "2026-11-24T09:00:00Z"}
    assert short_id(id) == "00000001"
    assert short_id(UUID(int=10)) == "0000000a"


@given(st.text())
def test_one_line_has_no_control_characters(text: str) -> None:
    assert one_line(text).isprintable()
    assert len(one_line(text)) == len(text)


@given(st.text(), st.integers(1, 40))
def test_a_cut_text_is_never_wider_than_asked(text: str, width: int) -> None:
    assert width_of(cut(text, width)) <= max(width, 1)


@given(st.lists(st.tuples(st.text(max_size=60), st.text(max_size=30)), max_size=5), st.integers(10, 80))
def test_no_line_of_a_table_is_wider_than_the_terminal(rows: list[tuple[str, str]], width: int) -> None:
    text = table([Column("NAME", flexible=True), Column("COUNT", right=True)], rows, width)

    assert all(width_of(line) <= width for line in text.split("\n"))
    assert text.count("\n") == len(rows)


def test_columns_that_are_empty_are_left_out() -> None:
    assert table([Column("A"), Column("B"), Column("C")], [["1", "", "3"]]) == "A  C\n1  3"


def test_wide_characters_align() -> None:
    lines = table([Column("NAME"), Column("N")], [["日本", "1"], ["ab", "2"]]).split("\n")

    assert lines == ["NAME  N", "日本  1", "ab    2"]


def test_long_values_go_on_below_themselves() -> None:
    assert fields([("name", "one two three four five"), ("none", None)], 26) == "name  one two three four\n      five"


def test_without_a_terminal_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)

    assert render.columns_of_terminal() is None
    assert table([Column("A", flexible=True)], [["x" * 300]], None).endswith("x" * 300)
