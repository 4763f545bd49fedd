"""Faithfulness of GLAD to its equations (arXiv 2406.07487)."""

from __future__ import annotations

from collections.abc import Iterator
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
from engines.methods.glad import (
    FLOOR_LEVEL,
    Glad,
    levels_of,
)
from engines.methods.method import State
from engines.noise import add_noise, predict_x0
from tests.engines.sketch_parts import Denoiser

pytestmark = pytest.mark.slow

CONFIGURATION: dict[str, Any] = {
    "method": "GLAD",
    "codec": {"kind": "vae", "network": "lean", "image_size": (64, 64)},
    "denoiser": "nano",
    "dropout": 0.0,
    "categories": 2,
    "image_size": (64, 64),
}
OFFICIAL = 2  # the deepest plan
SHAPE = (4, 4, 8, 8)


def build(**changes: object) -> Glad:
    """A tiny method whose denoiser answers something everywhere."""
    torch.manual_seed(0)
    method = Glad(CONFIGURATION | changes).eval().requires_grad_(False)
    method.denoiser.get_parameter("unet.conv_out.weight").normal_(std=0.05)
    return method


@pytest.fixture(scope="module")
def built() -> Glad:
    """One method for the module; ``method`` hands it out with theta as before it is fitted."""
    return build()


@pytest.fixture
def method(built: Glad) -> Iterator[Glad]:
    """The method; what a test does to theta or to the denoiser is undone."""
    denoiser = built.denoiser
    built.theta.fill_(torch.inf)
    yield built
    built.denoiser = denoiser


class Oracle(nn.Module):
    """A denoiser that always answers the given noise."""

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, *_: Tensor) -> Tensor:
        """The noise."""
        return self.noise


def drawn(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Standard normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(count: int, seed: int = 0) -> Tensor:
    """Smooth random pictures, u8 [count, 64, 64, 3]."""
    coarse = 128 + 60 * drawn(seed, (count, 3, 6, 6))
    smooth = nn.functional.interpolate(coarse, (64, 64), mode="bicubic")
    return smooth.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def begin(method: Glad, rows: Tensor, plan: int = OFFICIAL) -> State:
    """Frames on the first level of a plan; seeds count up, categories alternate."""
    ids = torch.arange(len(rows))
    return method.start(rows, ids % 2, ids, torch.full((len(rows),), plan).int())


def walk(method: Glad, state: State) -> Iterator[tuple[State, State]]:
    """The state before and after each step to the end."""
    for _ in range(int(state["steps_left"].max())):
        after = state | method.step(state)
        yield state, after
        state = after


def finished(method: Glad, state: State) -> State:
    """The state at the end of the walk."""
    return list(walk(method, state))[-1][1]


def test_levels_are_the_published_ones(method: Glad) -> None:
    """T = 750 in 25 steps visits 721, 691, ..., 1; shallower plans keep the stride."""
    assert levels_of(750, 25) == tuple(range(721, 0, -30))
    assert [plan.start_level for plan in method.plans] == [250, 350, 500]
    assert [plan.steps for plan in method.plans] == [5, 7, 10]
    assert method.plans[OFFICIAL].levels == tuple(range(451, 0, -50))


def test_a_walk_starts_at_the_noised_input(method: Glad) -> None:
    """z_T = a_T z_0 + b_T eps at T itself, for each row's own plan."""
    ids = torch.arange(3)
    state = method.start(images(3), ids % 2, ids, torch.tensor([0, 1, 2]).int())
    assert state["level"].tolist() == [250, 350, 500]
    a, b = method.signal(state["level"].long())
    expected = a * state["anchor"] + b * state["noise"]
    torch.testing.assert_close(state["latent"], expected, atol=0, rtol=0)


def test_the_noise_is_the_seeds(method: Glad) -> None:
    """The same seed meets the same noise whatever the image, the category and the neighbours."""
    ids, plan = torch.tensor([5, 3]), torch.full((2,), OFFICIAL).int()
    state = method.start(images(2), ids % 2, ids, plan)
    other = method.start(images(1, seed=9), ids[:1] * 0, ids[:1], plan[:1] - 1)
    assert torch.equal(state["noise"][0], other["noise"][0])
    assert not torch.equal(state["noise"][0], state["noise"][1])
    wrapped = method.start(images(2), ids % 2, ids + len(method.noise_rows), plan)
    assert torch.equal(wrapped["noise"], state["noise"])


@pytest.mark.parametrize("level", [1, 251, 451])
def test_the_distance_to_the_copy_needs_no_prediction(method: Glad, level: int) -> None:
    """z^_0 - z~_0 = (z_t - z~_t) / a_t, whatever noise the network predicts."""
    state = {"latent": drawn(1), "anchor": drawn(2), "noise": drawn(3)}
    a, b = method.signal(torch.full((4,), level))
    predicted = drawn(4)
    walked = predict_x0(state["latent"], predicted, a, b)
    copy = predict_x0(add_noise(state["anchor"], state["noise"], a, b), predicted, a, b)
    torch.testing.assert_close(method.apart(state, a, b), walked - copy, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("plan", [0, 1, OFFICIAL])
def test_without_theta_every_row_restarts_at_the_floor(method: Glad, plan: int) -> None:
    """theta = inf: a row closes at the first t < t_min, with the copy z~_0."""
    state = begin(method, images(3), plan)
    floor = max(t for t in method.plans[plan].levels if t < FLOOR_LEVEL)
    for (before, after), level in zip(walk(method, state), method.plans[plan].levels, strict=True):
        if not bool(before["open"].any()):
            continue
        assert after["open"].tolist() == [int(level >= FLOOR_LEVEL)] * 3
        copy = copy_at(method, before, level)
        torch.testing.assert_close(after["estimate"], copy, atol=1e-5, rtol=1e-5)
    assert after["level"].tolist() == [floor] * 3


def copy_at(method: Glad, state: State, level: int) -> Tensor:
    """z~_0 by a second computation: the input at the level, less the predicted noise."""
    levels = torch.full((len(state["latent"]),), level)
    predicted = method.denoiser(state["latent"], levels, state["category"])
    a, b = method.signal(levels)
    copy: Tensor = predict_x0(add_noise(state["anchor"], state["noise"], a, b), predicted, a, b)
    return copy


def test_with_theta_zero_every_row_blends_at_the_first_level(method: Glad) -> None:
    """theta = 0: closed at T - r + 1 with w z^_0 + (1 - w) z~_0, w = sigmoid(m) >= 1/2."""
    method.theta.zero_()
    before = begin(method, images(3))
    after = before | method.step(before)
    first = method.plans[OFFICIAL].levels[0]
    levels = torch.full((3,), first)
    a, b = method.signal(levels)
    predicted = method.denoiser(before["latent"], levels, before["category"])
    walked = predict_x0(before["latent"], predicted, a, b)
    share = method.strayed(walked, method.apart(before, a, b)).sigmoid()[:, None]
    assert 0.5 <= float(share.min()) <= float(share.max()) <= 0.881
    blend = share * walked + (1 - share) * copy_at(method, before, first)
    torch.testing.assert_close(after["estimate"], blend, atol=1e-5, rtol=1e-5)
    assert after["open"].tolist() == [0] * 3
    assert after["level"].tolist() == [first] * 3


def test_a_closed_row_walks_on_to_its_end(method: Glad) -> None:
    """After closing come ordinary steps: z_s = a_s z^_0 + b_s eps^, and the level stays."""
    method.theta.zero_()
    pairs = list(walk(method, begin(method, images(2))))
    levels = (*method.plans[OFFICIAL].levels, -1)
    for place, (before, after) in enumerate(pairs[1:], start=1):
        level, following = (torch.full((2,), t) for t in levels[place : place + 2])
        predicted = method.denoiser(before["latent"], level, before["category"])
        walked = predict_x0(before["latent"], predicted, *method.signal(level))
        torch.testing.assert_close(after["estimate"], walked, atol=1e-5, rtol=1e-5)
        moved = add_noise(walked, predicted, *method.signal(following))
        torch.testing.assert_close(after["latent"], moved, atol=1e-5, rtol=1e-5)
        assert after["level"].tolist() == [levels[0]] * 2
    assert after["steps_left"].tolist() == [0, 0]


def test_an_oracle_leads_a_good_part_back_to_itself(method: Glad) -> None:
    """With the true noise a row that restarts ends at its input: no map, no score."""
    state = begin(method, images(2))
    method.denoiser = Oracle(state["noise"])
    state = finished(method, state)
    torch.testing.assert_close(state["estimate"], state["anchor"], atol=1e-4, rtol=1e-4)
    anomaly_map, score = method.finish(state)
    assert anomaly_map.shape == (2, 16, 16)
    assert float(score.max()) < 1e-4


def test_rows_close_on_levels_of_their_own(method: Glad) -> None:
    """Between the extremes rows close one by one, those that stray further at higher levels."""
    rows = images(8)
    drift = finished(method, begin(method, rows))["drift"]
    method.theta.fill_(float(drift.median()) + 1e-4)
    closed = finished(method, begin(method, rows))["level"]
    floor = max(t for t in method.plans[OFFICIAL].levels if t < FLOOR_LEVEL)
    assert bool((closed[drift < method.theta[0]] == floor).all())
    assert len(set(closed.tolist())) > 1


def test_a_row_cut_while_open_is_judged_by_its_copy(method: Glad) -> None:
    """Evidence after the first step is that of the copy, not of the half-made walk."""
    before = begin(method, images(2))
    after = before | method.step(before)
    assert after["open"].tolist() == [1, 1]
    copy = copy_at(method, before, method.plans[OFFICIAL].levels[0])
    torch.testing.assert_close(method.closed(after), copy, atol=1e-5, rtol=1e-5)
    assert bool(method.finish(after)[1].isfinite().all())


def test_no_step_is_no_evidence(method: Glad) -> None:
    """Without a bank a frame that made no step has the score NaN, never zero."""
    assert bool(method.finish(begin(method, images(1)))[1].isnan().all())


def test_a_score_does_not_depend_on_batch_mates(method: Glad) -> None:
    """A frame alone closes on the same level with the same map as beside others."""
    rows = images(4)
    method.theta.fill_(float(finished(method, begin(method, rows))["drift"].median()) + 1e-4)
    start = begin(method, rows)
    together = finished(method, start)
    alone = finished(method, {name: value[1:2] for name, value in start.items()})
    assert torch.equal(together["level"][1:2], alone["level"])
    for one, other in zip(method.finish(together), method.finish(alone), strict=True):
        torch.testing.assert_close(one[1:2], other, atol=1e-5, rtol=1e-4)


def test_theta_lets_good_parts_reach_the_floor(method: Glad) -> None:
    """Theta is the 99 % level of their drift, and fitting again gives the same."""
    rows = torch.cat([images(1, seed) for seed in range(12)])
    state = begin(method, rows) | {"category": torch.zeros(12, dtype=torch.int64)}
    state = finished(method, state)
    method.fit_steering([state], 0)
    fitted = float(method.theta[0])
    assert fitted == pytest.approx(float(torch.quantile(state["drift"], 0.99)))
    assert method.theta.isinf().tolist() == [False, True, True]
    again = begin(method, rows) | {"category": torch.zeros(12, dtype=torch.int64)}
    again = finished(method, again)
    assert int((again["level"] >= FLOOR_LEVEL).sum()) <= 1
    method.fit_steering([again], 0)
    assert float(method.theta[0]) == pytest.approx(fitted, rel=1e-5)


def test_the_score_is_the_mean_of_the_same_share_of_cells() -> None:
    """250 of 512 x 512 pixels are four of 64 x 64 cells; a constant map scores its constant."""
    method = build(
        image_size=(256, 256), codec={"kind": "vae", "network": "tiny", "image_size": (256, 256)}
    )
    maps = torch.zeros(2, 64, 64)
    maps[0, 3, :4], maps[1] = torch.tensor([4.0, 3.0, 2.0, 1.0]), 7.0
    assert method.score_of(maps).tolist() == [2.5, 7.0]


def test_the_decoded_test_compares_layers() -> None:
    """With "decoded" equal estimates have no distance and others close rows all the same."""
    method = build(test="decoded", reach="everywhere")
    walked = drawn(1)
    assert float(method.strayed(walked, torch.zeros(SHAPE)).max()) < 1e-5
    assert 0 < float(method.strayed(walked, drawn(2)).max()) <= 2
    method.theta.zero_()
    state = begin(method, images(2))
    assert method.step(state)["open"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_level": 1000}, "start_level below 1000"),
        ({"steps": 0}, "from 1 step"),
        ({"floor_level": 1}, "every walk closes"),
        ({"floor_level": 501}, "choose 2 to 500"),
        ({"test": "pixel"}, "latent or decoded"),
        ({"reach": -1}, "everywhere"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    """A configuration that cannot be walked is one clear sentence."""
    with pytest.raises(BadConfig, match=message):
        build_method(CONFIGURATION | changes)


@pytest.mark.timeout(600)  # of a busy core; half a minute of an idle one
def test_openvino_agrees_at_mixed_plans(tmp_path: Path) -> None:
    """Rows of every plan in one batch close on the levels of the reference, with its evidence."""
    # Small networks: the exporter spends its seconds on their layers, not on the method.
    method = build(codec={"kind": "vae", "network": "tiny", "image_size": (64, 64)})
    method.denoiser = Denoiser().requires_grad_(False)
    rows, slots = images(8, seed=3), list(range(8))
    drift = finished(method, begin(method, rows))["drift"]
    method.theta.fill_(float(drift.median()) + 1e-3)
    spec = export_graphs(method, tmp_path)
    assert "latent" not in spec.graphs["finish"].inputs
    ids = np.arange(8)
    given = Rows(rows.numpy(), ids % 3, ids, (ids % 4 - 1).astype(np.int32))
    ours = OpenVinoBackend(tmp_path, spec, precision="f32", capacity=8, threads=1)
    reference = TorchBackend(method, 8)
    one, other = ours.start(given, slots), reference.start(given, slots)
    while slots:
        assert one.steps_left.tolist() == other.steps_left.tolist()
        assert one.level.tolist() == other.level.tolist()
        slots = [slot for slot, left in zip(slots, one.steps_left, strict=True) if left > 0]
        if slots:
            one, other = ours.step(slots), reference.step(slots)
    found, expected = (backend.finish(list(range(8))) for backend in (ours, reference))
    np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.anomaly_score, expected.anomaly_score, rtol=1e-3)
    ours.close()
