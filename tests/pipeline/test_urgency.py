"""Who hurries does so alone, and for as long as it says."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from pipeline.urgency import URGENT_NICENESS, hurry, hurrying


def niceness() -> int:
    """Of the calling thread."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def seen_in_a_thread(look: Callable[[], list[int]]) -> list[int]:
    """What a thread of its own sees."""
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.extend(look()))
    thread.start()
    thread.join()
    return seen


def test_who_hurries_goes_before_others_where_the_machine_allows_it() -> None:
    """Its own thread alone, and without the right nothing happens."""

    def look() -> list[int]:
        hurry()
        return [niceness()]

    before = niceness()
    assert seen_in_a_thread(look)[0] in {URGENT_NICENESS, before}
    assert niceness() == before


def test_a_hurry_ends() -> None:
    """What is started afterwards is as patient as before."""

    def look() -> list[int]:
        before = niceness()
        with hurrying():
            during = niceness()
        return [before, during, niceness()]

    before, during, after = seen_in_a_thread(look)
    assert during in {URGENT_NICENESS, before}
    assert after == before
