"""From a folder of good images to a calibrated bundle, in miniature and through a kill."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.backend import open_backend
from engines.bundle import open_bundle
from engines.contracts import BadData, ExitCode
from engines.dataset import good_items, load_model_input
from engines.descent import CHECKPOINT, LOSSES
from engines.export import load_method
from engines.images import fingerprint
from engines.inspector import Inspector, Part, inspect_all
from engines.parity_set import FRAMES, NEAR, NEAR_FRAMES, load_frames, off_limit
from engines.recipe import TrainSettings, load_good
from engines.thresholds import calibrate_bundle, unseen_good
from engines.workshop import train_bundle
from pipeline.simulator import write_dataset

torch.set_num_threads(1)
# One real export, which takes half a minute on a busy core.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
CATEGORIES = ("board", "disc")
SETTINGS = TrainSettings(
    size="nano",
    channels=16,
    image_size=(64, 64),
    bank_rows=50,
    steps=3,
    batch=4,
    variants=1,
    shift_px=2,
    holdout=0.5,
    max_false_reject=0.2,
    confidence=0.8,
)


class Killed(BaseException):
    """Stands for the moment a process dies."""


@dataclass(frozen=True)
class Training:
    """One training that was killed once and taken up again."""

    data: Path
    out: Path
    after_kill: frozenset[str]  # what lay beside the bundle's place
    stages: tuple[str, ...]  # of the second run
    sentences: tuple[str, ...]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Killed when the latents were to be made, then resumed to the end."""
    folder = tmp_path_factory.mktemp("workshop")
    data = folder / "parts"
    write_dataset(data, CATEGORIES, 48, 0, test_defect=0, size=(64, 64))
    out = folder / "out" / "bundle"
    out.parent.mkdir()

    def die(stage: str, *_: object) -> None:
        if stage == "latents":
            raise Killed

    with pytest.raises(Killed):
        train_bundle(data, out, SETTINGS, progress=die)
    after_kill = frozenset(path.name for path in out.parent.iterdir())
    stages: list[str] = []
    result = train_bundle(
        data, out, SETTINGS, resume=True, progress=lambda stage, *_: stages.append(stage)
    )
    return Training(data, out, after_kill, tuple(dict.fromkeys(stages)), result.sentences)


def test_a_kill_leaves_no_bundle(trained: Training) -> None:
    """Only the run's own folder is there, with the codec's checkpoint."""
    assert trained.after_kill == {"bundle.training"}


def test_a_resumed_run_goes_on(trained: Training) -> None:
    """The codec, which was finished, is not trained again; the denoiser is."""
    assert "codec" not in trained.stages
    assert trained.stages[-2:] == ("export", "calibrate")
    assert "denoiser" in trained.stages
    run = trained.out.with_name("bundle.training")
    for part in ("codec", "denoiser"):
        assert (run / part / CHECKPOINT).is_file()
        assert len((run / part / LOSSES).read_text().splitlines()) == 2  # head, step 3


def test_the_bundle_opens_and_says_what_it_is(trained: Training) -> None:
    """Every hash is right; the manifest names data, settings and substitutions, as strict JSON."""
    bundle = open_bundle(trained.out)
    manifest = bundle.manifest
    assert (manifest.method, manifest.categories) == ("DeCo-Diff", CATEGORIES)
    assert manifest.training["steps"] == SETTINGS.steps
    assert (
        manifest.training["good"] == manifest.training["held_out"] == dict.fromkeys(CATEGORIES, 24)
    )
    assert TrainSettings.model_validate(manifest.training["settings"]) == SETTINGS
    assert any("substitute" in told for told in manifest.substitutions)

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    json.loads((trained.out / "manifest.json").read_text(), parse_constant=refuse)


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_the_bundle_is_calibrated_for_this_machine(trained: Training, precision: str) -> None:
    """A threshold per category and for "unknown", each with a promise that was kept."""
    bundle = open_bundle(trained.out)
    calibration = bundle.calibration()
    assert calibration is not None
    key = f"openvino:{precision}"
    if precision == "bf16" and key not in calibration.entries:
        pytest.skip("this processor has no bf16, or it failed the parity gate")
    calibration.require(key, CATEGORIES, bundle.bundle_id)
    entries = calibration.entries[key]
    assert set(entries) == {*CATEGORIES, "unknown"}
    for entry in entries.values():
        assert entry.evidence.bound <= SETTINGS.max_false_reject
        assert set(entry.tails) == set(range(len(bundle.manifest.plans)))
    assert any(s.startswith("calibrated for openvino:f32") for s in trained.sentences)


def test_no_held_out_image_was_trained_on(trained: Training) -> None:
    """Training and calibration share no picture, by name and by pixels."""
    bundle = open_bundle(trained.out)
    seen = set(bundle.manifest.training["trained_on"])
    parts = load_good(trained.data, None, SETTINGS)
    held_out = {fingerprint(image) for part in parts for image in part.held_out}
    assert seen == {fingerprint(image) for part in parts for image in part.train}
    assert not seen & held_out
    unseen = unseen_good(bundle, trained.data, None)
    assert {fingerprint(image) for images in unseen.values() for image in images} == held_out


def test_parity_frames_lie_at_the_threshold(trained: Training) -> None:
    """At least 64 frames of all categories, some within 2 % of where a part begins to fail."""
    bundle = open_bundle(trained.out)
    frames = load_frames(bundle)
    assert len(frames.images) == len(frames.categories) >= FRAMES
    assert set(frames.categories) == set(CATEGORIES)
    calibration = bundle.calibration()
    assert calibration is not None
    parts = [
        Part(str(i), bundle.category_id(name), name, image)
        for i, (image, name) in enumerate(zip(frames.images, frames.categories, strict=True))
    ]
    with open_backend(bundle, "openvino", "f32") as backend:
        found = list(inspect_all(Inspector(backend), parts))
        judged = [calibration.judge(finding, backend.key) for finding in found]
    off = [off_limit(f, j) for f, j in zip(found, judged, strict=True)]
    assert sum(share <= NEAR for share in off) >= NEAR_FRAMES
    assert {judgement.decision.value for judgement in judged} == {"PASS", "FAIL"}


def test_the_method_of_the_bundle_agrees_with_its_graphs(trained: Training) -> None:
    """The torch reference loaded from the weights finds what OpenVINO finds."""
    bundle = open_bundle(trained.out)
    assert not load_method(bundle).training
    images = [load_model_input(item, (64, 64)) for item in good_items(trained.data, "disc")[:4]]
    parts = [Part(str(i), 1, "disc", image, plan=2) for i, image in enumerate(images)]
    scores = []
    for name in ("torch", "openvino"):
        with open_backend(bundle, name, "f32") as backend:
            found = inspect_all(Inspector(backend), parts)
            scores.append([f.anomaly_score for f in sorted(found, key=lambda f: f.frame_id)])
    np.testing.assert_allclose(scores[0], scores[1], rtol=2e-3)


def test_trained_images_set_no_threshold(trained: Training, tmp_path: Path) -> None:
    """calibrate refuses a folder of nothing but trained images, and leaves the old thresholds."""
    bundle = open_bundle(trained.out)
    seen = set(bundle.manifest.training["trained_on"])
    good = tmp_path / "disc" / "train" / "good"
    good.mkdir(parents=True)
    for item in good_items(trained.data, "disc"):
        if fingerprint(load_model_input(item, SETTINGS.image_size)) in seen:
            shutil.copy(item.path, good)
    before = (trained.out / "calibration.json").read_bytes()
    with pytest.raises(BadData, match="trained on all these good images") as caught:
        calibrate_bundle(
            trained.out,
            tmp_path,
            None,
            backend="openvino",
            precision="f32",
            max_false_reject=0.2,
            confidence=0.8,
        )
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert (trained.out / "calibration.json").read_bytes() == before


def test_unseen_images_set_a_threshold(trained: Training, tmp_path: Path) -> None:
    """calibrate takes the held-out half of the data set, and other entries stay."""
    folder = Path(shutil.copytree(trained.out, tmp_path / "bundle"))
    fresh = calibrate_bundle(
        folder,
        trained.data,
        ["disc"],
        backend="openvino",
        precision="f32",
        max_false_reject=0.15,
        confidence=0.8,
    )
    assert fresh.entries["openvino:f32"]["disc"].evidence.good == 24
    bundle = open_bundle(folder)
    calibration = bundle.calibration()
    assert calibration is not None
    calibration.require("openvino:f32", CATEGORIES, bundle.bundle_id)


def test_nothing_but_a_bundle_is_overwritten(trained: Training, tmp_path: Path) -> None:
    """A wrong --out is refused before any work, and the folder stays."""
    (tmp_path / "kept.txt").write_text("kept")
    with pytest.raises(BadData, match="is no bundle"):
        train_bundle(trained.data, tmp_path, SETTINGS)
    with pytest.raises(BadData, match="is no bundle"):
        train_bundle(trained.data, trained.data, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    assert len(good_items(trained.data, "disc")) == 48
