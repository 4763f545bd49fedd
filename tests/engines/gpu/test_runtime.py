"""Ring, lease and graph cache; and that leaving out any of their waits is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engines.contracts import EngineFault, UInt8
from engines.gpu.checked_parts import CheckedEvent, CheckedStream
from engines.gpu.device_checked import CheckedDevice
from engines.gpu.faults import DeviceLost
from engines.gpu.graph_cache import GraphCache
from engines.gpu.hazards import Hazard
from engines.gpu.lease import Lease
from engines.gpu.ring import FrameRing

FRAME = (2, 2, 3)
BYTES = 12


def frames(count: int, seed: int = 0) -> UInt8:
    """Images [count, 2, 2, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, *FRAME), np.uint8)


def ring_of(device: CheckedDevice) -> tuple[Lease, CheckedStream, FrameRing, list[int]]:
    """A ring of two entries with two frames each, and places of twelve frames."""
    lease = Lease(device)
    compute = lease.stream()
    assert isinstance(compute, CheckedStream)
    ring = FrameRing(lease, BYTES, compute, frames=2, entries=2)
    first = lease.memory(12 * BYTES)
    return lease, compute, ring, [first + place * BYTES for place in range(12)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 12])
def test_frames_arrive_in_their_order(count: int) -> None:
    """Any number of frames, more than the ring holds too."""
    device = CheckedDevice()
    lease, compute, ring, places = ring_of(device)
    images = frames(count)
    for _ in range(2):
        ring.send(images, places[count - 1 :: -1] if count > 1 else places[:1])
        ring.arrive()
        host = lease.pinned(count * BYTES)
        device.download(host, places[0], count * BYTES, compute)
        compute.synchronise()
    assert np.array_equal(host.read(count * BYTES), images[::-1].reshape(-1))
    lease.close()
    assert not device.hazards


def test_frames_go_up_while_a_batch_is_computed() -> None:
    """The host waits for copies alone: what the compute stream does is not known to be over."""
    device = CheckedDevice()
    lease, compute, ring, places = ring_of(device)
    ring.send(frames(4), places[:4])
    ring.arrive()
    work = lease.memory(BYTES)
    device.fill(work, 0, BYTES, compute)
    queued = dict(compute.clock)
    ring.send(frames(4), places[4:8])
    known = device.host.get(compute.handle, 0)
    assert known < queued[compute.handle]
    lease.close()


def without(name: str, owner: type, which: Callable[[Any], bool]) -> Callable[..., None]:
    """A method that does nothing for some."""
    original = getattr(owner, name)

    def sometimes(self: Any, *arguments: Any) -> None:  # noqa: ANN401
        if not which(self):
            original(self, *arguments)

    return sometimes


@pytest.mark.parametrize(
    ("owner", "name", "sentence"),
    [
        (CheckedEvent, "synchronise", "the host writes page-locked memory while upload"),
        (CheckedEvent, "record", "copy reads device memory while upload"),
        (CheckedStream, "wait", "copy reads device memory while upload"),
    ],
)
def test_a_ring_without_its_waits_is_found(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, sentence: str
) -> None:
    """Each event of the ring is needed: without it frames meet those before them."""
    device = CheckedDevice()
    lease, compute, ring, places = ring_of(device)
    batch = lease.memory(BYTES)
    monkeypatch.setattr(owner, name, without(name, owner, lambda _: True))

    def use() -> None:
        ring.send(frames(1), places[:1])
        ring.arrive()
        device.copy(batch, places[0], BYTES, compute)
        ring.send(frames(6), places[6:])  # three times two frames through two entries

    with pytest.raises(Hazard, match=sentence):
        use()


def test_a_place_that_is_still_read_may_not_be_sent_to() -> None:
    """A start waits for its integers, and so for its frames, before its slots are given again."""
    device = CheckedDevice()
    lease, compute, ring, places = ring_of(device)
    batch = lease.memory(BYTES)
    ring.send(frames(1), places[:1])
    ring.arrive()
    device.copy(batch, places[0], BYTES, compute)
    with pytest.raises(Hazard, match="upload writes device memory while copy may be under way"):
        ring.send(frames(1), places[:1])


# ---- lease


def test_a_lease_gives_back_in_reverse_order() -> None:
    """Whoever came last leaves first, the device last of all."""
    device, left = CheckedDevice(), list[str]()

    class Thing:
        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None:
            left.append(self.name)

    lease = Lease(device)
    lease.keep(Thing("first"))
    lease.memory(5)
    lease.keep(Thing("second"))
    lease.close()
    lease.close()
    assert left == ["second", "first"]
    assert not device.hazards


def test_a_lease_waits_before_it_frees() -> None:
    """Work that is under way ends before its memory goes."""
    device = CheckedDevice()

    def failing() -> None:
        with Lease(device) as lease:
            lease.zeroed(100, lease.stream())
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        failing()
    assert not device.hazards


def test_a_fault_at_closing_does_not_hide_the_first() -> None:
    """The device was lost; that is what is told, and everything was tried."""
    device = CheckedDevice()
    device.fail("fill")

    def failing() -> None:
        with Lease(device) as lease:
            lease.pinned(10)
            lease.zeroed(100, lease.stream())

    with pytest.raises(DeviceLost, match="fill"):
        failing()
    assert not device.hazards


def test_a_lease_without_its_wait_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a copy may still use is not given back unnoticed."""
    device = CheckedDevice()
    lease = Lease(device)
    lease.zeroed(100, lease.stream())
    monkeypatch.setattr(CheckedStream, "synchronise", lambda _: None)
    with pytest.raises(Hazard, match="freed while it may be in use"):
        lease.close()


# ---- graphs


def test_a_key_is_run_then_captured_then_launched() -> None:
    """The second run captures; every run does the work once."""
    device = CheckedDevice()
    lease = Lease(device)
    stream, address = lease.stream(), lease.memory(8)
    cache = GraphCache(lease, stream)
    queued = 0

    def queue() -> None:
        nonlocal queued
        queued += 1
        device.fill(address, 1, 8, stream)

    for captured in (0, 1, 1, 1):
        cache.run(("step", 4), queue)
        assert len(cache.captured) == captured
    assert queued == 2
    assert device.calls["graph"] == 3
    lease.close()
    assert not device.hazards


def test_keys_have_graphs_of_their_own() -> None:
    """A bucket's graph is never launched for another bucket or another graph."""
    device = CheckedDevice()
    lease = Lease(device)
    stream = lease.stream()
    cache, done = GraphCache(lease, stream), list[str]()
    keys = [("step", 1), ("step", 2), ("finish", 1)]
    for _ in range(3):
        for key in keys:
            cache.run(  # type: ignore[arg-type] # mypy widens the names
                key,
                lambda key=key: device.queue("engine", stream, lambda _, key=key: done.append(key)),
            )
    assert done == keys * 3
    lease.close()


def test_a_device_lost_while_capturing_is_told() -> None:
    """It is no reason to try kernel by kernel."""
    device = CheckedDevice()
    lease = Lease(device)
    cache = GraphCache(lease, lease.stream())
    cache.run(("step", 1), lambda: None)
    device.fail("capture")
    with pytest.raises(DeviceLost):
        cache.run(("step", 1), lambda: None)


def test_an_engine_that_refuses_a_capture_runs_without() -> None:
    """The stream is usable again after the failure."""
    device = CheckedDevice()
    lease = Lease(device)
    stream, address = lease.stream(), lease.memory(8)
    cache = GraphCache(lease, stream)

    def queue() -> None:
        if stream.captured is not None:  # type: ignore[attr-defined] # of the checked device
            raise EngineFault("this engine cannot be captured")
        device.fill(address, 1, 8, stream)

    for _ in range(3):
        cache.run(("step", 1), queue)
    assert cache.refused == {("step", 1): "this engine cannot be captured"}
    assert device.calls["fill"] == 3
    lease.close()
    assert not device.hazards
