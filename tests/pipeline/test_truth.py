"""Scores of a simulated line, on answers whose worth is known."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from engines.contracts import Decision, Float32, Reason, Verdict
from engines.images import decode_image, encode_map, encode_png
from pipeline.config import LineSettings
from pipeline.simulator import Truth
from pipeline.stream import VerdictDelivery
from pipeline.truth import (
    SHEET_SIDE,
    Judged,
    confusion_table,
    score_against_truth,
    write_contact_sheet,
)

PARTS = 16


@pytest.fixture(scope="module")
def line() -> LineSettings:
    """A simulated camera, and one that has no truth."""
    simulated = {"kind": "simulator", "parts": ["disc", "board"], "seed": 5, "defect_rate": 0.5}
    return LineSettings.model_validate(
        {
            "line": "truth",
            "bundle": "none",
            "cameras": [
                {"name": "left", "source": simulated},
                {"name": "right", "source": {"kind": "folder", "path": "parts"}},
            ],
        }
    )


@pytest.fixture(scope="module")
def truths(line: LineSettings) -> list[Truth]:
    """What the first parts are; drawn once."""
    simulated = Judged(line).lines["left"]
    return [simulated.truth(f"left-{number:06d}") for number in range(PARTS)]


def delivery(
    number: int, decision: Decision, surprise: float | None, shown: Float32 | None
) -> VerdictDelivery:
    """A verdict on part ``number`` with its anomaly map and, unless passed, its picture."""
    undecided = decision is Decision.UNDECIDED
    verdict = Verdict(
        frame_id=f"left/1-{number + 1}",
        camera="left",
        part_id=f"left-{number:06d}",
        decision=decision,
        reason=Reason.DEADLINE if undecided else None,
        surprise=surprise,
        captured_ns=1,
        decided_ns=2,
    )
    picture = encode_png(np.full((64, 64, 3), 90, np.uint8))
    mask = encode_png(np.eye(64, dtype=np.bool_))
    drawn = encode_map(shown) if shown is not None else b""
    return VerdictDelivery("left", f"1-{number}", verdict, mask, picture, drawn)


def judged(line: LineSettings, truths: Sequence[Truth], sign: int) -> Judged:
    """Perfect answers (1) or perfectly wrong ones (-1)."""
    answers = Judged(line)
    for number, truth in enumerate(truths):
        is_bad = (truth.defect is not None) == (sign > 0)
        shown = truth.mask[::4, ::4].astype(np.float32)
        decision = Decision.FAIL if is_bad else Decision.PASS
        surprise = 5.0 if is_bad else 1.0
        answers.add(delivery(number, decision, surprise, shown if sign > 0 else 1 - shown))
    return answers


def test_perfect_answers_score_one(line: LineSettings, truths: list[Truth]) -> None:
    """Image and pixel AUROC 1, every quartile 1, nothing off the diagonal."""
    scored = score_against_truth(judged(line, truths, 1))
    assert scored["image_auroc"] == 1.0
    assert scored["pixel_auroc"] > 0.98  # maps are four times coarser than masks
    assert set(scored["image_auroc_by_severity"].values()) == {1.0}
    good = sum(truth.defect is None for truth in truths)
    assert 0 < good < PARTS
    assert scored["confusion"] == {
        "good": {"PASS": good, "FAIL": 0, "UNDECIDED": 0},
        "defective": {"PASS": 0, "FAIL": PARTS - good, "UNDECIDED": 0},
    }


def test_wrong_answers_score_zero(line: LineSettings, truths: list[Truth]) -> None:
    """The same answers the wrong way round."""
    scored = score_against_truth(judged(line, truths, -1))
    assert scored["image_auroc"] == 0.0
    assert scored["pixel_auroc"] < 0.02
    assert scored["confusion"]["good"]["PASS"] == 0


def test_undecided_parts_count_and_do_not_score(line: LineSettings, truths: list[Truth]) -> None:
    """A part without evidence is in the confusion and in no AUROC."""
    answers = judged(line, truths[:-4], 1)
    for number in range(PARTS - 4, PARTS):
        answers.add(delivery(number, Decision.UNDECIDED, None, None))
    scored = score_against_truth(answers)
    assert scored["image_auroc"] == 1.0
    assert sum(row["UNDECIDED"] for row in scored["confusion"].values()) == 4
    assert sum(sum(row.values()) for row in scored["confusion"].values()) == PARTS


def test_good_parts_alone_have_no_auroc(line: LineSettings, truths: list[Truth]) -> None:
    """Without a defect, and without any answer, there is nothing to rank."""
    answers = Judged(line)
    for number, truth in enumerate(truths):
        if truth.defect is None:
            answers.add(delivery(number, Decision.PASS, 1.0, np.zeros((8, 8), np.float32)))
    for empty in (answers, Judged(line)):
        scored = score_against_truth(empty)
        assert scored["image_auroc"] is scored["pixel_auroc"] is None
        assert set(scored["image_auroc_by_severity"].values()) == {None}


def test_truth_is_of_simulated_cameras_alone(line: LineSettings) -> None:
    """A camera that shows a real line has none."""
    assert set(Judged(line).lines) == {"left"}


def test_an_answer_without_a_surprise_is_kept(line: LineSettings) -> None:
    """Absence is NaN inside and never a score."""
    answers = Judged(line)
    answers.add(delivery(0, Decision.UNDECIDED, None, None))
    assert math.isnan(answers.answers[0].surprise)
    assert answers.answers[0].anomaly_map is None


@pytest.mark.parametrize(("rejects", "rows"), [(0, 1), (1, 1), (6, 1), (7, 2), (40, 4)])
def test_the_contact_sheet_shows_rejects(
    line: LineSettings, tmp_path: Path, rejects: int, rows: int
) -> None:
    """Six in a row, at most four rows, black where there are no more."""
    answers = Judged(line)
    for number in range(rejects):
        answers.add(delivery(number, Decision.FAIL, 2.0 + number, None))
    answers.add(delivery(99, Decision.PASS, 0.1, None))
    sheet = decode_image(write_contact_sheet(answers, tmp_path / "new" / "s.png").read_bytes())
    assert sheet.shape == (rows * SHEET_SIDE, 6 * SHEET_SIDE, 3)
    tiles = sheet.reshape(rows, SHEET_SIDE, 6, SHEET_SIDE, 3).any(axis=(1, 3, 4))
    assert tiles.sum() == min(rejects, 24)


def test_people_see_the_confusion() -> None:
    """Truth in rows, decisions in columns."""
    counts = {"good": {"PASS": 31, "FAIL": 2, "UNDECIDED": 0}}
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(confusion_table(counts))
    told = console.export_text()
    assert all(word in told for word in ("PASS", "FAIL", "UNDECIDED", "good", "31"))
