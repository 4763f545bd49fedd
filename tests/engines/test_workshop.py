"""From a folder of good images to a calibrated bundle, in miniature and through a kill."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engines import parity, thresholds, workshop
from engines.backend import BatchedBackend, open_backend
from engines.bundle import GRAPHS, WEIGHTS, Bundle, open_bundle
from engines.calibration_fit import Wanted
from engines.contracts import BadData, Decision, ExitCode, ParityError
from engines.dataset import good_items, load_model_input
from engines.descent import CHECKPOINT, LOSSES
from engines.export import load_method, reseal
from engines.images import fingerprint
from engines.inspector import Inspector, Part, inspect_all
from engines.methods.method import Method
from engines.parity_set import FRAMES, NEAR, NEAR_FRAMES, load_frames, off_limit
from engines.recipe import TrainSettings, load_good
from engines.thresholds import calibrate_bundle, calibrate_everywhere, unseen_good
from engines.workshop import train_bundle
from pipeline.simulator import write_dataset

torch.set_num_threads(1)
# One real export, which takes half a minute on a busy core.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
calibrate = partial(calibrate_bundle, backend="openvino", wanted=Wanted(0.15, 0.8))
CATEGORIES = ("board", "disc")
SETTINGS = TrainSettings(
    size="nano",
    channels=16,
    image_size=(64, 64),
    bank_rows=50,
    scorer=True,
    scorer_pool=16,
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


def die(stage: str, *_: object) -> None:
    """Let a run end when its latents are to be made."""
    if stage == "latents":
        raise Killed


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Killed when the latents were to be made, then resumed to the end."""
    folder = tmp_path_factory.mktemp("workshop")
    data = folder / "parts"
    write_dataset(data, CATEGORIES, 48, 0, test_defect=0, size=(64, 64))
    out = folder / "out" / "bundle"
    out.parent.mkdir()

    with pytest.raises(Killed):
        train_bundle(data, out, SETTINGS, progress=die)
    after_kill = frozenset(path.name for path in out.parent.iterdir())
    stages: list[str] = []
    result = train_bundle(
        data,
        out,
        SETTINGS,
        resume=True,
        date="2030-05-17",
        progress=lambda stage, *_: stages.append(stage),
    )
    return Training(data, out, after_kill, tuple(dict.fromkeys(stages)), result.sentences)


def test_a_kill_leaves_no_bundle(trained: Training) -> None:
    """Only the run's own folder is there."""
    assert trained.after_kill == {"bundle.training"}


def test_a_resumed_run_goes_on(trained: Training) -> None:
    """What was finished is not trained again; the rest is."""
    assert "codec" not in trained.stages
    assert trained.stages[-2:] == ("export", "calibrate")
    assert {"denoiser", "difference"} <= set(trained.stages)
    run = trained.out.with_name("bundle.training")
    for part in ("codec", "scorer", "denoiser", "difference"):
        assert (run / part / CHECKPOINT).is_file()
        assert len((run / part / LOSSES).read_text().splitlines()) == 2  # head, step 3


def test_only_the_run_itself_is_resumed(trained: Training) -> None:
    """A run of other settings, or --from a bundle, is refused before anything is trained."""
    other = SETTINGS.model_copy(update={"batch": 5})
    with pytest.raises(BadData, match="was started with batch 4; use that again"):
        train_bundle(trained.data, trained.out, other, resume=True, progress=die)
    with pytest.raises(BadData, match="was started with no --from"):
        train_bundle(trained.data, trained.out, SETTINGS, based_on=trained.out, resume=True)


def test_what_sees_is_taken_over_bit_for_bit(
    trained: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codec, bank and what the scorer makes of a frame stay; the denoiser is trained."""
    written: list[tuple[dict[str, torch.Tensor], dict[str, object]]] = []
    stages: set[str] = set()

    def write(method: Method, *_: object, training: dict[str, object], **__: object) -> None:
        written.append((method.state_dict(), training))
        raise Killed

    monkeypatch.setattr(workshop, "write_bundle", write)
    with pytest.raises(Killed):
        train_bundle(
            trained.data,
            tmp_path / "new",
            SETTINGS,
            based_on=trained.out,
            progress=lambda stage, *_: stages.add(stage),
        )
    ((new, provenance),) = written
    old = open_bundle(trained.out)
    weights = {name: w.float() for name, w in load_file(old.path(WEIGHTS)).items()}
    refitted = ("scorer.difference.", "scorer.judge.")  # they read the new denoiser's changes
    taken = [n for n in weights if n.startswith(("codec.", "bank.", "scorer."))]
    kept = [name for name in taken if not name.startswith(refitted)]
    assert {name.split(".")[0] for name in kept} == {"codec", "bank", "scorer"}
    assert [name for name in kept if not torch.equal(new[name], weights[name])] == []
    assert {"denoiser", "difference"} <= stages
    assert not {"codec", "bank", "scorer"} & stages
    assert provenance["based_on"] == old.bundle_id


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bank_rows": 40}, "differs in bank"),
        ({"channels": 8}, "differs in codec"),
        ({"scorer": False}, "differs in scorer"),
        ({"tiles": "2x2"}, "differs in tiles"),
        ({"holdout": 0.4}, "was trained on other images or categories"),
    ],
)
def test_what_does_not_fit_is_not_taken_over(
    trained: Training, tmp_path: Path, change: dict[str, object], told: str
) -> None:
    """Settings of another build, and images another split, are refused before any work."""
    settings = TrainSettings.model_validate(SETTINGS.model_dump() | change)
    with pytest.raises(BadData, match=told):
        train_bundle(trained.data, tmp_path / "new", settings, based_on=trained.out)
    assert not list(tmp_path.iterdir())


def test_a_renamed_category_is_another_one(trained: Training, tmp_path: Path) -> None:
    """The same images under names of another order would meet the wrong rows of the bank."""
    data = Path(shutil.copytree(trained.data, tmp_path / "parts"))
    (data / "board").rename(data / "plate")
    with pytest.raises(BadData, match="other images or categories"):
        train_bundle(data, tmp_path / "new", SETTINGS, based_on=trained.out)


def test_a_category_too_small_for_the_promise_is_named(trained: Training, tmp_path: Path) -> None:
    """The other one and "unknown" are calibrated; parts of the small one stay UNDECIDED."""
    bundle = open_bundle(Path(shutil.copytree(trained.out, tmp_path / "bundle")))
    parts = load_good(trained.data, None, SETTINGS)
    held_out = {part.category: list(part.held_out) for part in parts}
    held_out["disc"] = held_out["disc"][:3]
    # Half of the large category and the small one together would be too few for "unknown".
    settings = SETTINGS.model_copy(update={"max_false_reject": 0.08, "precisions": ("f32",)})
    bundle, sentences = calibrate_everywhere(bundle, held_out, settings, lambda *_: None)
    calibration = bundle.calibration()
    assert calibration is not None
    assert set(calibration.entries["openvino:f32"]) == {"board", "unknown"}
    assert "not calibrated for disc: 3 held-out good images are too few" in sentences
    assert set(load_frames(bundle).categories) == {"board"}
    with open_backend(bundle, "openvino", "f32") as backend:
        (found,) = inspect_all(Inspector(backend), [Part("0", 1, "disc", held_out["disc"][0])])
    assert calibration.judge(found, "openvino:f32").decision is Decision.UNDECIDED


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
        assert entry.evidence.date == "2030-05-17"
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
        calibrate(trained.out, tmp_path, None, precision="f32")
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert (trained.out / "calibration.json").read_bytes() == before


def test_unseen_images_set_a_threshold(trained: Training, tmp_path: Path) -> None:
    """calibrate takes the held-out half of the data set, and other entries stay."""
    folder = Path(shutil.copytree(trained.out, tmp_path / "bundle"))
    fresh = calibrate(folder, trained.data, ["disc"], precision="f32")
    assert fresh.entries["openvino:f32"]["disc"].evidence.good == 24
    bundle = open_bundle(folder)
    calibration = bundle.calibration()
    assert calibration is not None
    calibration.require("openvino:f32", CATEGORIES, bundle.bundle_id)


def _whatever_is_pinned(bundle: Bundle, name: str, precision: str) -> BatchedBackend:
    """Every graph in the precision asked for, also those that the bundle wants in f32."""
    return open_backend(bundle, name, dict.fromkeys(GRAPHS, precision))


def test_a_precision_that_disagrees_sets_no_threshold(
    trained: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """calibrate asks the parity set as training does; where the gate fails nothing is saved."""
    folder = Path(shutil.copytree(trained.out, tmp_path / "bundle"))
    bundle = open_bundle(folder)
    with open_backend(bundle, "openvino", "bf16") as half:
        if not half.key.endswith("bf16"):
            pytest.skip("this processor has no bf16")
    before = (folder / "calibration.json").read_bytes()
    monkeypatch.setattr(parity, "EPSILON", 1e-9)
    monkeypatch.setattr(thresholds, "open_backend", _whatever_is_pinned)
    with pytest.raises(ParityError, match="DISAGREES with openvino:f32"):
        calibrate(folder, trained.data, None, precision="bf16")
    assert (folder / "calibration.json").read_bytes() == before


def test_without_a_parity_set_auto_is_single_precision(trained: Training, tmp_path: Path) -> None:
    """A bundle that its training could not calibrate has no frames to prove another one by."""
    folder = Path(shutil.copytree(trained.out, tmp_path / "bundle"))
    bundle = open_bundle(folder)
    shutil.rmtree(folder / "parity")
    reseal(bundle)
    fresh = calibrate(folder, trained.data, ["disc"], precision="auto")
    assert set(fresh.entries) == {"openvino:f32"}


def test_nothing_but_a_bundle_is_overwritten(trained: Training, tmp_path: Path) -> None:
    """A wrong --out is refused before any work, and the folder stays."""
    (tmp_path / "kept.txt").write_text("kept")
    with pytest.raises(BadData, match="is no bundle"):
        train_bundle(trained.data, tmp_path, SETTINGS)
    with pytest.raises(BadData, match="is no bundle"):
        train_bundle(trained.data, trained.data, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    assert len(good_items(trained.data, "disc")) == 48
