"""Numbers and pictures of an entry have limits, so that nothing behind the wire meets worse."""

from __future__ import annotations

import json

import numpy as np
import pytest

from engines.contracts import BadFrame, Decision, Verdict
from pipeline import wire
from pipeline.wire import FrameEntry, entry_from, head_from, to_fields, verdict_fields, verdict_from

HUGE = 10**400


def head(**changes: object) -> bytes:
    """The head of a small frame with other values."""
    entry = FrameEntry("left/1-1", "left", 5, 9, np.zeros((4, 4, 3), np.uint8))
    return json.dumps(json.loads(bytes(to_fields(entry)["head"])) | changes).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"captured_ns": HUGE},
        {"captured_ns": 2**63},
        {"deadline_ns": 2**64},
        {"deadline_ns": -1},
        {"plan": 2**31},
        {"plan": -HUGE},
        {"frame_size": [65_537, 1]},
        {"frame_size": [HUGE, HUGE]},
        {"crop": [0, 0, 10**9, 1]},
        {"crop": [-1, 0, 1, 1]},
        {"image_size": [65_536, 65_536]},
        {"image_size": [10**9, 1]},
        {"lot": "x" * 257},
        {"category": ["x"]},
    ],
)
def test_numbers_of_a_head_fit_their_machine_words(changes: dict[str, object]) -> None:
    """Stamps fit 64 bits, plans 32, sides are a camera's; else it is no frame."""
    fields = {b"head": head(**changes), b"image": bytes(48)}
    with pytest.raises(BadFrame):
        entry_from(fields)


def test_a_head_of_any_depth_is_no_frame() -> None:
    """Nesting ends in a refusal, not in the interpreter's limit."""
    for depth in (100, 1000, 8000):
        with pytest.raises(BadFrame):
            head_from(b'{"lot":' + b"[" * depth + b"]" * depth + b"}")


def test_stamps_of_a_verdict_can_be_reckoned_with() -> None:
    """What no clock says is no verdict: times are subtracted and divided behind the wire."""
    known = Verdict(
        frame_id="left/1-1", camera="left", decision=Decision.PASS, captured_ns=5, decided_ns=9
    )
    for change in ({"captured_ns": HUGE}, {"decided_ns": -HUGE}, {"captured_ns": 2**63}):
        record = json.dumps(known.model_dump(mode="json") | change).encode()
        with pytest.raises(BadFrame):
            verdict_from({b"verdict": record})


def test_pictures_of_a_verdict_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask, picture or map beyond any is no part of a verdict."""
    monkeypatch.setattr(wire, "MAX_PICTURE_BYTES", 1000)
    known = Verdict(
        frame_id="left/1-1", camera="left", decision=Decision.FAIL, captured_ns=5, decided_ns=9
    )
    for name in ("mask_png", "picture_png", "map_png"):
        fields = verdict_fields(known, **{name: bytes(1001)})
        with pytest.raises(BadFrame, match="too large"):
            verdict_from({key.encode(): value for key, value in fields.items()})
