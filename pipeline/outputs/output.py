"""The seam every output stands behind."""

from __future__ import annotations

import threading
from typing import Protocol

from engines.contracts import InspectionError
from pipeline.stream import VerdictDelivery


class StillOwed(InspectionError):
    """The output was told to end before it could act: the verdict comes again at the next start."""


class Output(Protocol):
    """Acts on verdicts, one at a time, in a thread of its own."""

    name: str

    def act(self, delivery: VerdictDelivery, closing: threading.Event) -> None:
        """Act on one verdict; the same one may come again after a crash.

        Raises StillOwed where it would still have to wait once ``closing`` is set; whatever else it
        raises is counted, and the next verdict follows.
        """
        ...

    def rest(self) -> None:
        """Called when there is nothing to act on."""
        ...

    def close(self) -> None:
        """Release what the output holds."""
        ...
