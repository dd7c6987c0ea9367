"""The list of mutations (``make mutants``) still fits the code that it breaks."""

from __future__ import annotations

import pytest

from scripts.mutants import applies
from scripts.mutations import MUTATIONS, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each.name)
def test_a_mutation_finds_its_text_exactly_once(mutation: Mutation) -> None:
    assert applies(mutation)
    assert mutation.old != mutation.new


def test_no_two_mutations_have_one_name() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 28
