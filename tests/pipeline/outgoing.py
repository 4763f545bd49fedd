"""Verdicts as they come from the stream, for tests of what is done with them."""

from __future__ import annotations

import threading
from typing import Any

from engines.contracts import Decision, Reason, Verdict
from engines.images import encode_png
from pipeline.stream import VerdictDelivery
from tests.tiny_line import bad_part

OPEN = threading.Event()  # never set: the output is not told to end


def delivery(
    number: int,
    decision: Decision = Decision.FAIL,
    camera: str = "left",
    **fields: Any,  # noqa: ANN401
) -> VerdictDelivery:
    """A verdict as it comes from the stream; pictures where it did not pass."""
    verdict = Verdict(
        frame_id=f"{camera}/7-{number}",
        camera=camera,
        decision=decision,
        reason=Reason.DEADLINE if decision is Decision.UNDECIDED else None,
        captured_ns=1,
        decided_ns=2,
        **fields,
    )
    if decision is Decision.PASS:
        return VerdictDelivery(camera, f"7-{number}", verdict, b"", b"")
    picture = bad_part(number, (64, 64))
    mask = encode_png(picture[:, :, 0] > 250)
    return VerdictDelivery(camera, f"7-{number}", verdict, mask, encode_png(picture))
