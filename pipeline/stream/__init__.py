"""Redis Streams under the promise that every frame gets exactly one verdict."""

from __future__ import annotations

from pipeline.stream.facts import Delivery, Ledger, Memory, Standing, VerdictDelivery, ledger_field
from pipeline.stream.frames import Placed, Stream, open_stream

__all__ = [
    "Delivery",
    "Ledger",
    "Memory",
    "Placed",
    "Standing",
    "Stream",
    "VerdictDelivery",
    "ledger_field",
    "open_stream",
]
