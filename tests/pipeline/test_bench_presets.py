"""Laws of the comparison of presets: one line per bundle, each figure beside what it is against."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from engines.contracts import BadConfig
from pipeline.bench import Asked, print_bench, run_bench
from pipeline.bench.presets import Row, _results, bench_presets, preset_table
from pipeline.bench.report import Report
from pipeline.simulator.render import defects, render

DEMO = Path(__file__).parents[2] / "configs" / "bundles" / "demo"


def row(label: str, rate: float, **found: float | None) -> Row:
    """A bundle that was measured."""
    figures = {"image_auroc": 0.9, "pixel_ap": 0.4, "calls": 2.0, "megabytes": 10.0} | found
    return Row(label, "f32", "256 x 256", rate, 5.0, "EfficientAD-S", figures)


def test_better_is_above_one() -> None:
    """Also of sizes and calls, where less is better; others are against the first bundle."""
    first, other = row("fast", 50.0), row("accurate", 20.0, calls=1.0, megabytes=40.0)
    found = {one.name: one for one in (*_results(first, first), *_results(other, first))}
    assert found["presets.fast.rate"].ratio == 10
    assert found["presets.accurate.rate"].ratio == 4
    assert found["presets.accurate.calls"].ratio == 2
    assert found["presets.accurate.megabytes"].ratio == 0.25
    assert {one.against for one in found.values()} == {"EfficientAD-S", "fast"}


def test_what_was_not_measured_is_no_figure() -> None:
    """Without masks there is no pixel AP: the table says so, and zero calls divide nothing."""
    first = row("fast", 50.0, pixel_ap=None, calls=0.0)
    results = tuple(_results(first, first))
    assert "presets.fast.pixel_ap" not in {one.name for one in results}
    console = Console(file=io.StringIO(), width=120)
    print_bench(Report({}, (*results, *_results(row("slow", 1.0), first))), console)
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "presets" in told
    assert "50 (10.0x)" in told


@pytest.mark.parametrize("asked", [Asked(DEMO), Asked(DEMO, bundles=(DEMO,))])
def test_bundles_and_frames_must_be_named(asked: Asked) -> None:
    """One sentence shows the command."""
    with pytest.raises(BadConfig, match="bench presets BUNDLE BUNDLE --data DIR"):
        run_bench("presets", asked)


@pytest.mark.skipif(not DEMO.exists(), reason="the demo bundle is not here")
def test_a_bundle_is_measured_on_test_frames(tmp_path: Path) -> None:
    """Rate, ranking, calls and size of the demo bundle, in one line of the table."""
    for name, defect in (("good", None), ("odd", defects("disc")[0])):
        for index in range(3):
            seen = render("disc", 7, index, defect=defect, severity=1.0)
            _save(seen.image, tmp_path / "disc" / "test" / name / f"{index}.png")
            if defect is not None:
                truth = seen.truth_mask.astype(np.uint8) * 255
                _save(truth, tmp_path / "disc" / "ground_truth" / name / f"{index}_mask.png")
    report = bench_presets([DEMO], tmp_path, rounds=1, batches=(1,))
    found = {one.name.rpartition(".")[2]: one.value for one in report.results}
    assert found["rate"] > 0
    assert found["image_auroc"] == 1.0
    assert 0 <= found["calls"] <= 5
    assert found["megabytes"] > 1
    assert preset_table(report).row_count == 1
    assert found["pixel_ap"] > 0.1


def _save(picture: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
