"""Laws of applied thresholds: audited, atomic, outdated by another calibration, taken up."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from engines.bundle import Bundle, open_bundle
from engines.calibration import Calibration
from engines.contracts import BadConfig
from engines.retuning import with_threshold
from pipeline import applied
from pipeline.applied import (
    AUDIT,
    FILE,
    FOLDER,
    AppliedThresholds,
    Change,
    apply_threshold,
    changes,
)
from pipeline.config import load_line
from pipeline.recording import read_verdicts
from pipeline.supervisor import run_line
from tests.pipeline.pages import until
from tests.tiny_line import CATEGORY, shared_bundle, write_line, write_parts

KEY = "openvino:f32"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A calibrated bundle."""
    return open_bundle(shared_bundle(tmp_path_factory.mktemp("bundle")))


def own(bundle: Bundle) -> Calibration:
    """Its own thresholds."""
    found = bundle.calibration()
    assert found is not None
    return found


def apply(run_dir: Path, bundle: Bundle, threshold: float, **more: str) -> Change:
    """Put a threshold in force, as somebody."""
    said = {"who": "Ada", "why": "glare", **more}
    where = {"backend_key": KEY, "category": CATEGORY}
    return apply_threshold(run_dir, bundle, own(bundle), threshold=threshold, **where, **said)


def in_force(run_dir: Path, bundle: Bundle) -> Calibration:
    """What a worker that starts now judges by."""
    found = AppliedThresholds(run_dir, bundle, own(bundle))
    found.changed()
    return found.now


def test_what_is_applied_is_in_force_and_audited(tmp_path: Path, bundle: Bundle) -> None:
    """Who, when, why, old and new stand in the log; the bundle's own file is untouched."""
    before = (bundle.folder / "calibration.json").read_bytes()
    first, second = apply(tmp_path, bundle, 2.5), apply(tmp_path, bundle, 3.5, why="more glare")
    assert in_force(tmp_path, bundle).entries[KEY][CATEGORY].threshold == 3.5
    assert in_force(tmp_path, bundle).calibration_id == second.calibration_id
    assert second.old == first.new == 2.5
    assert second.old_calibration_id == first.calibration_id
    assert changes(tmp_path) == [second, first]
    assert (bundle.folder / "calibration.json").read_bytes() == before


@pytest.mark.parametrize("said", [{"who": " "}, {"why": ""}, {"who": "x" * 300}])
def test_nobody_changes_a_threshold_without_name_and_reason(
    tmp_path: Path, bundle: Bundle, said: dict[str, str]
) -> None:
    """It is refused before anything is written."""
    with pytest.raises(BadConfig, match="say wh"):
        apply(tmp_path, bundle, 2.5, **said)
    assert not (tmp_path / FOLDER).exists()


def test_nothing_takes_effect_that_is_not_audited(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that takes no line leaves the threshold as it was."""

    def full(*_: object) -> None:
        raise BadConfig("the disk is full")

    monkeypatch.setattr(applied, "append_line", full)
    with pytest.raises(BadConfig, match="full"):
        apply(tmp_path, bundle, 2.5)
    assert in_force(tmp_path, bundle) == own(bundle)


def test_a_calibration_made_since_wins(tmp_path: Path, bundle: Bundle) -> None:
    """What was applied to another calibration counts no more."""
    apply(tmp_path, bundle, 2.5)
    newer = with_threshold(own(bundle), KEY, CATEGORY, 1.1)
    found = AppliedThresholds(tmp_path, bundle, newer)
    found.changed()
    assert found.now is newer


@pytest.mark.parametrize("text", ["", "{", '{"based_on": 1}', "\xff" * 9])
def test_a_damaged_file_changes_nothing(tmp_path: Path, bundle: Bundle, text: str) -> None:
    """Whoever spoils it spoils no verdict."""
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / FILE).write_text(text)
    assert in_force(tmp_path, bundle) == own(bundle)


def test_a_torn_line_of_the_log_is_passed_over(tmp_path: Path, bundle: Bundle) -> None:
    """A crash in the middle of a line costs that line alone."""
    apply(tmp_path, bundle, 2.5)
    with (tmp_path / FOLDER / AUDIT).open("a") as log:
        log.write('{"at_ns": 1')
    apply(tmp_path, bundle, 3.5)
    assert [change.new for change in changes(tmp_path)] == [3.5, 2.5]


def test_a_running_worker_takes_it_at_a_part_boundary(tmp_path: Path, bundle: Bundle) -> None:
    """Without a restart; every verdict's decision is that of the calibration that it names."""
    write_parts(tmp_path / "parts", 20)
    source = {"kind": "folder", "path": "parts", "rate_hz": 20, "loop": True}
    line = write_line(
        tmp_path, bundle.folder, camera={"source": source, "gate_ms": 5000}, sinks={"jsonl": {}}
    )
    log, stop = tmp_path / "run" / "verdicts.jsonl", threading.Event()

    def ids() -> set[str]:
        return {json.loads(one)["calibration_id"] for one in log.read_text().splitlines()[:-1]}

    def operate() -> None:
        until(lambda: log.exists() and len(ids()) == 1)
        apply(tmp_path / "run", bundle, 200.0)  # nothing fails
        until(lambda: len(ids()) == 2)
        apply(tmp_path / "run", bundle, 0.05)  # nearly everything does
        until(lambda: len(ids()) == 3)
        stop.set()

    person = threading.Thread(target=operate)
    person.start()
    run_line(load_line(line), stop, line)
    person.join()
    verdicts = list(read_verdicts(log))
    thresholds = {verdict.calibration_id: verdict.threshold for verdict in verdicts}
    assert set(thresholds.values()) == {own(bundle).entries[KEY][CATEGORY].threshold, 200.0, 0.05}
    assert all((v.decision == "FAIL") is (v.surprise > v.threshold) for v in verdicts if v.surprise)
    assert {change.calibration_id for change in changes(tmp_path / "run")} <= set(thresholds)
