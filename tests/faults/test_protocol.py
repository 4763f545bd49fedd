"""The delivery protocol, explored: two workers, three frames, anybody may die at any moment."""

from __future__ import annotations

import pytest

from tests.faults.protocol import Rules, explore

pytestmark = pytest.mark.slow

STATES, TRANSITIONS = 50_000, 500_000  # fewer would mean that something is no longer explored


def test_every_reachable_state_keeps_the_promise() -> None:
    """No loss, no second verdict, no stale one, in any order of any crashes."""
    found = explore(3)
    assert not found.broken, found.told()
    assert (found.states > STATES, found.transitions > TRANSITIONS) == (True, True)


@pytest.mark.parametrize(
    ("rules", "broken", "length"),
    [
        (Rules(fences=False), "no stale verdict stands", 5),
        (Rules(answers_once=False), "no frame has two verdicts", 4),
        (Rules(reclaims=False), "workers answer without the gate keeper", 4),
        (Rules(quarantines=False), "no entry is tried for ever", 5),
        (Rules(guards_epoch=False), "no frame is lost", 6),
        (Rules(remembers=False), "no frame has two verdicts", 5),
    ],
)
def test_each_safeguard_is_needed(rules: Rules, broken: str, length: int) -> None:
    """Without it the explorer finds a shortest way to a broken promise."""
    found = explore(2, rules)
    assert found.broken == broken, found.told()
    assert len(found.trace) == length, found.told()
