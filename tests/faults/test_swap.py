"""A model swap under load: real workers, two bundles, parts that never stop."""

from __future__ import annotations

import json
import os
import signal
import threading
from itertools import groupby
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engines.bundle import open_bundle
from engines.contracts import BadBundle, BadConfig, Decision, ExitCode, Verdict
from pipeline.cli import app
from pipeline.swap import bundle_in_force
from pipeline.swap.following import SwapRefused
from pipeline.swap.ordering import forget, roll_back, swap
from pipeline.swap.roster import Place, Standing, standings
from pipeline.swap.wanted import wanted_of
from tests.faults.conftest import Runner, Running, StubLine
from tests.stub_line import BAD_FROM, COSTS, stub_camera, write_stub_bundle

TIMEOUT_S = 30.0
SLOWER = COSTS | {"start": (210_000, 20_000)}  # another manifest, so another bundle


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A second bundle that the line could run."""
    return write_stub_bundle(tmp_path / "other", SLOWER).folder


def bundle_ids(here: Running, other: Path) -> tuple[str, str]:
    """Of the line's own bundle, and of the other."""
    return open_bundle(here.settings.bundle).bundle_id, open_bundle(other).bundle_id


def let_pass(here: Running, frames: int) -> None:
    """Wait for so many more verdicts."""
    asked = sum(ledger.captured for ledger in here.now()) + frames
    here.wait_for(lambda: sum(led.captured - led.open for led in here.now()) >= asked)


def ordered_swap(here: Running, bundle: Path) -> dict[str, float]:
    """Swap, and say how long each worker took."""
    return swap(here.settings, bundle, TIMEOUT_S, threading.Event()).followed_s


def by_number(verdicts: list[Verdict], camera: str) -> list[Verdict]:
    """Verdicts of one camera in the order of its frames."""
    mine = [verdict for verdict in verdicts if verdict.camera == camera]
    return sorted(mine, key=lambda verdict: int(verdict.frame_id.rpartition("-")[2]))


def phases(verdicts: list[Verdict], camera: str = "left") -> list[str]:
    """Bundle ids of a camera's verdicts, in the order of its frames, repeats left out."""
    return [bundle for bundle, _ in groupby(v.bundle_id for v in by_number(verdicts, camera))]


def assert_judged_rightly(verdicts: list[Verdict]) -> None:
    """Every part has a decision, and the one that its number asks for."""
    for verdict in verdicts:
        assert verdict.anomaly_score is not None, verdict.reason
        is_bad = verdict.anomaly_score >= BAD_FROM
        assert (verdict.decision is Decision.FAIL) == is_bad


@pytest.mark.parametrize("engines", [1, 2])
def test_a_swap_under_load_loses_nothing_and_mixes_nothing(
    stub_line: StubLine, running: Runner, other: Path, engines: int
) -> None:
    """One verdict each; old bundle, then new, then by rollback the old one again at once."""
    worker = {"engines": engines}
    with running(stub_line(cameras=[stub_camera(rate_hz=100)], worker=worker)) as here:
        old, new = bundle_ids(here, other)
        let_pass(here, 20)
        assert len(ordered_swap(here, other)) == 1
        let_pass(here, 50)
        back_s = roll_back(here.settings, TIMEOUT_S, threading.Event()).followed_s
        let_pass(here, 50)
        here.stop.set()
        verdicts = here.finish()
        here.assert_all_answered_once(verdicts, sum(led.captured for led in here.ledgers.values()))
    assert phases(verdicts) == [old, new, old]
    assert_judged_rightly(verdicts)
    assert max(back_s.values()) < 1.0
    calibrations = {verdict.bundle_id: verdict.calibration_id for verdict in verdicts}
    told = {verdict.calibration_id for verdict in verdicts if verdict.bundle_id == new}
    assert told == {calibrations[new]}


def test_every_worker_of_a_line_swaps(stub_line: StubLine, running: Runner, other: Path) -> None:
    """The order is done when all have followed; then no verdict names the old bundle."""
    cameras = [stub_camera("left", rate_hz=50), stub_camera("right", rate_hz=50)]
    with running(stub_line(cameras=cameras, worker={"processes": 2})) as here:
        _, new = bundle_ids(here, other)
        let_pass(here, 20)
        assert len(ordered_swap(here, other)) == 2
        swapped_ns = here.stream.now_ns()
        let_pass(here, 60)
        here.stop.set()
        verdicts = here.finish()
        here.assert_all_answered_once(verdicts, sum(led.captured for led in here.ledgers.values()))
    late = [verdict for verdict in verdicts if verdict.captured_ns > swapped_ns]
    assert {verdict.bundle_id for verdict in late} == {new}


def test_a_restarted_worker_runs_what_was_swapped_in(
    stub_line: StubLine, running: Runner, other: Path
) -> None:
    """kill -9 after a swap: its successor answers with the new bundle, and can still go back."""
    with running(stub_line(worker={"reclaim_idle_ms": 300})) as here:
        old, new = bundle_ids(here, other)
        ordered_swap(here, other)
        let_pass(here, 20)
        [killed] = here.worker_pids()
        os.kill(killed, signal.SIGKILL)
        here.wait_for(lambda: here.worker_pids() not in ([], [killed]))
        let_pass(here, 20)
        [told] = standings(here.settings.run_dir).values()
        assert (told.state, told.bundle_id) == ("runs", new)
        roll_back(here.settings, TIMEOUT_S, threading.Event())
        let_pass(here, 20)
        here.stop.set()
        verdicts = here.finish()
        here.assert_all_answered_once(verdicts, sum(led.captured for led in here.ledgers.values()))
    assert by_number(verdicts, "left")[-1].bundle_id == old
    assert phases(verdicts)[-2:] == [new, old]


def test_another_calibration_is_a_swap_too(
    stub_line: StubLine, running: Runner, tmp_path: Path
) -> None:
    """The same graphs with another threshold: verdicts keep the bundle's id, not the other."""
    with running(stub_line(numbers=[150] * 40)) as here:
        own = here.settings.bundle
        stricter = write_stub_bundle(tmp_path / "stricter").folder
        told = json.loads((stricter / "calibration.json").read_text())
        for entries in told["entries"].values():
            for entry in entries.values():
                entry["threshold"] = 0.01
        (stricter / "calibration.json").write_text(json.dumps(told))
        assert open_bundle(stricter).bundle_id == open_bundle(own).bundle_id
        let_pass(here, 10)
        ordered_swap(here, stricter)
        let_pass(here, 20)
        here.stop.set()
        verdicts = here.finish()
    decisions = [v.decision for v in by_number(verdicts, "left")]
    assert [decision for decision, _ in groupby(decisions)] == [Decision.PASS, Decision.FAIL]
    assert len({v.calibration_id for v in verdicts}) == 2


def test_memory_of_the_old_bundle_is_given_back(
    stub_line: StubLine, running: Runner, other: Path
) -> None:
    """After --forget the way back loads anew, and still works."""
    with running(stub_line()) as here:
        old, _ = bundle_ids(here, other)
        ordered_swap(here, other)
        forget(here.settings, TIMEOUT_S, threading.Event())
        roll_back(here.settings, TIMEOUT_S, threading.Event())
        let_pass(here, 10)
        here.stop.set()
        verdicts = here.finish()
    assert by_number(verdicts, "left")[-1].bundle_id == old


# -- what is refused -----------------------------------------------------------------------------


def test_what_the_line_cannot_run_is_refused_by_the_command(
    stub_line: StubLine, running: Runner, tmp_path: Path, other: Path
) -> None:
    """Another input size, no thresholds, flipped bytes, nothing to go back to: the line goes on."""
    line = stub_line()
    sized = write_stub_bundle(tmp_path / "sized", size=(16, 24)).folder
    raw = write_stub_bundle(tmp_path / "raw", SLOWER).folder
    (raw / "calibration.json").unlink()
    damaged = write_stub_bundle(tmp_path / "damaged", SLOWER).folder
    (damaged / "step.onnx").write_text("other bytes\n")
    with running(line) as here:
        old, _ = bundle_ids(here, other)
        for bundle, sentence in ((sized, "24 x 16"), (raw, "calibrat"), (damaged, "bytes")):
            with pytest.raises(BadBundle, match=sentence):
                ordered_swap(here, bundle)
        with pytest.raises(BadConfig, match="not swapped"):
            roll_back(here.settings, TIMEOUT_S, threading.Event())
        assert wanted_of(here.settings) is None
        let_pass(here, 10)
        here.stop.set()
        assert phases(here.finish()) == [old]
    result = CliRunner().invoke(app, ["swap", str(line)])
    assert isinstance(result.exception, BadConfig)


def test_a_worker_that_refuses_takes_all_back(
    stub_line: StubLine, running: Runner, other: Path
) -> None:
    """Two workers, and one whose files were spoiled meanwhile: all run what they ran, and why."""
    with running(stub_line()) as here:
        old, _ = bundle_ids(here, other)
        with Place(here.settings.run_dir, "elsewhere") as place:
            errors: list[BaseException] = []

            def order() -> None:
                try:
                    ordered_swap(here, other)
                except SwapRefused as error:
                    errors.append(error)

            place.say(Standing(number=0, state="runs"))
            command = threading.Thread(target=order)
            command.start()
            here.wait_for(lambda: wanted_of(here.settings))
            place.say(Standing(number=1, state="refused", sentence="no memory"))
            here.wait_for(lambda: errors or wanted_number(here) == 2)
            place.say(Standing(number=2, state="runs"))
            command.join()
        let_pass(here, 10)
        here.stop.set()
        verdicts = here.finish()
    assert "elsewhere refused (no memory)" in str(errors[0])
    assert errors[0].exit_code is ExitCode.FAULT  # type: ignore[attr-defined]
    assert by_number(verdicts, "left")[-1].bundle_id == old


def wanted_number(here: Running) -> int:
    """Of the newest order."""
    wanted = wanted_of(here.settings)
    return wanted.number if wanted else 0


def test_a_worker_refuses_what_was_spoiled_after_the_order(
    stub_line: StubLine, running: Runner, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker verifies by itself what may have changed since the command looked."""
    with running(stub_line()) as here:
        old, new = bundle_ids(here, other)
        _spoil_after_the_look(other, monkeypatch)
        with pytest.raises(SwapRefused, match="bytes its manifest names"):
            ordered_swap(here, other)
        let_pass(here, 10)
        [told] = standings(here.settings.run_dir).values()
        here.stop.set()
        verdicts = here.finish()
    assert (told.state, told.bundle_id) == ("runs", old)
    assert new not in phases(verdicts)


def _spoil_after_the_look(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.swap import following

    write = following.write_wanted

    def spoil(*args: object) -> None:
        (bundle / "step.onnx").write_text("other bytes\n")
        write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(following, "write_wanted", spoil)


def test_a_swap_that_nobody_follows_is_taken_back(
    stub_line: StubLine, running: Runner, other: Path
) -> None:
    """A frozen worker cannot follow: after the time-out the order is taken back."""
    with running(stub_line()) as here:
        old, _ = bundle_ids(here, other)
        [pid] = here.worker_pids()
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(2.0, os.kill, (pid, signal.SIGCONT)).start()
        with pytest.raises(SwapRefused, match="took more than 1 s: 0 of 1"):
            swap(here.settings, other, 1.0, threading.Event())
        let_pass(here, 10)
        here.stop.set()
        assert by_number(here.finish(), "left")[-1].bundle_id == old


# -- without a running line ----------------------------------------------------------------------


def test_a_swap_of_a_resting_line_holds_from_its_start(
    stub_line: StubLine, running: Runner, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a bundle that the configuration names since then wins over it."""
    line = stub_line()
    monkeypatch.setattr(os, "nice", lambda _: 0)  # of this very process
    done = CliRunner().invoke(app, ["swap", str(line), str(other)])
    assert done.exit_code == 0, done.output
    assert "next start" in done.output
    with running(line) as here:
        _, new = bundle_ids(here, other)
        let_pass(here, 10)
        here.stop.set()
        assert phases(here.finish()) == [new]
    renamed = here.settings.model_copy(update={"bundle": other.parent / "third"})
    assert bundle_in_force(here.settings) == other
    assert bundle_in_force(renamed) == renamed.bundle
