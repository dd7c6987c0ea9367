"""docs/explain.md: its tables have every reason, release and note there is, and no other."""

from __future__ import annotations

import re
import typing

import pytest

from actionqueue import reasons
from actionqueue.core import explain
from actionqueue.core.reasons import Note, Reason, Release
from actionqueue.core.sentences import ID_DIGITS
from tests.docs_programs import ROOT

PAGE = (ROOT / "docs" / "explain.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("heading", "union"), [("Reasons", Reason), ("Releases", Release), ("Notes", Note)])
def test_every_type_has_its_row_and_can_be_imported(heading: str, union: object) -> None:
    told = re.findall(r"^\| `(\w+)` \|", PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0], re.MULTILINE)
    there = [kind.__name__ for kind in typing.get_args(union)]
    assert sorted(told) == sorted(there)
    assert set(there) <= set(reasons.__all__)


def test_the_bounds_it_tells_are_those_there_are() -> None:
    words = {3: "three", 5: "five", 8: "eight", 20: "twenty"}
    said = f"{words[explain.DEPTH_MAX]} deep, {words[explain.BREADTH_MAX]} of each, {words[explain.RUNS_MAX]} in all"
    assert said in " ".join(PAGE.split())
    assert f"last {words[ID_DIGITS]} digits" in PAGE
