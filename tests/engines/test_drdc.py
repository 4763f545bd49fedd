"""Laws of the DRDC-style walk: conditioning, covers, evidence, training (arXiv 2407.01905)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engines.backend_openvino import OpenVinoBackend
from engines.backend_torch import TorchBackend
from engines.contracts import BadConfig, Rows
from engines.graphs import export_graphs
from engines.methods.drdc import KINDS, Drdc, residual_name
from engines.methods.drdc_inpainting import lock_low_band, reimpose
from engines.methods.latent import Batch

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from pathlib import Path

    from engines.methods.method import State

CONFIGURATION = {
    "method": "DRDC-style",
    "codec": {"kind": "vae", "network": "tiny", "image_size": (64, 64)},
    "denoiser": "nano",
    "categories": 2,
    "image_size": (64, 64),
}
DEEPEST = 3


def build(**changes: object) -> Drdc:
    """A tiny method whose networks answer something."""
    torch.manual_seed(0)
    method = Drdc(CONFIGURATION | changes).eval().requires_grad_(False)
    method.denoiser.get_parameter("inpainter.unet.conv_out.weight").normal_(std=0.05)
    return method


@pytest.fixture(scope="module")
def method() -> Drdc:
    """The same for all laws."""
    return build()


def images(count: int, seed: int = 0) -> Tensor:
    """Noise of rising contrast, u8 [count, 64, 64, 3]."""
    drawn = torch.rand(count, 64, 64, 3, generator=torch.Generator().manual_seed(seed))
    contrast = torch.linspace(0.2, 1.0, count).view(-1, 1, 1, 1)
    return (255 * drawn * contrast).to(torch.uint8)


def started(method: Drdc, plans: list[int], seed: int = 3) -> State:
    """One frame per plan."""
    category = torch.arange(len(plans)) % 3
    seeds = torch.arange(len(plans)) + seed
    return method.start(images(len(plans)), category, seeds, torch.tensor(plans).int())


def walked(method: Drdc, plan: int, calls: int) -> State:
    """Two frames after some calls of a plan."""
    state = started(method, [plan, plan])
    for _ in range(calls):
        state |= method.step(state)
    return state


def test_visible_cells_are_reimposed(method: Drdc) -> None:
    """Whatever the network answers, a call changes hidden cells alone."""
    state = started(method, [1, 2])
    hidden = method.masks[0, 0].expand(2, -1, -1, -1)
    estimate = method.inpaint(state, torch.tensor([50, 150]), hidden)
    kept = (hidden == 0).expand_as(estimate)
    assert torch.equal(estimate[kept], state["anchor"][kept])
    assert not torch.equal(estimate[~kept], state["anchor"][~kept])
    anything = reimpose(torch.full_like(estimate, 9.0), state["anchor"], hidden)
    assert torch.equal(anything[kept], state["anchor"][kept])


def test_an_oracle_stitches_the_image(method: Drdc) -> None:
    """With the true noise every cover gives the image back, and no residual."""
    state = started(method, [DEEPEST, 1])
    with _Answering(method, method.noise_table[state["noise_row"]]):
        for _ in range(2):
            state |= method.step(state)
    torch.testing.assert_close(state["estimate"], state["anchor"], atol=1e-5, rtol=1e-5)
    assert float(state["heat"].abs().max()) < 1e-5
    assert state["covers"].sum(1).tolist() == [1, 1]


def test_the_lock_lets_go_where_the_base_heatmap_is_high(method: Drdc) -> None:
    """The gate is 1 at the level of good parts, 0 from twice it; and 0 locks nothing."""
    error = torch.tensor([0.5, 1.0, 1.5, 2.0, 9.0]).view(5, 1, 1).expand(5, 8, 8)
    state = {"feature_error": error, "category": torch.zeros(5, dtype=torch.int64)}
    open_gate = method.gate(state)
    assert bool((open_gate == 1).all())  # before it is fitted
    fitted = build()
    fitted.gate_level.fill_(1.0)
    assert fitted.gate(state)[:, 0, 0, 0].tolist() == [1.0, 1.0, 0.5, 0.0, 0.0]
    estimate, image = torch.randn(5, 4, 8, 8), torch.randn(5, 4, 8, 8)
    hidden = torch.ones(5, 1, 8, 8)
    locked = lock_low_band(estimate, image, hidden, fitted.gate(state), 2.0)
    torch.testing.assert_close(locked[3:], estimate[3:], atol=0, rtol=0)


def test_plans_visit_each_timestep_once_per_mask(method: Drdc) -> None:
    """Two calls per cover at one timestep; the level is the strongest; none in the first plan."""
    levels = [plan.levels for plan in method.plans]
    assert levels == [(), (50, 50), (50, 50, 150, 150), (50, 50, 150, 150) * 2]
    assert [plan.start_level for plan in method.plans] == [-1, 50, 150, 150]
    assert (method.steps_min, method.steps_unit) == (0, 2)
    turns = []
    state = started(method, [DEEPEST])
    for _ in range(8):
        turns.append([int(x) for x in method.turn(state)])
        state["steps_left"] = state["steps_left"] - 1
    assert turns == [[kind, part] for kind in range(4) for part in range(2)]


def test_only_complete_covers_count(method: Drdc) -> None:
    """A row cut in the middle of a cover keeps the evidence of the covers before it."""
    maps, estimates = [], []
    state = started(method, [DEEPEST, 2])
    for _ in range(5):
        maps.append(method.finish(state)[0])
        estimates.append(state["estimate"])
        state |= method.step(state)
    assert torch.equal(maps[0], maps[1])
    assert torch.equal(maps[2], maps[3])
    assert not torch.equal(maps[1], maps[2])
    assert not torch.equal(maps[3], maps[4])
    assert torch.equal(estimates[0], estimates[1])
    assert torch.equal(estimates[2], estimates[3])
    assert not torch.equal(estimates[1], estimates[2])


def test_every_call_starts_from_the_image(method: Drdc) -> None:
    """Covers are no chain: what stands from earlier ones does not reach the next."""
    state = walked(method, DEEPEST, 2)
    other = state | {"latent": torch.randn_like(state["latent"])}
    for _ in range(2):
        state, other = state | method.step(state), other | method.step(other)
    torch.testing.assert_close(state["estimate"], other["estimate"], atol=1e-6, rtol=1e-6)
    assert torch.equal(state["covers"], torch.tensor([[1, 1, 0, 0]] * 2, dtype=torch.int32))


def test_without_a_step_the_base_heatmap_is_the_evidence(method: Drdc) -> None:
    """A frame that makes no step has a finite map, that of the base branch alone."""
    state = started(method, [0, 0])
    found, score = method.finish(state)
    torch.testing.assert_close(found, method.smooth_base_map(state["feature_error"]))
    assert bool(score.isfinite().all())


def test_refinement_sharpens_and_does_not_create(method: Drdc) -> None:
    """The product is nowhere below the base and nothing where the base is nothing."""
    state = walked(method, 2, 4)
    base, _ = method.finish(state | {"covers": 0 * state["covers"], "heat": 0 * state["heat"]})
    found, _ = method.finish(state)
    assert bool((found >= base).all())
    assert bool((found > base).any())
    silent, _ = method.finish(state | {"feature_error": 0 * state["feature_error"]})
    assert float(silent.abs().max()) == 0.0


def test_the_sum_is_a_choice() -> None:
    """A_base + lambda A_ref stands beside the product; other words are refused."""
    summing = build(fusion="sum", refinement=0.25)
    state = walked(summing, 2, 4)
    base = summing.smooth_base_map(state["feature_error"])
    expected = base + 0.25 * summing.refined(state)
    torch.testing.assert_close(summing.deviation_map(state), expected)
    with pytest.raises(BadConfig, match="product or sum"):
        build(fusion="maximum")


def test_a_finding_does_not_depend_on_batch_mates(method: Drdc) -> None:
    """Rows at other plans, categories and seeds change nothing."""
    together = started(method, [3, 1, 2, 0])
    alone = {name: tensor[2:3] for name, tensor in together.items()}
    for _ in range(4):
        together, alone = together | method.step(together), alone | method.step(alone)
    one, other = method.finish(together), method.finish(alone)
    torch.testing.assert_close(one[0][2:3], other[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one[1][2:3], other[1], atol=1e-5, rtol=1e-4)


def test_loss_touches_the_hidden_region_only(method: Drdc) -> None:
    """No visible cell pulls at the network, and an answer of zero costs about one."""
    answer = torch.zeros(6, 4, 8, 8, requires_grad=True)
    latent, category = torch.randn(6, 4, 8, 8), torch.zeros(6, dtype=torch.int64)
    with _Answering(method, answer) as asked:
        loss = method.inpainting_loss(latent, category, torch.Generator().manual_seed(1))
    (pull,) = torch.autograd.grad(loss, answer)
    hidden = asked.shown[:, -1:] == 1
    assert float((pull * ~hidden).abs().max()) == 0.0
    assert bool((pull != 0).masked_select(hidden).all())
    assert 0.7 < float(loss.detach()) < 1.3
    assert bool((asked.timestep < 300).all())


def test_a_few_steps_of_descent_lower_the_loss() -> None:
    """Both branches learn a fixed batch."""
    learner = build(dropout=0.0).requires_grad_(True).train()
    smooth = torch.nn.functional.interpolate(torch.randn(4, 4, 2, 2), (8, 8), mode="bilinear")
    batch = Batch(smooth, smooth, torch.tensor([0, 1, 2, 0]))
    optimizer = torch.optim.AdamW(learner.denoiser.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss = learner.training_loss(batch, torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_fitting_evens_out_timesteps() -> None:
    """On good parts each kind of cover has mean one, and every table is finite and positive."""
    fitted = build()
    state = walked(fitted, DEEPEST, 8)
    state["category"] = torch.zeros(2, dtype=torch.int64)
    fitted.fit_steering([state], 0)
    fitted.fit_constants([state], 0)
    for kind in range(len(KINDS)):
        level = float(fitted.get_buffer(residual_name(kind))[0])
        assert float(state["heat"][:, kind].mean()) == pytest.approx(level, rel=1e-4)
    assert float(fitted.refined_mean[0]) == pytest.approx(1.0, rel=0.1)
    for name in fitted.constants().keys() - fitted.neutral:
        assert 0 < float(fitted.get_buffer(name)[0]) < float("inf")


def test_without_a_bank_the_base_heatmap_chooses_the_plan() -> None:
    """Calm frames make no step, and each edge that the heatmap's peak exceeds is one plan more."""
    fitted = build()
    ids, free = torch.zeros(12, dtype=torch.int64), torch.full((12,), -1, dtype=torch.int32)
    fitted.fit_constants([fitted.start(images(12, seed=1), ids, ids, free)], 0)
    state = fitted.start(images(12), ids, ids, free)
    severity = fitted.severity(state["feature_error"])
    expected = (severity[:, None] > fitted.severity_edges[0]).sum(1)
    assert state["plan"].tolist() == expected.tolist()
    assert 0 < int((state["steps_left"] == 0).sum()) < 12
    assert torch.equal(state["steps_left"], fitted.steps_of_plan[expected])


class _Plain(nn.Module):
    """Stands for the U-Net, whose export is slow and is every method's: two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(9, 16, 3, 1, 1), nn.Conv2d(16, 4, 3, 1, 1)
        self.table = nn.Embedding(3, 16)

    def forward(self, shown: Tensor, timestep: Tensor, category: Tensor) -> Tensor:
        told = self.table(category) * (timestep.float()[:, None] / 100)
        answer: Tensor = self.last((self.first(shown) + told[:, :, None, None]).relu())
        return answer


@pytest.fixture
def plain() -> Drdc:
    """A method whose export is quick."""
    method = build()
    method.denoiser.inpainter = _Plain()
    method.gate_level.fill_(0.9)
    return method.requires_grad_(False)


@pytest.fixture
def exported(plain: Drdc, tmp_path: Path) -> OpenVinoBackend:
    """The three graphs on OpenVINO."""
    spec = export_graphs(plain, tmp_path)
    assert "seed" in spec.graphs["start"].inputs
    assert not {"latent", "estimate"} & set(spec.graphs["finish"].inputs)
    return OpenVinoBackend(tmp_path, spec, precision="f32", capacity=8, threads=1)


@pytest.mark.timeout(600)  # of a busy core; half a minute of an idle one
def test_openvino_agrees_with_torch_at_mixed_plans(exported: OpenVinoBackend, plain: Drdc) -> None:
    """Map, score and progress are the same while rows of all plans share a batch."""
    plans = np.array([0, 1, 2, 3, 3], np.int32)
    ids = np.array([0, 1, 2, 0, 1], np.int64)
    rows = Rows(images(5).numpy(), ids, ids + 70, plans)
    found = []
    for backend in (exported, TorchBackend(plain)):
        slots = list(range(5))
        progress = backend.start(rows, slots)
        while slots:
            slots = [s for s, left in zip(slots, progress.steps_left, strict=True) if left > 0]
            progress = backend.step(slots) if slots else progress
        found.append(backend.finish(list(range(5))))
    assert np.allclose(found[0].anomaly_map, found[1].anomaly_map, rtol=1e-3, atol=1e-4)
    assert np.allclose(found[0].anomaly_score, found[1].anomaly_score, rtol=1e-3)


class _Answering(nn.Module):
    """The method's inpainter gives one answer inside the block, and remembers what it was shown."""

    def __init__(self, method: Drdc, answer: Tensor) -> None:
        super().__init__()
        self._methods, self._answer = [method], answer
        self.shown = self.timestep = torch.zeros(0)

    def forward(self, shown: Tensor, timestep: Tensor, category: Tensor) -> Tensor:
        del category
        self.shown, self.timestep = shown, timestep
        return self._answer

    def __enter__(self) -> _Answering:
        network = self._methods[0].denoiser
        self._true, network.inpainter = [network.inpainter], self
        return self

    def __exit__(self, *_: object) -> None:
        self._methods[0].denoiser.inpainter = self._true[0]
