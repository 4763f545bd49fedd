"""kill -9 of the embedded server, mid-stream."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from engines.contracts import Decision, Reason, Verdict
from pipeline.config import LineSettings, load_line
from pipeline.stream import Ledger, open_stream
from pipeline.takes import run_watched
from tests.tiny_line import write_line, write_parts
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

FRAMES = 100


@dataclass
class Loss:
    """Kills a line's server while its sink stands still, so that verdicts are written unread."""

    settings: LineSettings
    unread: int = 0  # verdicts that no sink had acted on when the server died
    error: list[BaseException] = field(default_factory=list)

    def run(self) -> None:
        """Once a quarter of the parts is recorded: stop the sink, kill the server, go on."""
        try:
            self._run()
        except BaseException as error:
            self.error.append(error)

    def _run(self) -> None:
        folder, record = self.settings.run_dir / "redis", self.settings.run_dir / "verdicts.jsonl"
        wait_for(lambda: record.exists() and len(_lines(record)) >= FRAMES // 4)
        sink = _process("sink")
        sink.suspend()
        recorded = len(_lines(record))
        with open_stream(f"unix://{folder / 'redis.sock'}", self.settings.redis.namespace) as seen:
            wait_for(lambda: _answered(seen.ledger("left")) >= recorded + 4)
            self.unread = _answered(seen.ledger("left")) - recorded
        os.kill(int((folder / "redis.pid").read_text()), signal.SIGKILL)
        sink.resume()


def test_a_killed_server_costs_no_part_its_verdict_nor_the_report_its_totals(
    tmp_path: Path, grey_bundle: Path
) -> None:
    """A new server, a new epoch: each part is acted on once, and the report counts them all."""
    settings, report, verdicts, loss = _run_with_loss(tmp_path, grey_bundle)
    assert loss.unread >= 4
    assert Counter(verdict.part_id for verdict in verdicts) == Counter(
        f"{number:04d}" for number in range(FRAMES)
    )
    assert len({verdict.frame_id.split("-")[0] for verdict in verdicts}) == 2
    decisions = Counter(verdict.decision for verdict in verdicts)
    restarted = decisions[Decision.UNDECIDED]
    assert restarted >= loss.unread
    assert {v.reason for v in verdicts if v.reason} == {Reason.TRANSPORT_RESTART}
    assert (report["captured"], report["residual"]) == (FRAMES, 0)
    assert (report["pass"], report["fail"]) == (decisions[Decision.PASS], decisions[Decision.FAIL])
    assert report["undecided"] == {Reason.TRANSPORT_RESTART: restarted}
    again = run_watched(settings, tmp_path / "line.yaml", lambda _: None, threading.Event())
    assert (again["captured"], again["residual"], again["undecided"]) == (FRAMES, 0, {})


def _run_with_loss(
    folder: Path, bundle: Path
) -> tuple[LineSettings, dict[str, Any], list[Verdict], Loss]:
    write_parts(folder / "parts", FRAMES)
    source = {"kind": "folder", "path": "parts", "rate_hz": 20}
    camera = {"source": source, "gate_ms": 20_000, "credits": 12}
    line = write_line(folder, bundle, camera=camera, sinks={"jsonl": {}})
    settings = load_line(line)
    loss = Loss(settings)
    killer = threading.Thread(target=loss.run)
    killer.start()
    report = run_watched(settings, line, lambda _: None, threading.Event())
    killer.join()
    assert not loss.error
    lines = _lines(settings.run_dir / "verdicts.jsonl")
    return settings, report, [Verdict.model_validate_json(line) for line in lines], loss


def _answered(ledger: Ledger) -> int:
    return ledger.captured - ledger.residual


def _lines(record: Path) -> list[bytes]:
    return record.read_bytes().splitlines()


def _process(role: str) -> psutil.Process:
    """The line's process of this role, a child of ours."""
    [found] = [
        child
        for child in psutil.Process().children()
        if child.cmdline()[1:4] == ["-m", "pipeline", role]
    ]
    return found
