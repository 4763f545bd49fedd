"""What labels of a metric may say: bounded sets, whatever frames, files and people call things."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable

from engines.contracts import Decision, Reason

OTHER = "other"  # what a foreign, hostile or surplus label value is counted under
NONE = "none"  # what an empty one is: a part without a recipe, a verdict without a reason
VALUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
VALUE_MAX = 64  # characters of a value that the line's own settings name

ROLES = ("ingest", "inspect", "sink", "run", "dashboard")
STAGES = ("queue", "inspect", "write")
OUTCOMES = ("captured", "pass", "fail", "undecided")
ANSWERS = ("agree", "false_reject", "unsure")  # of people who review rejects
MISSED = ("large", "full", "gone")  # why a full exposure was not kept

# A label with a closed set of values takes these and no other.
CLOSED: dict[str, frozenset[str]] = {
    "decision": frozenset(Decision),
    "reason": frozenset(Reason) | frozenset(MISSED),
    "role": frozenset(ROLES),
    "stage": frozenset(STAGES),
    "outcome": frozenset(OUTCOMES),
    "answer": frozenset(ANSWERS),
}
# A label with an open set takes so many values in the life of a process; a line's own come first.
OPEN_MAX = {"camera": 64, "recipe": 16, "category": 32, "output": 16}


class Labels:
    """Values that labels may take: a name nobody expected cannot make series without end.

    Closed sets are enumerated. An open label takes what a line expects, in its own words, then
    others that look like names, until ``OPEN_MAX``; everything else is ``other``, an empty value
    ``none``.
    """

    def __init__(self) -> None:
        self._known: dict[str, set[str]] = {label: set() for label in OPEN_MAX}
        self._lock = threading.Lock()

    def expect(self, label: str, values: Iterable[str]) -> None:
        """Keep places for what the line's settings name."""
        known = self._known[label]
        for value in values:
            if value.isprintable() and 0 < len(value) <= VALUE_MAX:
                self._admitted(known, value, OPEN_MAX[label])

    def bounded(self, label: str, value: str | None) -> str:
        """The value to count under."""
        if not value:
            return NONE
        if label in CLOSED:
            return str(value) if value in CLOSED[label] else OTHER
        known = self._known.get(label)
        if known is None or value in known:
            return value  # an undeclared label is refused by the metric itself
        return self._admitted(known, value, OPEN_MAX[label]) if VALUE.fullmatch(value) else OTHER

    def _admitted(self, known: set[str], value: str, most: int) -> str:
        with self._lock:
            if value in known or len(known) < most:
                known.add(value)
                return value
        return OTHER
