"""The timed stub as the engine of a line."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engines.backend import open_backend, start_inputs
from engines.backend_stub import DEADLY, SCORELESS
from engines.contracts import BadConfig, Decision
from engines.inspector import Inspector, Part, inspect_all
from tests.stub_line import BAD_FROM, CATEGORY, numbered, write_stub_bundle
from tests.tiny_line import write_tiny_bundle

DEADLY_BATCH = """
import sys
from pathlib import Path
from engines.backend import open_backend, start_inputs
from engines.bundle import open_bundle
from tests.stub_line import numbered
with open_backend(open_bundle(sys.argv[1]), "stub") as engine:
    engine.start(start_inputs([numbered(1), numbered(int(sys.argv[2]))], [0, 0], [-1, -1]), [0, 1])
"""


def test_the_decision_follows_from_the_number(tmp_path: Path) -> None:
    """Good numbers pass, bad ones fail, and one without a score is undecided."""
    bundle = write_stub_bundle(tmp_path / "stub")
    calibration = bundle.calibration()
    assert calibration is not None
    numbers = {"good": 120, "bad": BAD_FROM + 7, "scoreless": SCORELESS}
    parts = [Part(name, 0, CATEGORY, numbered(number)) for name, number in numbers.items()]
    with open_backend(bundle, "stub", capacity=4) as engine:
        found = {f.frame_id: f for f in inspect_all(Inspector(engine), parts)}
        decided = {name: calibration.judge(f, engine.key).decision for name, f in found.items()}
    assert decided == {
        "good": Decision.PASS,
        "bad": Decision.FAIL,
        "scoreless": Decision.UNDECIDED,
    }
    assert found["bad"].anomaly_score == BAD_FROM + 7
    assert math.isnan(found["scoreless"].anomaly_score)


def test_a_bundle_of_another_method_is_refused(tmp_path: Path) -> None:
    """No line of a real method can be opened on the stub."""
    with pytest.raises(BadConfig, match="choose the backend openvino"):
        open_backend(write_tiny_bundle(tmp_path / "grey"), "stub")


def test_a_deadly_part_ends_the_process(tmp_path: Path) -> None:
    """Its batch mates have no verdict from there."""
    write_stub_bundle(tmp_path / "stub")
    done = subprocess.run(
        [sys.executable, "-c", DEADLY_BATCH, str(tmp_path / "stub"), str(DEADLY)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGABRT


def test_a_row_keeps_its_number_among_others(tmp_path: Path) -> None:
    """Every row of a batch has the score of its own image."""
    bundle = write_stub_bundle(tmp_path / "stub")
    numbers = [5, 500, BAD_FROM]
    with open_backend(bundle, "stub", capacity=3) as engine:
        engine.start(start_inputs([numbered(n) for n in numbers], [0] * 3, [0] * 3), [0, 1, 2])
        engine.step([0, 1, 2])
        assert np.array_equal(engine.finish([0, 1, 2]).anomaly_score, numbers)
