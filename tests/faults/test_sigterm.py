"""SIGTERM under load: what is in flight is answered, nothing is left, and the end is in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from engines.contracts import ExitCode, Reason
from pipeline.config import load_line
from pipeline.crew import Member
from pipeline.stream import open_stream
from tests.faults.conftest import StubLine
from tests.faults.invariants import require_sound
from tests.faults.servers import HurtServer
from tests.faults.standing import Standing, standing
from tests.stub_line import stub_camera, write_stub_bundle
from tests.waiting import wait_for

DRAIN_S = 2.0
ENDED_S = 30.0  # for processes whose verdicts are all given, on a busy machine
SPARE_S = 1.0  # for the machine of a test
SLOW = {"start": (20_000_000, 0), "step": (120_000_000, 0), "finish": (10_000_000, 0)}


@pytest.fixture
def endings(monkeypatch: pytest.MonkeyPatch) -> dict[str, int | None]:
    """How each process of a line that was told to end has ended, by its label."""
    codes: dict[str, int | None] = {}
    end = Member.end

    def noted(member: Member, number: int, patience_s: float) -> None:
        end(member, number, patience_s)
        codes.setdefault(member.label, member.process.returncode if member.process else None)

    monkeypatch.setattr(Member, "end", noted)
    return codes


@contextmanager
def alone(
    line: Path, url: str, roles: Sequence[Sequence[str]]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """One process for each role, as on machines of their own; none outlives the block."""
    environment = {**os.environ, "ASSAYLINE_REDIS__URL": url}
    with ExitStack() as stack:
        started = []
        for role, *options in roles:
            command = [sys.executable, "-m", "pipeline", role, str(line), *options]
            process = stack.enter_context(subprocess.Popen(command, env=environment))
            stack.callback(process.kill)
            started.append(process)
        yield started


def pending_of(here: Standing, consumer: str) -> int:
    """Frames that a worker has and has not answered."""
    groups = here.stream._commands.xpending_range(
        here.stream._of("left").frames, "inspect", "-", "+", 1000, consumername=consumer
    )
    return len(groups)


def test_a_worker_that_is_told_to_end_answers_what_it_has(
    stub_line: StubLine, hurt: HurtServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seconds later it has ended in order and holds nothing; the other one has the rest."""
    crashed: list[Member] = []
    monkeypatch.setattr(Member, "_note_crash", lambda member, _: crashed.append(member))
    worker = {"processes": 2, "engines": 2}
    line = stub_line(cameras=[stub_camera(rate_hz=100)], worker=worker)
    with standing(line, hurt) as here:
        here.wait_acted(100)
        first, _ = here.pids("inspect")
        consumer = next(name for name in here.pulse.living("inspect") if name.endswith(f"-{first}"))
        process = psutil.Process(first)
        os.kill(first, signal.SIGTERM)
        began_s = time.monotonic()
        here.wait_for(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
        assert time.monotonic() - began_s < DRAIN_S + SPARE_S
        assert pending_of(here, consumer) == 0
        here.wait_acted(200)
        assert first not in here.pids("inspect")
        assert here.stream.ledger("left").undecided == {}
        assert not crashed  # its end was 0: nobody starts it again
        here.finish()
        require_sound(here)


@pytest.mark.parametrize("worker", [{"slots": 1}, {"slots": 16}, {"slots": 16, "engines": 2}])
def test_a_line_that_is_told_to_end_leaves_no_part_without_a_verdict(
    stub_line: StubLine,
    hurt: HurtServer,
    tmp_path: Path,
    endings: dict[str, int | None],
    worker: dict[str, int],
) -> None:
    """With far more parts waiting than it can inspect: those are UNDECIDED(shutdown), in time."""
    bundle = write_stub_bundle(tmp_path / "slow", SLOW).folder
    line = stub_line(
        bundle=bundle,
        cameras=[stub_camera(rate_hz=200, overrun="reject", credits=200)],
        worker={"processes": 1, "batch_max": worker["slots"], **worker},
    )
    with standing(line, hurt) as here:
        here.wait_for(lambda: here.stream.ledger("left").open > 180)
        began_s = time.monotonic()
        here.stop.set()
        here.wait_for(lambda: here.stream.ledger("left").open == 0 or bool(here.ledgers))
        took_s = time.monotonic() - began_s
        here.join()
        left = require_sound(here)
    assert left.decisions[Reason.SHUTDOWN] > 0
    assert took_s < DRAIN_S + SPARE_S
    assert endings == dict.fromkeys(("ingest left", "inspect 0", "sink"), ExitCode.OK)


def test_roles_that_are_told_to_end_at_one_moment_all_end_in_order(
    stub_line: StubLine, hurt: HurtServer
) -> None:
    """As whoever stops all containers of a line does: every exit code is 0, no part is open."""
    line = stub_line(cameras=[stub_camera(rate_hz=100)])
    roles = (("sink",), ("inspect",), ("ingest", "--camera", "left"))
    with open_stream(hurt.url, load_line(line).redis.namespace) as stream:
        with alone(line, hurt.url, roles) as processes:
            wait_for(lambda: stream.ledger("left").passed >= 100)
            for process in processes:
                process.send_signal(signal.SIGTERM)
            codes = [process.wait(ENDED_S) for process in processes]
        ledger = stream.ledger("left")
    assert codes == [ExitCode.OK] * len(roles)
    assert (ledger.open, ledger.residual) == (0, 0)


def test_the_command_that_runs_a_line_ends_in_order(stub_line: StubLine) -> None:
    """SIGTERM under load: exit code 0, and the sink's record holds every part once."""
    line = stub_line(cameras=[stub_camera(rate_hz=100)])
    record = load_line(line).run_dir / "verdicts.jsonl"
    command = [sys.executable, "-m", "pipeline", "run", str(line)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: record.exists() and record.read_bytes().count(b"\n") >= 100)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=ENDED_S)
        finally:
            process.kill()
    assert process.returncode == ExitCode.OK
    acted = record.read_bytes().splitlines()
    assert len({json.loads(one)["frame_id"] for one in acted}) == len(acted)
