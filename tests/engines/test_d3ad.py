"""Faithfulness of D3AD to its equations (arXiv 2401.04463), and the laws of every method."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engines.backend_openvino import OpenVinoBackend
from engines.backend_torch import TorchBackend
from engines.contracts import BadConfig, Rows
from engines.graphs import export_graphs
from engines.methods import build_method
from engines.methods.d3ad import CALLS, SHORTENED, D3ad, cosine_distance, start_levels
from engines.methods.fit import fit_scales
from engines.methods.latent import Batch
from engines.methods.method import State
from tests.engines.sketch_parts import Denoiser
from tests.engines.walking import findings

CONFIGURATION: dict[str, Any] = {
    "method": "D3AD",
    "codec": {"kind": "features", "channels": 8, "image_size": (64, 64)},
    "denoiser": "nano",
    "categories": 2,
    "image_size": (64, 64),
}
WITH_BANK = CONFIGURATION | {"bank": {"rows": 20}}
WITH_VAE = CONFIGURATION | {"codec": {"kind": "vae", "image_size": (64, 64)}}
GOOD = 8
Answer = Callable[[Tensor, Tensor], Tensor]


def images(count: int, seed: int, spread: float = 40.0) -> Tensor:
    """Noise about a bar, u8 [count, 64, 64, 3]; rows differ more the larger the spread."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.full((count, 64, 64, 3), 80.0)
    drawn[:, 20:44, 10:54] += 90
    strength = torch.linspace(0.2, 1.0, count).view(-1, 1, 1, 1) * spread
    noise = torch.randn(drawn.shape, generator=generator)
    return (drawn + strength * noise).clamp(0, 255).to(torch.uint8)


def built(configuration: dict[str, Any]) -> D3ad:
    """A method with a fitted codec and a denoiser that answers something."""
    torch.manual_seed(0)
    method = build_method(configuration)
    assert isinstance(method, D3ad)
    method.eval().requires_grad_(False).codec.fit([images(GOOD, seed=1)])
    method.denoiser.get_parameter("unet.conv_out.weight").normal_(std=0.05)
    return method


@pytest.fixture
def method() -> D3ad:
    """Without a bank, over features; a fresh one, since tests replace its parts."""
    return built(CONFIGURATION)


@pytest.fixture(scope="module")
def fitted() -> D3ad:
    """With a bank, and everything fitted that is fitted on good parts."""
    method = built(WITH_BANK)
    assert method.bank is not None
    method.denoiser = Denoiser(8, 8).eval()  # a U-Net takes half a minute to export
    with torch.inference_mode():
        patches = method.codec.encode_all(images(GOOD, seed=1)).patches
    cells = patches.permute(0, 2, 3, 1).flatten(0, 2)
    method.bank.fit({0: cells, 1: cells + 0.1})
    fit_scales(method, [images(GOOD, seed=2 + c) for c in range(2)], range(2))
    for category in range(3):  # whatever shares were found best, here every plan is in reach
        method.severity_edges[category] = method.edges_of(torch.linspace(1, 2, GOOD))
    return method


class Answering(nn.Module):
    """A denoiser that answers by a function of latent and level."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer

    def forward(self, latent: Tensor, level: Tensor, _category: Tensor) -> Tensor:
        """The answer."""
        return self._answer(latent, level)


def started(method: D3ad, plan: int, rows: int = 2) -> State:
    """Frames at the start of a plan."""
    ids = torch.arange(rows) % 2
    forced = torch.full((rows,), plan, dtype=torch.int32)
    return method.start(images(rows, seed=5), ids, torch.zeros_like(ids), forced)


def walked(method: D3ad, plan: int) -> State:
    """Frames at the end of a plan."""
    state = started(method, plan)
    for _ in range(method.plans[plan].steps):
        state |= method.step(state)
    return state


def test_bins_map_to_the_published_levels() -> None:
    """Severity bins 1 to 10 give T = 20, 20, 20, 30, 40, 50, 60, 60, 70, 80."""
    assert start_levels(80) == (20, 20, 20, 30, 40, 50, 60, 60, 70, 80)
    assert start_levels(200) == (40, 40, 60, 80, 100, 120, 140, 160, 180, 200)


@pytest.mark.parametrize("t_max", [30, 80, 200, 990])
def test_published_plans_make_ten_calls(t_max: int) -> None:
    """Levels are 9r, 8r, ..., 0 with r = T / 10, T ascends, and T_max is the last."""
    plans = D3ad(CONFIGURATION | {"t_max": t_max}).plans[len(SHORTENED) :]
    for plan in plans:
        stride = plan.start_level // CALLS
        assert plan.levels == tuple(k * stride for k in range(9, -1, -1))
        assert stride > 0
    starts = [plan.start_level for plan in plans]
    assert starts == sorted(set(start_levels(t_max)))
    assert starts[-1] == t_max


def test_shortened_plans_begin_deep_and_end_clean(method: D3ad) -> None:
    """A deadline's plan spans all of T_max with fewer calls."""
    found = [(p.start_level, p.steps, p.levels[-1]) for p in method.plans[: len(SHORTENED)]]
    assert found == [(80, 2, 0), (80, 5, 0)]


@pytest.mark.parametrize("wrong", [{"t_max": 85}, {"t_max": 20}, {"t_max": 1000}, {"eta": -1}])
def test_settings_that_do_not_fit_are_refused(wrong: dict[str, float]) -> None:
    """T_max is a multiple of ten between the first stride and the schedule's end."""
    with pytest.raises(BadConfig, match="choose"):
        D3ad(CONFIGURATION | wrong)


def test_the_walk_starts_scaled_and_without_noise(method: D3ad) -> None:
    """z_T = a_T z_0 for every plan; the verdict's level is T."""
    for number, plan in enumerate(method.plans):
        state = started(method, number)
        expected = method.a[plan.start_level] * state["anchor"]
        torch.testing.assert_close(state["latent"], expected, atol=0, rtol=0)
        assert state["level"].tolist() == [plan.start_level] * 2


@pytest.mark.parametrize("eta", [0.0, 4.0, 10.0])
def test_the_pull_has_its_closed_form(method: D3ad, eta: float) -> None:
    """The estimate is z^_0 + eta (1 - abar_t) (z_0 - z^_0); the latent is a_s of it plus b_s e^."""
    noise = torch.randn((2, *method.codec.latent_shape))
    method.denoiser = Answering(lambda *_: noise)
    method.eta = eta
    state = started(method, len(method.plans) - 1)
    levels = (*method.plans[-1].levels, -1)
    for t, s in pairwise(levels):
        plain = (state["latent"] - method.b[t] * noise) / method.a[t]
        expected = plain + eta * method.b[t] ** 2 * (state["anchor"] - plain)
        guided = (state["latent"] - method.a[t] * expected) / method.b[t]
        state |= method.step(state)
        torch.testing.assert_close(state["estimate"], expected, atol=1e-4, rtol=1e-4)
        moved = method.a[s] * expected + method.b[s] * guided
        torch.testing.assert_close(state["latent"], moved, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(state["latent"], state["estimate"], atol=1e-5, rtol=1e-5)


def test_a_silent_network_without_pull_gives_the_scaled_input(method: D3ad) -> None:
    """e = 0 and eta = 0 give z^ = z_0 but for the start's own factor a_T / a_9r.

    The published walk starts on level T and makes its first call at level 9 T / 10.
    """
    method.denoiser = Answering(lambda latent, _: 0 * latent)
    method.eta = 0.0
    for number, plan in enumerate(method.plans):
        state = walked(method, number)
        factor = method.a[plan.start_level] / method.a[plan.levels[0]]
        assert plan.steps != CALLS or 0.98 < factor < 1
        torch.testing.assert_close(
            state["estimate"], factor * state["anchor"], atol=1e-5, rtol=1e-4
        )


def test_an_oracle_recovers_the_clean_latent(method: D3ad) -> None:
    """With the true noise every estimate is z_0, from any level and at any stride."""
    for number, plan in enumerate(method.plans):
        state = started(method, number)
        state["latent"] = state["latent"] + torch.randn_like(state["latent"])
        clean = state["anchor"]

        def oracle(latent: Tensor, level: Tensor, clean: Tensor = clean) -> Tensor:
            a, b = method.signal(level)
            return (latent - a * clean) / b

        method.denoiser = Answering(oracle)
        for _ in range(plan.steps):
            state |= method.step(state)
            torch.testing.assert_close(state["estimate"], clean, atol=1e-4, rtol=1e-4)


def test_severity_chooses_the_published_level(fitted: D3ad) -> None:
    """Above the median of good parts T is that of the histogram's bin; below it no step is made."""
    good = torch.rand(40, generator=torch.Generator().manual_seed(6)) ** 2 + 1
    edges = fitted.edges_of(good)
    bins = np.histogram(good.numpy(), 10)[1]
    for severity in torch.linspace(0.5, 2.5, 501):
        plan = fitted.plans[int((severity > edges).sum())]
        if severity <= good.quantile(0.5):
            assert plan.steps == 0
            continue
        number = max(2, min(10, int(np.digitize(severity.numpy(), bins, right=True))))
        assert plan.start_level == start_levels(80)[number - 1]
        assert plan.steps == CALLS


def test_a_farther_frame_is_never_denoised_less(fitted: D3ad) -> None:
    """T never falls with severity, no shortened plan is chosen, and beyond all is T_max."""
    severity = torch.linspace(0, 4, 801)
    for edges in fitted.severity_edges:
        chosen = (severity[:, None] > edges).sum(1)
        assert bool((fitted.start_of_plan[chosen].diff() >= 0).all())
        assert not set(chosen.tolist()) & set(range(1, 1 + len(SHORTENED)))
        assert int(chosen[-1]) == len(fitted.plans) - 1


def test_without_a_bank_every_frame_takes_t_max(method: D3ad) -> None:
    """Nothing else knows how far a frame lies from good parts."""
    assert started(method, -1)["plan"].tolist() == [len(method.plans) - 1] * 2


@pytest.mark.parametrize("configuration", [CONFIGURATION, WITH_VAE], ids=["features", "vae"])
def test_equal_latents_have_no_map(configuration: dict[str, Any]) -> None:
    """z^ = z_0 gives zero everywhere, with both codecs, and any other z^ does not."""
    method = built(configuration)
    state = started(method, -1)
    assert method.deviation_map(state).abs().max() == 0
    state["estimate"] = state["estimate"] + 0.1
    assert (method.deviation_map(state).amax((1, 2)) > 0).all()


def test_cosine_distance_is_one_minus_cosine() -> None:
    """Also of equal, opposite and empty vectors."""
    one, other = torch.randn(2, 3, 5, 4, 4)
    expected = 1 - nn.functional.cosine_similarity(one, other, dim=1)
    torch.testing.assert_close(cosine_distance(one, other), expected, atol=1e-6, rtol=1e-5)
    assert (cosine_distance(one, -one) - 2).abs().max() < 1e-5
    assert cosine_distance(0 * one, 0 * one).abs().max() == 0


def test_maps_are_joined_by_their_shares(method: D3ad, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of l_scale and f_scale everywhere join to one, of l_scale alone to .85."""
    method.latent_scale.fill_(2)
    method.feature_scale.fill_(5)
    monkeypatch.setattr(method, "latent_change", lambda _: torch.full((2, 16, 16), 2.0))
    for feature, expected in ((5.0, 1.0), (0.0, 0.85)):
        change = torch.full((2, 16, 16), feature)
        monkeypatch.setattr(method, "feature_change", lambda _, change=change: change)
        found = method.deviation_map({"category": torch.tensor([0, 1])})
        torch.testing.assert_close(found, torch.full((2, 16, 16), expected))


def test_fitted_tables_are_finite_and_positive(fitted: D3ad) -> None:
    """Scales of both maps are found per category, and differ from what they started at."""
    for name in fitted.constants():
        table = fitted.get_buffer(name)
        assert bool(table.isfinite().all()), name
    for scale in (fitted.latent_scale, fitted.feature_scale):
        assert bool(((scale > 0) & (scale != 1)).all())


def test_the_network_learns_the_noise(method: D3ad) -> None:
    """Silence costs the variance of the noise, 1; a few gradient steps cost less."""
    torch.manual_seed(3)
    student = D3ad(CONFIGURATION | {"dropout": 0.0})
    latent = method.codec.encode(images(8, seed=7))
    batch = Batch(latent, latent, torch.arange(8) % 3)
    optimizer = torch.optim.AdamW(student.denoiser.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = student.training_loss(batch, torch.Generator().manual_seed(8))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1, abs=0.05)
    assert losses[-1] < 0.8 * losses[0]


def test_no_step_is_no_evidence(method: D3ad, fitted: D3ad) -> None:
    """Without a bank a frame that made no step scores NaN; with one the bank judges it."""
    assert bool(method.finish(started(method, -1))[1].isnan().all())
    assert bool(method.finish(walked(method, 0))[1].isfinite().all())
    assert bool(fitted.finish(started(fitted, 0))[1].isfinite().all())


def rows_of_all_plans(method: D3ad) -> Rows:
    """One frame for each plan, the graph's own choice first; calm and noisy frames alternate."""
    count = len(method.plans) + 3
    pictures = torch.cat([images(count, seed=9), images(count, seed=10, spread=160)])[::2]
    return Rows(
        pictures.numpy()[:count],
        np.arange(count) % 3,
        np.zeros(count, np.int64),
        np.arange(-1, count - 1, dtype=np.int32) % (len(method.plans) + 1) - 1,
    )


def test_a_frame_is_judged_alone_as_in_a_batch(fitted: D3ad) -> None:
    """Batch mates on other plans and levels change nothing."""
    rows = rows_of_all_plans(fitted)
    count = len(rows.plan)
    backend = TorchBackend(fitted, count)
    maps, scores, _ = findings(backend, rows, list(range(count)))
    for row in (0, 3, count - 2):
        one = Rows(*(getattr(rows, name)[row : row + 1] for name in Rows.__dataclass_fields__))
        alone, score, _ = findings(backend, one, [0])
        np.testing.assert_allclose(maps[row], alone[0], rtol=1e-4, atol=1e-5)
        assert scores[row] == pytest.approx(score[0], rel=1e-4)


@pytest.mark.timeout(600)  # of a busy core; half a minute of an idle one
def test_exported_graphs_agree_at_every_plan(fitted: D3ad, tmp_path: Path) -> None:
    """OpenVINO gives the findings of torch for rows of all plans in one batch."""
    spec = export_graphs(fitted, tmp_path)
    rows = rows_of_all_plans(fitted)
    slots = list(range(len(rows.plan)))
    ours = OpenVinoBackend(tmp_path, spec, precision="f32", capacity=len(slots), threads=1)
    maps, scores, plans = findings(ours, rows, slots)
    expected = findings(TorchBackend(fitted, len(slots)), rows, slots)
    assert plans.tolist() == expected[2].tolist()
    assert set(plans.tolist()) == set(range(len(fitted.plans)))
    np.testing.assert_allclose(maps, expected[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(scores, expected[1], rtol=1e-3)
    assert "seed" not in spec.graphs["start"].inputs
