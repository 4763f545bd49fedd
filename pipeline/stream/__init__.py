"""Redis Streams under the promise that every frame gets exactly one verdict."""

from __future__ import annotations

from pipeline.stream.facts import Delivery, Ledger, Memory, VerdictDelivery
from pipeline.stream.frames import Stream, open_stream

__all__ = ["Delivery", "Ledger", "Memory", "Stream", "VerdictDelivery", "open_stream"]
