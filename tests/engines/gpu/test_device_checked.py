"""The checked device: each mistake that a GPU would punish at random is punished every time."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.gpu.checked_kernels import Touching
from engines.gpu.device_checked import CheckedDevice
from engines.gpu.faults import DeviceLost, NoMemory
from engines.gpu.hazards import Hazard
from engines.gpu.pinned import PinnedBytes

SIZE = 64


class Bench:
    """A device with two streams, an event, and memory on both sides."""

    def __init__(self) -> None:
        self.device = CheckedDevice()
        self.one, self.other = self.device.stream(), self.device.stream()
        self.event = self.device.event()
        self.address, self.spare = self.device.allocate(SIZE), self.device.allocate(SIZE)
        self.host, self.result = self.device.pinned(SIZE), self.device.pinned(SIZE)

    def send(self, value: int = 7) -> None:
        """Host to device on the first stream."""
        self.host.write(np.full(SIZE, value, np.uint8))
        self.device.upload(self.address, self.host, SIZE, self.one)

    def fetch(self) -> None:
        """Device to host on the other one."""
        self.device.download(self.result, self.address, SIZE, self.other)

    def pass_on(self) -> None:
        """Let the other stream wait for the first."""
        self.event.record(self.one)
        self.other.wait(self.event)

    def read(self) -> list[int]:
        """What came back."""
        return sorted(set(self.result.read(SIZE).tolist()))

    def close(self) -> None:
        """Give everything back."""
        for thing in (self.host, self.result, self.one, self.other, self.event):
            thing.close()
        self.device.free(self.address)
        self.device.free(self.spare)
        self.device.close()


def test_what_is_ordered_passes() -> None:
    """Copy, wait, copy, wait: the bytes arrive and nothing is said."""
    bench = Bench()
    bench.send()
    bench.pass_on()
    bench.fetch()
    bench.other.synchronise()
    assert bench.read() == [7]
    bench.close()
    assert not bench.device.hazards


def unordered_read(bench: Bench) -> None:
    """Another stream reads what is still being copied."""
    bench.send()
    bench.fetch()


def wait_before_record(bench: Bench) -> None:
    """An event that was recorded too early holds nobody up."""
    bench.pass_on()
    bench.send()
    bench.fetch()


def never_written(bench: Bench) -> None:
    """Memory is read before anything was put there."""
    bench.device.copy(bench.address, bench.spare, SIZE, bench.one)


def half_written(bench: Bench) -> None:
    """A copy was shorter than what is read."""
    bench.device.fill(bench.spare, 0, SIZE - 1, bench.one)
    bench.device.copy(bench.address, bench.spare, SIZE, bench.one)


def overwritten_in_flight(bench: Bench) -> None:
    """The host fills a buffer again that a copy may still read."""
    bench.send()
    bench.host.write(np.zeros(SIZE, np.uint8))


def overwritten_by_a_stream(bench: Bench) -> None:
    """A stream overwrites what another one may still read."""
    bench.send()
    bench.pass_on()
    bench.fetch()
    bench.device.fill(bench.address, 0, SIZE, bench.one)


def read_too_early(bench: Bench) -> None:
    """The host reads what is still on its way."""
    bench.send()
    bench.pass_on()
    bench.fetch()
    bench.read()


def waited_for_the_wrong_stream(bench: Bench) -> None:
    """The host waited, but for somebody else."""
    bench.send()
    bench.pass_on()
    bench.fetch()
    bench.one.synchronise()
    bench.read()


def freed_before_use(bench: Bench) -> None:
    """Memory is used that was given back."""
    bench.device.free(bench.address)
    bench.send()


def freed_in_use(bench: Bench) -> None:
    """Memory is given back that a copy may still use."""
    bench.send()
    bench.device.free(bench.address)


def freed_twice(bench: Bench) -> None:
    """Memory is given back again."""
    bench.device.free(bench.spare)
    bench.device.free(bench.spare)


def freed_by_a_guess(bench: Bench) -> None:
    """An address in the middle is nobody's."""
    bench.device.free(bench.address + 1)


def pinned_freed_twice(bench: Bench) -> None:
    """So for page-locked memory."""
    bench.host.close()
    bench.host.close()


def pageable(bench: Bench) -> None:
    """A copy from ordinary memory is not asynchronous."""
    ordinary = PinnedBytes(np.zeros(SIZE, np.uint8), lambda: None)
    bench.device.upload(bench.address, ordinary, SIZE, bench.one)


def past_the_end(bench: Bench) -> None:
    """A copy is longer than its memory."""
    bench.device.fill(bench.address, 0, SIZE + 1, bench.one)


def nowhere(bench: Bench) -> None:
    """An address that was never given out."""
    bench.device.fill(8, 0, 1, bench.one)


def closed_stream(bench: Bench) -> None:
    """Work for a stream that is gone."""
    bench.one.close()
    bench.send()


def closed_event(bench: Bench) -> None:
    """An event that is gone."""
    bench.event.close()
    bench.event.synchronise()


def stream_closed_twice(bench: Bench) -> None:
    """A stream is given back again."""
    bench.one.close()
    bench.one.close()


def waits_while_capturing(bench: Bench) -> None:
    """A capture would fail: the host cannot wait for what is not done."""
    bench.device.capture(bench.one, bench.one.synchronise)


def untimed(bench: Bench) -> None:
    """An event that takes no time is asked for it."""
    bench.event.record(bench.one)
    bench.event.elapsed_ms(bench.event)


def leaks(bench: Bench) -> None:
    """The device is closed while memory is out."""
    bench.device.close()


def closed_twice(bench: Bench) -> None:
    """The device is closed again."""
    bench.close()
    bench.device.close()


MISTAKES = {
    unordered_read: "download reads device memory while upload may be under way",
    wait_before_record: "download reads device memory while upload may be under way",
    never_written: "copy reads device memory before anything was written there",
    half_written: "copy reads device memory before anything was written there",
    overwritten_in_flight: "the host writes page-locked memory while upload may be under way",
    overwritten_by_a_stream: "fill writes device memory while download may be under way",
    read_too_early: "the host reads page-locked memory while download may be under way",
    waited_for_the_wrong_stream: "the host reads page-locked memory while download may be",
    freed_before_use: "upload writes device memory, which was freed",
    freed_in_use: "device memory is freed while it may be in use",
    freed_twice: "device memory is freed twice",
    freed_by_a_guess: "memory is freed that was never allocated",
    pinned_freed_twice: "page-locked memory is freed twice",
    pageable: "a copy was queued with memory that is not page-locked",
    past_the_end: "fill writes beyond the end of device memory",
    nowhere: "fill writes memory that was never allocated",
    closed_stream: "there is no stream 1",
    closed_event: "synchronise concerns what was closed",
    stream_closed_twice: "CheckedStream is closed twice",
    waits_while_capturing: "synchronise while a stream is captured",
    untimed: "time is asked of an event that takes none",
    leaks: "closed while .* memory, CheckedStream, CheckedStream, CheckedEvent were not given back",
    closed_twice: "the device is closed twice",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_found(mistake: Callable[[Bench], None]) -> None:
    """Every kind is raised where it is made, and kept for whoever swallowed it."""
    bench = Bench()
    with pytest.raises(Hazard, match=MISTAKES[mistake]):
        mistake(bench)
    assert len(bench.device.hazards) == 1


def test_a_graph_is_checked_when_it_is_launched() -> None:
    """Captured work does nothing yet; launched, it has to be in order like any other."""
    bench = Bench()
    bench.host.write(np.full(SIZE, 5, np.uint8))
    graph = bench.device.capture(
        bench.one, lambda: bench.device.upload(bench.address, bench.host, SIZE, bench.one)
    )
    bench.host.write(np.full(SIZE, 6, np.uint8))  # nothing is on its way
    graph.launch(bench.one)
    with pytest.raises(Hazard, match="the host writes page-locked memory while upload"):
        bench.host.write(np.zeros(SIZE, np.uint8))
    bench.one.synchronise()
    bench.device.download(bench.result, bench.address, SIZE, bench.one)
    bench.one.synchronise()
    assert bench.read() == [6]


def test_work_of_a_library_is_checked_like_any_other() -> None:
    """A double of an engine names what it reads and writes."""
    bench = Bench()
    bench.send()

    def run(touch: Touching) -> None:
        touch(bench.spare, SIZE, "writes")[:] = touch(bench.address, SIZE, "reads") + 1

    with pytest.raises(Hazard, match="engine reads device memory while upload"):
        bench.device.queue_foreign(bench.other.handle, run)
    bench.device.queue_foreign(bench.one.handle, run)


def test_a_device_belongs_to_its_thread() -> None:
    """Another thread has no context."""
    bench, found = Bench(), list[Hazard]()

    def intrude() -> None:
        try:
            bench.device.memory()
        except Hazard as hazard:
            found.append(hazard)

    thread = threading.Thread(target=intrude)
    thread.start()
    thread.join()
    assert "thread" in str(found[0])


def test_time_passes_between_timed_events() -> None:
    """Once the host waited for both."""
    device = CheckedDevice()
    stream, address = device.stream(), device.allocate(SIZE)
    before, after = device.event(timed=True), device.event(timed=True)
    before.record(stream)
    device.fill(address, 0, SIZE, stream)
    after.record(stream)
    with pytest.raises(Hazard, match="nobody waited for"):
        after.elapsed_ms(before)
    after.synchronise()
    assert after.elapsed_ms(before) > 0


def test_memory_ends() -> None:
    """What is free goes down and comes back; beyond it is a sentence."""
    device = CheckedDevice(1024)
    address = device.allocate(1000)
    assert device.memory() == (24, 1024)
    with pytest.raises(NoMemory, match="1 MiB of memory left"):
        device.allocate(25)
    device.free(address)
    assert device.memory().free == 1024


def test_a_lost_device_stays_lost() -> None:
    """Every later call fails too, but what is given back counts as given back."""
    bench = Bench()
    bench.device.fail("upload", 2)
    bench.send()
    bench.one.synchronise()
    with pytest.raises(DeviceLost, match="upload"):
        bench.send()
    with pytest.raises(DeviceLost):
        bench.one.synchronise()
    for thing in (bench.host, bench.result, bench.one, bench.other, bench.event):
        with pytest.raises(DeviceLost):
            thing.close()
    for address in (bench.address, bench.spare):
        with pytest.raises(DeviceLost):
            bench.device.free(address)
    bench.device.close()
    assert not bench.device.hazards


@given(st.lists(st.sampled_from(["send", "fetch", "pass", "wait", "read"]), max_size=14))
def test_a_hazard_is_found_exactly_where_order_is_missing(calls: list[str]) -> None:
    """Against the definition: the last write of each place, and who knows of it."""
    bench, model = Bench(), Model()
    for call in calls:
        expected = model.allows(call)
        try:
            {
                "send": bench.send,
                "fetch": bench.fetch,
                "pass": bench.pass_on,
                "wait": bench.other.synchronise,
                "read": bench.read,
            }[call]()
        except Hazard:
            assert not expected
            return
        assert expected


class Model:
    """The five calls of ``Bench`` by hand: which copies are under way, and who knows them over."""

    def __init__(self) -> None:
        self.sent = self.fetched = 0  # copies queued
        self.passed = 0  # uploads that the other stream waits for
        self.seen = self.returned = 0  # uploads and downloads that the host knows over
        self.behind = 0  # uploads that the last download came after

    def allows(self, call: str) -> bool:
        """Whether a call is in order, and what is known after it."""
        if call == "send":  # the host overwrites what it sent; the copy overwrites what was fetched
            is_fine = self.seen == self.sent and self.returned == self.fetched
            self.sent += 1
            return is_fine
        if call == "fetch":  # reads what was sent, which must be there and known to be there
            is_fine = self.sent > 0 and max(self.passed, self.seen) == self.sent
            self.fetched, self.behind = self.fetched + 1, self.sent
            return is_fine
        if call == "pass":
            self.passed = self.sent
        if call == "wait":
            self.returned, self.seen = self.fetched, max(self.seen, self.passed)
        if call == "read":
            return self.fetched > 0 and self.returned == self.fetched
        return True
