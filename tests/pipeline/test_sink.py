"""Verdicts reach the gate first and every output once; the gate is kept all the while."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engines.contracts import BadConfig, Decision, Reason, StreamLost, Verdict
from pipeline.acted import REMEMBERED, Acted
from pipeline.config import LineSettings
from pipeline.server import embedded_server
from pipeline.sink import Inbox, run_sink
from pipeline.stream import Stream, open_stream
from pipeline.wire import FrameEntry
from tests.tiny_line import good_part
from tests.waiting import wait_for


@pytest.fixture
def stream(redis_url: str, namespace: str) -> Iterator[Stream]:
    """The stream of this test."""
    with open_stream(redis_url, namespace) as opened:
        yield opened


def line_of(folder: Path, url: str, namespace: str, **sinks: Any) -> LineSettings:  # noqa: ANN401
    """A line of one camera with these sinks."""
    return LineSettings.model_validate(
        {
            "line": "tiny",
            "bundle": folder,
            "run_dir": folder / "run",
            "redis": {"url": url, "namespace": namespace},
            "cameras": [{"name": "left", "source": {"kind": "folder", "path": folder}}],
            "sinks": {"jsonl": {}, "reject": {}, **sinks},
            "log_level": "error",
        }
    )


@contextmanager
def sinking(line: LineSettings) -> Iterator[None]:
    """A sink in a thread; leaving stops it, and raises what it raised."""
    stop, errors = threading.Event(), []

    def run() -> None:
        try:
            run_sink(line, stop)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]


def undecided(number: int, reason: Reason = Reason.OVERRUN) -> Verdict:
    """An answer that ingest would give."""
    return Verdict(
        frame_id=f"left/1-{number}",
        camera="left",
        decision=Decision.UNDECIDED,
        reason=reason,
        captured_ns=1,
        decided_ns=2,
    )


def written(line: LineSettings) -> list[str]:
    """Frame ids in the sink's record."""
    path = line.run_dir / "verdicts.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [json.loads(text)["frame_id"] for text in lines]


def test_every_verdict_is_acted_on_once_over_restarts(
    tmp_path: Path, redis_url: str, namespace: str, stream: Stream
) -> None:
    """What came while no sink ran is caught up; nothing is written or signalled twice."""
    line = line_of(tmp_path, redis_url, namespace)
    for first in (1, 21):
        for number in range(first, first + 20):
            stream.refuse(undecided(number))
        with sinking(line):
            wait_for(lambda at=first: len(written(line)) == at + 19)
    assert written(line) == [f"left/1-{number}" for number in range(1, 41)]
    assert json.loads((line.run_dir / "reject.json").read_text())["sequence"] == 40


def test_a_stopped_sink_reads_to_the_end_first(
    tmp_path: Path, redis_url: str, namespace: str, stream: Stream
) -> None:
    """Stopping drains the stream, then the outputs."""
    line, stop = line_of(tmp_path, redis_url, namespace), threading.Event()
    for number in range(1, 151):
        stream.refuse(undecided(number))
    stop.set()
    run_sink(line, stop)
    assert len(written(line)) == 150
    assert not stream.read_verdicts(["left"], "sink:tiny", "sink", 10, 10)


def test_a_line_has_one_sink(
    tmp_path: Path, redis_url: str, namespace: str, stream: Stream
) -> None:
    """A second one is refused before it has read anything; the first one goes on."""
    line = line_of(tmp_path, redis_url, namespace)
    with sinking(line):
        wait_for((line.run_dir / "reject.json").exists)
        with pytest.raises(BadConfig, match="another sink of line tiny"):
            run_sink(line, threading.Event())
        stream.refuse(undecided(1))
        wait_for(lambda: written(line) == ["left/1-1"])


def test_a_frame_answered_twice_is_acted_on_once(tmp_path: Path) -> None:
    """A server that forgot makes a second verdict on a frame; the sink knows the first."""
    with embedded_server(tmp_path / "a") as url, open_stream(url, "test") as stream:
        line = line_of(tmp_path, url, "test")
        stream.refuse(undecided(1))
        with sinking(line):
            wait_for(lambda: written(line) == ["left/1-1"])
    with embedded_server(tmp_path / "b") as url, open_stream(url, "test") as stream:
        line = line_of(tmp_path, url, "test")
        stream.refuse(undecided(1, Reason.TRANSPORT_RESTART))
        stream.refuse(undecided(2))
        with sinking(line):
            wait_for(lambda: written(line) == ["left/1-1", "left/1-2"])
    signal = json.loads((line.run_dir / "reject.json").read_text())
    assert [known["frame_id"] for known in signal["recent"]] == ["left/1-1", "left/1-2"]


def test_verdicts_that_flow_are_read_together(
    tmp_path: Path, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a read that found some the next one waits a moment, and no beat is late for it."""
    pauses_s: list[float] = []
    stop = threading.Event()
    monkeypatch.setattr(stop, "wait", pauses_s.append)
    with Acted(tmp_path / "acted") as acted:
        inbox = Inbox(stream, ["left"], "sink", acted, stop, gather_s=0.1)
        for number in (1, 2):
            stream.refuse(undecided(number))
            assert len(inbox.read(50)) == 1
    assert pauses_s == [0.05]


def test_the_sink_keeps_the_gate(
    tmp_path: Path, redis_url: str, namespace: str, stream: Stream
) -> None:
    """A frame that no worker answers is UNDECIDED(deadline) at every output before its gate.

    It has as long to it as ingest asks for; this line's keeper rests half a second.
    """
    line = line_of(tmp_path, redis_url, namespace, margin_ms=100)
    with sinking(line):
        wait_for((line.run_dir / "reject.json").exists)
        now = stream.now_ns()
        stream.admit(
            FrameEntry("left/1-1", "left", now, now + 1_000_000_000, good_part(1), part_id="7")
        )
        wait_for(lambda: written(line))
    [record] = (line.run_dir / "verdicts.jsonl").read_text().splitlines()
    verdict = Verdict.model_validate_json(record)
    assert (verdict.reason, verdict.part_id) == (Reason.DEADLINE, "7")
    assert verdict.decided_ns < now + 1_000_000_000


def test_a_dead_receiver_delays_neither_gate_nor_record(
    tmp_path: Path, redis_url: str, namespace: str, stream: Stream
) -> None:
    """With webhook and broker away, everything else is written; what is owed stays pending."""
    away = {"host": "127.0.0.1", "port": 9}
    line = line_of(
        tmp_path, redis_url, namespace, mqtt=away, webhook={"url": "http://127.0.0.1:9/"}
    )
    for number in range(1, 31):
        stream.refuse(undecided(number))
    with sinking(line):
        wait_for(lambda: len(written(line)) == 30)
        signal = json.loads((line.run_dir / "reject.json").read_text())
        assert signal["frame_id"] == "left/1-30"
    assert len(stream.read_verdicts(["left"], "sink:tiny", "sink", 100, 10)) == 30


def test_the_stream_forgets_what_was_acted_on(
    tmp_path: Path, redis_url: str, namespace: str, stream: Stream
) -> None:
    """Only the newest verdicts stay for those who look on."""
    line = line_of(tmp_path, redis_url, namespace)
    for number in range(1, 401):
        stream.refuse(undecided(number))
    with sinking(line):
        wait_for(lambda: len(stream.tail_verdicts("left", 1000)) <= 256)
    assert stream.tail_verdicts("left", 1)[0].verdict.frame_id == "left/1-400"


def test_the_heartbeat_stops_with_the_server(tmp_path: Path) -> None:
    """Without a server no verdict can come: the signal falls silent, and silence means reject."""
    with embedded_server(tmp_path / "server") as url:
        line = line_of(tmp_path, url, "test")
        path, stop = line.run_dir / "reject.json", threading.Event()
        outcome: list[BaseException] = []

        def run() -> None:
            try:
                run_sink(line, stop)
            except StreamLost as error:
                outcome.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        wait_for(path.exists)
        first = json.loads(path.read_text())["heartbeat_ns"]
        wait_for(lambda: json.loads(path.read_text())["heartbeat_ns"] > first)
    wait_for(lambda: _is_silent(path))
    stop.set()
    thread.join()
    assert len(outcome) == 1


def _is_silent(path: Path) -> bool:
    before = path.read_bytes()
    time.sleep(0.4)
    return path.read_bytes() == before


def test_what_was_acted_on_is_remembered_within_bounds(tmp_path: Path) -> None:
    """The newest ids survive a restart; the file does not grow for ever."""
    path = tmp_path / "sink.acted"
    with Acted(path) as acted:
        for first in range(0, 3 * REMEMBERED, 1000):
            acted.add({f"left/1-{number}": "pass" for number in range(first, first + 1000)})
    with Acted(path) as acted:
        assert f"left/1-{3 * REMEMBERED - 1}" in acted
        assert f"left/1-{2 * REMEMBERED}" in acted
        assert "left/1-0" not in acted
        assert acted.field(f"left/1-{3 * REMEMBERED - 1}") == "pass"
    assert len(path.read_text().splitlines()) <= 2 * REMEMBERED
