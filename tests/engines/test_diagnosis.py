"""What limits a bundle, measured on a tiny method that was never trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from engines import diagnosis
from engines.bundle import WEIGHTS, Bundle, GraphsSpec, Manifest
from engines.checkpoint import write_tensors
from engines.contracts import BadBundle
from engines.dataset import test_items as items_of  # under its own name pytest would collect it
from engines.diagnosis import Diagnosis, _codec_error, _sums_of, diagnose
from engines.export import save_weights
from engines.methods.decodiff import DecoDiff
from pipeline.simulator import write_dataset
from tests.engines.sketches import GladSketch

STEPS = (3, 7)
CONFIGURATION = {
    "method": "DeCo-Diff",
    "codec": {"kind": "features", "channels": 8, "image_size": [64, 64]},
    "denoiser": "nano",
    "categories": 1,
    "image_size": [64, 64],
    "bank": None,
}


@dataclass(frozen=True)
class Run:
    """A bundle without graphs, which no diagnosis needs, the run beside it, and test images."""

    bundle: Bundle
    training: Path
    data: Path


@pytest.fixture(scope="module", params=[False, True], ids=["published", "whitened"])
def run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Run:
    """Two snapshots: the first answers zero everywhere, the second something."""
    configuration = CONFIGURATION | {"whitened": request.param}
    folder = tmp_path_factory.mktemp("diagnosis")
    data = folder / "parts"
    write_dataset(data, ("disc",), 3, 3, test_defect=4, size=(64, 64))
    torch.manual_seed(0)
    method = DecoDiff(configuration).eval().requires_grad_(False)
    save_weights(method, folder / WEIGHTS)
    for step in STEPS:
        path = folder / "run" / "denoiser" / "snapshots" / f"step_{step:06d}.safetensors"
        write_tensors(path, method.denoiser.state_dict(), {"step": step})
        method.denoiser.get_parameter("unet.conv_out.weight").normal_(std=0.05)
    manifest = Manifest(
        method=method.name,
        categories=("disc",),
        image_size=(64, 64),
        plans=(),
        steps_min=1,
        steps_unit=1,
        spec=GraphsSpec(state=(), graphs={}, map_size=method.map_size),
        configuration=configuration,
        training={"settings": {"holdout": 0.25, "seed": 0}},
        files={},
    )
    return Run(Bundle(folder, manifest, "tiny"), folder / "run", data)


@pytest.fixture(scope="module")
def found(run: Run) -> Diagnosis:
    """The diagnosis of that run."""
    return diagnose(run.bundle, run.training, run.data)


def test_the_curve_has_a_point_per_snapshot(found: Diagnosis) -> None:
    """In order of steps; a denoiser that says nothing tells no part from another."""
    assert [point.step for point in found.curve] == list(STEPS)
    silent, speaking = (point.image_auroc for point in found.curve)
    assert silent == 0.5
    assert speaking is not None
    assert 0 <= speaking <= 1


def test_the_codec_is_measured_inside_and_outside_defects(run: Run, found: Diagnosis) -> None:
    """One row per category, in grey levels; an untrained picture keeps next to no contrast."""
    (row,) = found.codec
    assert any(item.mask_path for item in items_of(run.data, "disc"))
    assert 0 < row.inside < 255
    assert 0 < row.outside < 255
    assert row.contrast > 0
    assert abs(row.kept) < 0.2


def test_batches_of_any_size_add_up() -> None:
    """An image in a short last batch weighs as much as any; a perfect picture keeps everything."""
    generator = torch.Generator().manual_seed(1)
    shown = 255 * torch.rand(5, 32, 32, generator=generator)
    drawn = shown + torch.randn(shown.shape, generator=generator)
    inside = torch.rand(shown.shape, generator=generator) < 0.1
    rows = (slice(0, 4), slice(4, 5))
    apart = torch.stack([_sums_of(shown[r], drawn[r], inside[r]) for r in rows]).sum(0)
    assert _codec_error("x", apart) == _codec_error("x", _sums_of(shown, drawn, inside))
    perfect = _codec_error("x", _sums_of(shown, shown, inside))
    assert (perfect.inside, perfect.outside, perfect.kept) == (0, 0, 1)


def test_the_evidence_of_every_category_is_weighed(found: Diagnosis) -> None:
    """A method without bank and scorer has its own map, which is all."""
    assert [(p.category, p.evidence) for p in found.evidence] == [
        ("disc", "denoiser"),
        ("disc", "all"),
    ]


def test_a_diagnosis_says_what_it_is_of(found: Diagnosis) -> None:
    """Method, bundle and substitutions stand beside the numbers."""
    assert found.origin == "DeCo-Diff (bundle tiny, torch:f32), substitutions: none named."


def test_a_run_without_snapshots_has_no_curve(run: Run, tmp_path: Path) -> None:
    """Codec and evidence are measured all the same."""
    found = diagnose(run.bundle, tmp_path, run.data)
    assert found.curve == ()
    assert len(found.codec) == 1
    assert found.evidence


def test_a_method_without_a_latent_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to take apart."""
    monkeypatch.setattr(diagnosis, "load_method", lambda _: GladSketch())
    with pytest.raises(BadBundle, match="no diagnosis for GLAD"):
        diagnose(run.bundle, run.training, run.data)
