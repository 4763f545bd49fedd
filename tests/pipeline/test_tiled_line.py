"""Large images through a real line, in tiles: what evaluation measures is what the line answers."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.bundle import Bundle, open_bundle
from engines.contracts import BadBundle, BadConfig, Decision, Verdict
from engines.dataset import image_files
from engines.diagnosis import diagnose
from engines.evaluation import Evaluation, evaluate
from engines.images import encode_png
from engines.parity_set import load_frames
from engines.recipe import TrainSettings
from engines.tiles import Tiling
from engines.workshop import train_bundle
from pipeline.bench.capacity import bench_capacity
from pipeline.bench.engine import bench_engine
from pipeline.config import load_line
from pipeline.doctor.line import slots
from pipeline.recording import read_verdicts
from pipeline.simulator import write_dataset
from pipeline.supervisor import run_line
from pipeline.worker import run_worker
from tests.tiny_line import CATEGORY, SIZE, good_part, write_line, write_tiny_bundle

torch.set_num_threads(1)
TILING = Tiling(SIZE, 2, 2, 0.25)
FRAME = TILING.frame_size  # 28 x 28: tiles overlap by four pixels, from 12 to 16
SETTINGS = TrainSettings(
    size="nano",
    channels=16,
    image_size=(64, 64),
    tiles="2x2",
    bank_rows=50,
    steps=3,
    batch=4,
    variants=1,
    shift_px=2,
    holdout=0.5,
    precisions=("f32",),
    max_false_reject=0.2,
    confidence=0.8,
    early_exit=0.5,
)


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle that measures grey, in 2 x 2 tiles."""
    return write_tiny_bundle(tmp_path_factory.mktemp("grey") / "bundle", TILING)


def write_parts(data: Path) -> None:
    """Good parts, and parts with a spot of two by four pixels across each inner border."""
    spots = [(13, 2), (2, 13), (13, 20), (20, 13), (13, 13), (2, 2)]
    for kind, count in (("good", 6), ("spot", len(spots))):
        for number in range(count):
            image = good_part(100 + number, FRAME)
            truth = np.zeros(FRAME, np.bool_)
            if kind == "spot":
                y, x = spots[number]
                truth[y : y + 3, x : x + 3] = True
                image[truth] = 255
            for below, picture in (("test", image), ("ground_truth", truth)):
                if below == "test" or kind == "spot":
                    folder = data / CATEGORY / below / kind
                    folder.mkdir(parents=True, exist_ok=True)
                    suffix = "_mask.png" if below == "ground_truth" else ".png"
                    (folder / f"{number:03d}{suffix}").write_bytes(encode_png(picture))


def verdicts_of(folder: Path, bundle: Path, test: Path, category: str) -> dict[str, Verdict]:
    """A whole line over a folder of test images: verdicts by path below that folder."""
    path = write_line(
        folder,
        bundle,
        camera={"source": {"kind": "folder", "path": str(test)}, "category": category},
        sinks={"jsonl": {}},
    )
    ledger = run_line(load_line(path), threading.Event(), path)["left"]
    files = [file.relative_to(test).as_posix() for file in image_files(test)]
    assert (ledger.captured, ledger.residual, ledger.open) == (len(files), 0, 0)
    found = read_verdicts(folder / "run" / "verdicts.jsonl")
    by_number = {int(one.frame_id.rpartition("-")[2]): one for one in found}
    return {file: by_number[number] for number, file in enumerate(files, 1)}


def agree(verdicts: dict[str, Verdict], evaluation: Evaluation) -> None:
    """The line's verdicts are those of the evaluation, image by image."""
    assert len(verdicts) == len(evaluation.scores) > 0
    for score in evaluation.scores:
        verdict = verdicts[score.path.split("/test/")[1]]
        assert verdict.anomaly_score == pytest.approx(score.anomaly_score, rel=1e-5)
        assert verdict.surprise == pytest.approx(score.surprise, rel=1e-4)
        for name in ("decision", "plan", "level", "steps"):
            assert getattr(verdict, name) == getattr(score, name)


def test_a_spot_across_a_border_is_one_region(grey: Bundle, tmp_path: Path) -> None:
    """Through ingest, worker and sink: one verdict per image, one region per spot, in its place."""
    data = tmp_path / "data"
    write_parts(data)
    verdicts = verdicts_of(tmp_path, grey.folder, data / CATEGORY / "test", CATEGORY)
    found = evaluate(grey, data, precision="f32")
    agree(verdicts, found)
    assert found.mean.image_auroc == 1
    assert found.mean.pixel_auroc == pytest.approx(1, abs=1e-3)
    for name, verdict in verdicts.items():
        if name.startswith("spot"):
            assert verdict.decision is Decision.FAIL
            (region,) = verdict.regions
            assert region.area_px == region.w * region.h == 9
            assert verdict.steps == 2


def test_calls_are_those_of_all_tiles(grey: Bundle, tmp_path: Path) -> None:
    """A good part of four tiles by the shallow plan of two calls takes eight."""
    write_parts(tmp_path)
    row = evaluate(grey, tmp_path, precision="f32").categories[CATEGORY]
    assert (row.mean_steps_good, row.mean_steps_defect) == (8, 8)


def test_too_few_slots_are_refused_at_the_start(
    grey: Bundle, tmp_path: Path, redis_url: str, namespace: str
) -> None:
    """A worker that could never admit a frame says so instead of waiting; doctor says it before."""
    path = write_line(
        tmp_path,
        grey.folder,
        worker={"slots": 3},
        redis={"url": redis_url, "namespace": namespace},
    )
    line = load_line(path)
    (check,) = slots(line, grey)
    assert check.refuses
    with pytest.raises(BadConfig, match=r"takes 4: set worker\.slots to 4 or more"):
        run_worker(line, threading.Event())


def test_what_measures_single_rows_refuses_tiles(grey: Bundle) -> None:
    """bench engine and bench capacity say in one sentence what to use instead."""
    with pytest.raises(BadBundle, match="use bench line"):
        bench_engine(grey.folder)
    with pytest.raises(BadBundle, match="use bench line"):
        bench_capacity(grey.folder, 1.0, 100.0, frames=10)


@pytest.mark.slow
@pytest.mark.timeout(900)  # of a busy core; half a minute of an idle one
def test_a_trained_bundle_of_tiles_runs_on_a_line(tmp_path: Path) -> None:
    """From good images of twice the size to verdicts: trained, calibrated and judged in tiles."""
    data = tmp_path / "parts"
    write_dataset(data, ("disc",), 48, 6, test_defect=8, size=(128, 128))
    trained = train_bundle(data, tmp_path / "bundle", SETTINGS)
    bundle = open_bundle(tmp_path / "bundle")
    tiling = Tiling((64, 64), 2, 2, 0.1)
    assert (bundle.tiling, bundle.frame_size) == (tiling, (124, 124))
    assert bundle.manifest.training["good"] == {"disc": 24}  # whole images
    assert load_frames(bundle).images.shape[1:] == (64, 64, 3)  # rows
    calibration = bundle.calibration()
    assert calibration is not None
    assert calibration.entries["openvino:f32"]["disc"].evidence.good == 24
    assert any(told.startswith("calibrated for openvino:f32") for told in trained.sentences)
    found = evaluate(bundle, data, precision="f32")
    verdicts = verdicts_of(tmp_path, bundle.folder, data / "disc" / "test", "disc")
    agree(verdicts, found)
    failed = [one for one in verdicts.values() if one.decision is Decision.FAIL]
    assert failed
    for region in (region for one in failed for region in one.regions):
        assert region.x + region.w <= 128
        assert region.y + region.h <= 128
    with pytest.raises(BadBundle, match="no diagnosis for tiles"):
        diagnose(bundle, tmp_path / "bundle.training", data)
