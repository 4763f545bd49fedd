"""The gate is told of each part once, and of none that has gone by that it passed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.contracts import Decision, Verdict
from pipeline.acted import Acted
from pipeline.config import LineSettings
from pipeline.outputs.reject import RECENT
from pipeline.outputs.told import Told
from pipeline.stream import Stream, open_stream
from tests.pipeline.test_sink import line_of

GATE_MS = 500.0
MANY = 3 * RECENT  # more than the signal's own file remembers


@pytest.fixture
def stream(redis_url: str, namespace: str) -> Iterator[Stream]:
    """The stream of this test."""
    with open_stream(redis_url, namespace) as opened:
        yield opened


@pytest.fixture
def line(tmp_path: Path, redis_url: str, namespace: str) -> LineSettings:
    """A line with a gate."""
    return line_of(tmp_path, redis_url, namespace)


def verdict(stream: Stream, number: int, decision: Decision, age_ms: float = 0.0) -> Verdict:
    """On a part exposed so long ago."""
    captured_ns = stream.now_ns() - int(age_ms * 1e6)
    return Verdict(
        frame_id=f"left/1-{number}",
        camera="left",
        decision=decision,
        captured_ns=captured_ns,
        decided_ns=captured_ns + 1,
    )


def told(line: LineSettings) -> dict[str, str]:
    """Decisions in the signal's file, by frame id."""
    signal = json.loads((line.run_dir / "reject.json").read_text())
    return {one["frame_id"]: one["decision"] for one in signal["recent"]}


def test_a_part_is_signalled_once_however_late_it_is_read_again(
    line: LineSettings, stream: Stream
) -> None:
    """A sink that died with a full queue reads hundreds again; the gate hears of none of them."""
    verdicts = [verdict(stream, number, Decision.FAIL) for number in range(MANY)]
    for _ in range(2):
        with Acted(line.run_dir / "sink.told") as record:
            Told(stream, line, {"left": GATE_MS}, record).tell(verdicts)
    assert json.loads((line.run_dir / "reject.json").read_text())["sequence"] == MANY


def test_a_pass_that_is_read_after_its_gate_opens_nothing(
    line: LineSettings, stream: Stream, redis_url: str, namespace: str
) -> None:
    """The gate has rejected that part by now, and another one lies before it."""
    late = [
        verdict(stream, 1, Decision.PASS, age_ms=2 * GATE_MS),
        verdict(stream, 2, Decision.FAIL, age_ms=2 * GATE_MS),
        verdict(stream, 3, Decision.PASS, age_ms=-60_000),
    ]
    with (
        open_stream(redis_url, namespace) as fresh,  # as that of a sink that has just begun
        Acted(line.run_dir / "sink.told") as record,
    ):
        Told(fresh, line, {"left": GATE_MS}, record).tell(late)
    assert told(line) == {"left/1-1": "UNDECIDED", "left/1-2": "FAIL", "left/1-3": "PASS"}
