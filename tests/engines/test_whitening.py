"""Laws of measuring changes in good parts' own, and of a denoiser that starts from a guess."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engines.backend_openvino import OpenVinoBackend
from engines.backend_torch import TorchBackend
from engines.contracts import Rows
from engines.graphs import export_graphs
from engines.methods import build_method
from engines.methods.decodiff import GATE_START, DecoDiff
from engines.methods.fit import fit_whitening
from engines.methods.latent import LatentMethod
from engines.methods.whitening import Whitening
from tests.engines.sketch_parts import Denoiser
from tests.engines.walking import findings

pytestmark = pytest.mark.slow

CHANNELS, SIDE = 8, 64
NOISE_METHODS = ("D3AD", "GLAD", "DRDC-style")
CONFIGURATION: dict[str, Any] = {
    "codec": {"kind": "features", "channels": CHANNELS, "image_size": (SIDE, SIDE)},
    "denoiser": "nano",
    "categories": 1,
    "image_size": (SIDE, SIDE),
    "preconditioned": True,
    "whitened": True,
}


def good_changes(count: int, seed: int = 0) -> Tensor:
    """Changes [count, 4, 6, 6] that vary most along the first channel."""
    spread = torch.tensor([1.0, 0.3, 0.3, 0.3]).view(1, 4, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, 6, 6, generator=generator) * spread


@pytest.fixture
def whitening() -> Whitening:
    """Fitted on the first of two categories."""
    whitening = Whitening(2, 4)
    whitening.fit(list(good_changes(40).split(8)), 0)
    return whitening


def built(name: str) -> LatentMethod:
    """A preconditioned, whitened method with a small stand-in for the U-Net."""
    torch.manual_seed(0)
    method = build_method(CONFIGURATION | {"method": name})
    assert isinstance(method, LatentMethod)
    method.eval().requires_grad_(False).codec.fit([parts(8)])
    return method


def parts(count: int) -> Tensor:
    """A noisy bar, u8 [count, 64, 64, 3]."""
    drawn = torch.full((count, SIDE, SIDE, 3), 80.0)
    drawn[:, 20:44, 10:54] += 90
    noise = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(1))
    return (drawn + 20 * noise).clamp(0, 255).to(torch.uint8)


def test_good_changes_have_unit_length(whitening: Whitening) -> None:
    """Their mean square is 1, those that were not seen included, less what the floor takes."""
    length = whitening(good_changes(40, seed=1), torch.zeros(40, dtype=torch.int64))
    assert 0.9 < float((length**2).mean()) < 1.05


def test_a_change_that_good_parts_never_make_is_long(whitening: Whitening) -> None:
    """As large a change counts more across than along what good parts do."""
    along, across = torch.zeros(2, 1, 4, 1, 1)
    along[:, 0] = 1
    across[:, 1] = 1
    category = torch.tensor([0])
    assert whitening(across, category) > 3 * whitening(along, category)


def test_no_change_has_no_length(whitening: Whitening) -> None:
    """A frame that made no step shows nothing, however good parts change."""
    still = torch.zeros(1, 4, 2, 2)
    assert torch.equal(whitening(still, torch.tensor([0])), torch.zeros(1, 2, 2))


def test_categories_are_measured_apart(whitening: Whitening) -> None:
    """What has not been fitted measures as it is."""
    change = good_changes(2)
    plain = (change**2).mean(1).sqrt()
    torch.testing.assert_close(whitening(change, torch.tensor([1, 1])), plain)


@pytest.mark.parametrize("size", [0.0, 1e-7, 1e4])
def test_changes_of_any_size_are_measured(size: float) -> None:
    """A walk that hardly moves is measured as well; tables fit half precision."""
    whitening = Whitening(1, 4)
    whitening.fit([size * good_changes(8)], 0)
    assert whitening.axes.abs().max() <= 10
    whitening.axes.copy_(whitening.axes.half().float())
    length = whitening(size * good_changes(4, seed=2), torch.zeros(4, dtype=torch.int64))
    assert length.isfinite().all()
    assert size == 0 or 0.5 < float((length**2).mean()) < 1.5


@pytest.mark.parametrize("name", NOISE_METHODS)
def test_a_silent_network_leaves_the_best_linear_guess(name: str) -> None:
    """eps^ = b z_t, so z^_0 = a z_t: what is best for a whitened latent without any knowledge."""
    method = built(name)
    channels = method.codec.latent_shape[0]
    inputs = 2 * channels + 1 if name == "DRDC-style" else channels
    latent, level = torch.randn(2, inputs, 8, 8), torch.tensor([40, 200])
    noise = method.predicted_noise(latent, level, torch.tensor([0, 1]))
    a, b = method.signal(level)
    noisy = latent[:, :channels]
    torch.testing.assert_close(noise, b * noisy)
    torch.testing.assert_close((noisy - b * noise) / a, a * noisy)


def test_a_silent_gate_is_nearly_shut() -> None:
    """Before anything is learned a cell is taken for good."""
    method = built("DeCo-Diff")
    assert isinstance(method, DecoDiff)
    latent, level = torch.randn(2, CHANNELS, 8, 8), torch.tensor([2, 8])
    found = method.predicted_deviation(latent, level, torch.tensor([0, 1]))
    a, b = method.signal(level)
    share = torch.tensor(GATE_START).sigmoid()
    torch.testing.assert_close(found, share * (1 - a) / b * latent)


@pytest.mark.timeout(600)  # of a busy core; half a minute of an idle one
@pytest.mark.parametrize("name", ["DeCo-Diff", "D3AD", "DRDC-style"])
def test_exported_graphs_agree(name: str, tmp_path: Path) -> None:
    """OpenVINO measures as torch does, at every plan."""
    method = built(name)
    if name == "DRDC-style":  # U-Nets take long to export
        method.denoiser.inpainter = Denoiser(2 * CHANNELS + 1, CHANNELS).eval()
    else:
        method.denoiser = Denoiser(CHANNELS, CHANNELS + (name == "DeCo-Diff")).eval()
    fit_whitening(method, [parts(8)])
    plans = len(method.plans)
    rows = Rows(
        parts(plans).numpy(),
        np.zeros(plans, np.int64),
        np.arange(plans, dtype=np.int64),
        np.arange(plans, dtype=np.int32),
    )
    spec = export_graphs(method, tmp_path)
    slots = list(range(plans))
    ours = OpenVinoBackend(tmp_path, spec, precision="f32", capacity=plans, threads=1)
    found = [findings(backend, rows, slots) for backend in (ours, TorchBackend(method, plans))]
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-3, equal_nan=True)
