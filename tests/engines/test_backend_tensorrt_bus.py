"""What the GPU worker sends and brings back: frames ahead of their start, a few integers a step."""

from __future__ import annotations

import numpy as np

from engines.backend import DEVICE_BUCKETS
from engines.backend_openvino import OpenVinoBackend
from engines.contracts import Rows
from engines.gpu.device_checked import CheckedDevice
from engines.inspector import Inspector
from tests.engines.exported import Exported, draw_parts
from tests.engines.gpu.comparing import agree, drawn
from tests.engines.gpu.host_engines import on_host

IMAGE_BYTES = 64 * 64 * 3
COLUMN_BYTES = 8 + 8 + 4  # category, seed and plan of a row
FEW_BYTES = 3 * 4  # steps_left, plan and level
SLOT_BYTES = 4


def test_a_frame_travels_before_its_start_while_a_step_computes(
    glad: Exported, theirs: OpenVinoBackend, device: CheckedDevice
) -> None:
    """Frames that were brought are not sent again, in whatever order their slots start."""
    rows, slots = drawn(glad, 6, 9), [5, 1, 4, 0, 3, 2]
    with on_host(glad, 6, device)[0] as ours:
        for _ in range(3):
            ours.bring(list(rows.image), slots)
            device.copied.clear()
            turned = Rows(*(getattr(rows, f)[::-1] for f in ("image", "category", "seed", "plan")))
            assert agree(ours.start(turned, slots[::-1]), theirs.start(turned, slots[::-1]))
            assert device.copied["upload"] < IMAGE_BYTES
            ours.step(slots[:2])
            found, expected = ours.finish(slots), theirs.finish(slots)
            assert found.anomaly_map.shape == expected.anomaly_map.shape


def test_an_inspector_lets_frames_travel_as_they_are_admitted(
    glad: Exported, device: CheckedDevice
) -> None:
    """What waits for a batch is on the device when its turn comes: every frame goes up once."""
    parts = draw_parts(glad.method, 9, seed=5)
    with on_host(glad, 9, device)[0] as backend:
        inspector = Inspector(backend, batch_max=2)
        device.copied.clear()
        inspector.admit(parts)
        assert device.copied["upload"] == 9 * IMAGE_BYTES
        assert len(inspector.drain()) == 9
        assert device.copied["upload"] < 10 * IMAGE_BYTES


def test_a_frame_that_was_brought_for_another_start_is_not_used(
    glad: Exported, theirs: OpenVinoBackend, device: CheckedDevice
) -> None:
    """A slot that was given up, or a frame changed since, goes up again; a foreign one waits."""
    rows, others, slots = drawn(glad, 3, 9), drawn(glad, 3, 10), [2, 0, 1]
    with on_host(glad, 3, device)[0] as ours:
        ours.bring(list(others.image), slots)
        ours.bring([rows.image[0][:5]], [2])
        assert agree(ours.start(rows, slots), theirs.start(rows, slots))
        found, expected = ours.finish(slots), theirs.finish(slots)
        assert np.allclose(found.anomaly_score, expected.anomaly_score, rtol=1e-5, equal_nan=True)


def test_a_step_moves_a_few_integers_of_each_row(glad: Exported, device: CheckedDevice) -> None:
    """Per row four bytes go to the device with a step and twelve come back; nothing else moves."""
    rows, slots = drawn(glad, 8, 2), list(range(8))
    with on_host(glad, 8, device)[0] as backend:
        device.copied.clear()
        backend.start(rows, slots)
        started = 8 * (IMAGE_BYTES + COLUMN_BYTES + SLOT_BYTES)
        assert device.copied["upload"] == backend.traffic["start"].bytes_up == started
        assert device.copied["download"] == backend.traffic["start"].bytes_down == 8 * FEW_BYTES
        device.copied.clear()
        for _ in range(3):
            backend.step(slots)
        told = backend.traffic["step"]
        assert (told.calls, told.rows) == (3, 24)
        assert device.copied["upload"] == told.bytes_up == 24 * SLOT_BYTES
        assert device.copied["download"] == told.bytes_down == 24 * FEW_BYTES
        device.copied.clear()
        backend.finish(slots)
        told, area = backend.traffic["finish"], int(np.prod(glad.spec.map_size))
        assert device.copied["upload"] == told.bytes_up == 8 * SLOT_BYTES
        assert device.copied["download"] == told.bytes_down == 8 * 4 * (area + 1)


def test_what_a_call_moves_is_known_beforehand(glad: Exported, device: CheckedDevice) -> None:
    """``bytes_moved`` says of every graph and bucket what the device is then seen to copy."""
    with on_host(glad, 64, device)[0] as backend:
        for size in DEVICE_BUCKETS:
            rows, slots = drawn(glad, size, 2), list(range(size))
            calls = {
                "start": lambda rows=rows, slots=slots: backend.start(rows, slots),
                "step": lambda slots=slots: backend.step(slots),
                "finish": lambda slots=slots: backend.finish(slots),
            }
            for graph, call in calls.items():
                device.copied.clear()
                call()
                seen = device.copied["upload"], device.copied["download"]
                assert backend.bytes_moved(graph, size) == seen
            assert backend.bytes_moved("step", size) == (SLOT_BYTES * size, FEW_BYTES * size)
