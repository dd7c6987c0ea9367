"""The index of acceptance scenarios is complete, honest about what is left out, and up to date."""

from __future__ import annotations

import pytest

from scripts import scenario_index as index

IN_SCOPE = "1, 3-11, 13, 17-24, 26-32, 34, 37-45, 47 and 66-68"
"""The numbers of section 5 that this release must have (9 and 19 may be different)."""


def test_every_scenario_is_covered_or_has_its_reason_and_no_test_names_one_that_does_not_exist() -> None:
    assert index.problems(index.expected(), index.cited()) == []


def test_the_page_is_up_to_date() -> None:
    page = index.page(index.expected(), index.cited())

    assert index.PAGE.read_text() == page, "run python scripts/scenario_index.py"


def test_what_this_release_must_have_is_covered_by_tests() -> None:
    wanted, tests = index.expected(), index.cited()

    for id in sorted(index.ids_in(f"section 5, numbers {IN_SCOPE}")):
        assert tests.get(id), id
        assert not wanted[id] or id == "section 5 number 9", wanted[id]


def test_the_catalogue_is_all_there() -> None:
    """As many as the catalogue counts: 129 and 7 with slashes, 325 with number signs, 69 that are missing."""
    ids = list(index.expected())

    assert sum("/" in id for id in ids) == 129 + 7
    assert sum("#" in id for id in ids) == 325
    assert sum(id.startswith("section 5") for id in ids) == 69


@pytest.mark.parametrize(
    ("said", "ids"),
    [
        ("retry_cap/01", "retry_cap/01"),
        ("retry_cap/01, 02 and retry_cap/05", "retry_cap/01 retry_cap/02 retry_cap/05"),
        ("kill_recovery/01 and /07: fifty tasks", "kill_recovery/01 kill_recovery/07"),
        ("retry_cap/02 to /04", "retry_cap/02 retry_cap/03 retry_cap/04"),
        ("max_attempts#1, #3, 5 of them", "max_attempts#1 max_attempts#3"),
        ("ids_roundtrip#8-ids_roundtrip#9.", "ids_roundtrip#8 ids_roundtrip#9"),
        ("ids_roundtrip#8–10", "ids_roundtrip#8 ids_roundtrip#9 ids_roundtrip#10"),
        ("engine.lease_expiry#2", "engine.lease_expiry#2"),
        ("Section 5 numbers 23 and 24: the zombie", "section 5 number 23|section 5 number 24"),
        ("(section 5, 8, 13 and 17)", "section 5 number 8|section 5 number 13|section 5 number 17"),
        ("S5-7, S5-68: in short", "section 5 number 7|section 5 number 68"),
        ("Scenario 62, second half", "section 5 number 62"),
        ("SEMANTICS section 5: blocked, and section 6 number 3", ""),
        ("and/or 24", ""),
    ],
)
def test_docstrings_are_read_as_they_are_written(said: str, ids: str) -> None:
    separator = "|" if "section" in ids else " "

    assert index.ids_in(said) == set(filter(None, ids.split(separator)))


def test_what_is_wrong_with_an_index_is_told() -> None:
    wanted = {"a/01": "", "a/02": "later: schedules", "a/03": "because"}

    found = index.problems(wanted, {"b/01": ["test_x.py"]})

    assert len(found) == 3
    assert found[0] == "no test covers a/01"
    assert "a/03" in found[1]
    assert found[2] == "test_x.py names b/01, which does not exist"


def test_a_reason_is_shown_beside_the_tests_of_the_part_that_holds() -> None:
    page = index.page(
        {"a/01": "", "a/02": "later: x", "a/03": "later: y"}, {"a/01": ["tests/t.py"], "a/03": ["tests/u.py"]}
    )

    assert "| a/01 | `t.py` |" in page
    assert "| a/02 | later: x |" in page
    assert "| a/03 | later: y (`u.py`) |" in page
    assert "Of 3 scenarios 1 are covered, 2 belong" in page
