"""The list of safeguards that are broken once each, beside the code as it is."""

from __future__ import annotations

import pytest

from tests.faults.mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_what_is_to_be_broken_is_there(mutant: Mutant) -> None:
    """Once, so that ``make mutants`` breaks what it says."""
    assert (ROOT / mutant.path).read_text("utf-8").count(mutant.whole) == 1
