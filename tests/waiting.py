"""Waiting for what another process or thread will do: as long as a busy machine needs."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 90.0
LOOK_S = 0.01


def wait_for(
    what: Callable[[], object], patience_s: float = PATIENCE_S, *, look_s: float = LOOK_S
) -> None:
    """Return once ``what`` is true; fails where that does not happen in so many seconds."""
    until_s = time.monotonic() + patience_s
    while not what():
        assert time.monotonic() < until_s, "what was waited for never happened"
        time.sleep(look_s)
