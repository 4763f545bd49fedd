"""Laws of what people are shown as the normal-looking picture of a frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engines.backend_openvino import OpenVinoBackend
from engines.bundle import Bundle, open_bundle
from engines.contracts import BadFrame, Rows, UInt8
from engines.images import decode_image
from engines.methods.latent import LatentMethod
from engines.reconstruction import open_method, reconstruct

DEMO = Path(__file__).parents[2] / "configs" / "bundles" / "demo"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """The bundle that the demo runs, decoder and all."""
    return open_bundle(DEMO)


@pytest.fixture(scope="module")
def method(bundle: Bundle) -> LatentMethod:
    """Its method in torch."""
    return open_method(bundle)


@pytest.fixture(scope="module")
def frame(bundle: Bundle) -> UInt8:
    """A model input that the bundle itself carries."""
    return decode_image(bundle.path(min(bundle.path("parity").glob("*.jpg"))).read_bytes())


def test_a_reconstruction_is_the_decoded_end_of_the_plan_that_was_taken(
    bundle: Bundle, method: LatentMethod, frame: UInt8
) -> None:
    """A picture of the frame's size, the same each time, decoded from where the graphs arrive."""
    plan = next(i for i, one in enumerate(method.plans) if one.steps)
    found = reconstruct(method, frame, 0, plan)
    assert (found.plan, found.steps) == (plan, method.plans[plan].steps)
    assert (found.picture.shape, found.picture.dtype) == (frame.shape, np.uint8)
    assert (found.picture == reconstruct(method, frame, 0, plan).picture).all()
    with OpenVinoBackend(bundle.folder, bundle.manifest.spec, precision="f32") as graphs:
        number = np.array([0])
        graphs.start(Rows(frame[None], number, number, np.array([plan], np.int32)), [0])
        for _ in range(found.steps):
            graphs.step([0])
        estimate = torch.from_numpy(graphs.given("finish", 0)["estimate"])
    with torch.inference_mode():
        decoded = method.codec.decode(estimate)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(decoded - found.picture).max() < 2


@pytest.mark.parametrize("plan", [None, -1, 0, 99])
def test_a_part_without_steps_of_its_own_is_shown_at_the_deepest_plan(
    method: LatentMethod, frame: UInt8, plan: int | None
) -> None:
    """Whoever left early, or was never on the way, has something to be compared with."""
    deepest = len(method.plans) - 1
    found = reconstruct(method, frame, 0, plan)
    assert (found.plan, found.steps) == (deepest, method.plans[deepest].steps)


def test_a_picture_of_another_size_is_refused(method: LatentMethod) -> None:
    """Only what the model saw can be walked again."""
    with pytest.raises(BadFrame, match="no model input"):
        reconstruct(method, np.zeros((8, 8, 3), np.uint8), 0, 0)
