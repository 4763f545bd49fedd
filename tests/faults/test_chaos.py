"""The long run in short: one round of a seed, and a schedule that can be drawn again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.injuries import INJURIES, drawn
from tests.faults.report import totals, write_report
from tests.faults.rounds import run_round

pytestmark = pytest.mark.slow

SECONDS = 8.0


def test_a_short_round_keeps_every_invariant(tmp_path: Path) -> None:
    """Faults drawn by a seed, real processes, and a report of what they did."""
    shown = run_round(0, 11, SECONDS, tmp_path / "round", None)
    assert not shown.wrongs
    told = totals([shown])
    assert (told["residual"], told["duplicates"]) == (0, 0)
    assert told["faults"] >= 1
    path = write_report(tmp_path, [shown], {}, seed=11)
    assert f"{told['faults']} faults over {told['captured']} frames" in path.read_text()


def test_a_seed_draws_the_same_faults_again() -> None:
    """And every kind is drawn where its conditions are met."""
    first, again = (_schedule(random.Random("7/0")) for _ in range(2))
    assert first == again
    assert set(first) == set(INJURIES)


def _schedule(rng: random.Random) -> list[str]:
    return [drawn(rng, has_network=True, has_clock=True) for _ in range(1000)]
