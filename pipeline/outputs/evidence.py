"""Every verdict into its lot's chain of hashes; see ``pipeline.evidence``."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.evidence.lots import Lots
    from pipeline.stream import VerdictDelivery


class Evidence:
    """Chains verdicts; what the archive keeps of them is chained by the archive."""

    name = "evidence"

    def __init__(self, lots: Lots) -> None:
        self._lots = lots

    def act(self, delivery: VerdictDelivery, closing: threading.Event) -> None:  # noqa: ARG002 - Output
        """Chain one verdict; a full disk raises OSError."""
        self._lots.verdict(delivery)
        self._lots.sync()

    def rest(self) -> None:
        """Let entries reach the disk."""
        self._lots.sync()

    def close(self) -> None:
        """The chains are closed by whoever opened them, after the archive has ended too."""
