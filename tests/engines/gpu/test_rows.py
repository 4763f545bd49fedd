"""Rows on the device: tables, moves and the kernels that make them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.bundle import TensorSpec
from engines.contracts import BadBundle
from engines.gpu import compile_rows
from engines.gpu.device_checked import CheckedDevice
from engines.gpu.executable import Port
from engines.gpu.lease import Lease
from engines.gpu.rows import (
    Moves,
    StateTable,
    Strip,
    idle_slots,
    padded_slots,
    ptx,
    row_bytes,
    send_once,
    shares_of,
)


class Table:
    """Rows of random bytes on a checked device, and the same rows in numpy."""

    def __init__(self, widths: list[int], capacity: int, size: int, *, pitch: int = 0) -> None:
        self.device = CheckedDevice()
        self.lease = Lease(self.device)
        self.stream = self.lease.stream()
        rng = np.random.default_rng(len(widths))
        self.rows = [rng.integers(0, 256, (capacity, width), np.uint8) for width in widths]
        self.addresses = [self.sent(rows) for rows in self.rows]
        self.pitches = [pitch or width for width in widths]
        self.batches = [self.sent(np.zeros((size, p), np.uint8)) for p in self.pitches]
        self.size = size
        strips = [
            Strip(*fields, pitch)
            for *fields, pitch in zip(
                self.addresses, self.batches, widths, self.pitches, strict=True
            )
        ]
        self.moves = Moves(self.lease, strips, self.stream)

    def sent(self, values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> int:
        """An array on the device."""
        address = self.lease.memory(values.nbytes)
        send_once(self.device, address, values, self.stream)
        return address

    def fetched(self, address: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """Bytes from the device."""
        host = self.lease.pinned(size)
        self.device.download(host, address, size, self.stream)
        self.stream.synchronise()
        return host.read(size)


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.sampled_from([1, 3, 4, 15, 16, 17, 64, 100]), min_size=1, max_size=4),
    slots=st.lists(st.integers(0, 6), min_size=1, unique=True),
    padding=st.integers(0, 3),
)
def test_rows_move_to_a_batch_and_back(widths: list[int], slots: list[int], padding: int) -> None:
    """Any widths, any slots: the batch holds those rows, and only they are written back."""
    size = len(slots) + padding
    table = Table(widths, 7, size)
    places = table.sent(padded_slots(slots, size).view(np.uint8))
    table.moves.queue("gather_rows", size, places, table.stream)
    for rows, batch, width in zip(table.rows, table.batches, widths, strict=True):
        found = table.fetched(batch, size * width).reshape(size, width)
        assert np.array_equal(found, rows[[*slots, *[slots[-1]] * padding]])
        table.device.fill(batch, 9, size * width, table.stream)
    table.moves.queue("scatter_rows", size, places, table.stream)
    for rows, address, width in zip(table.rows, table.addresses, widths, strict=True):
        rows[slots] = 9
        assert np.array_equal(table.fetched(address, rows.size).reshape(-1, width), rows)
    table.lease.close()
    assert not table.device.hazards


def test_idle_rows_are_written_nowhere() -> None:
    """A rehearsal reads row 0 and leaves the table as it is."""
    table = Table([16, 4], 3, 2)
    places = table.sent(idle_slots(2).view(np.uint8))
    table.moves.queue("gather_rows", 2, places, table.stream)
    table.moves.queue("scatter_rows", 2, places, table.stream)
    assert np.array_equal(table.fetched(table.addresses[0], 48).reshape(3, 16), table.rows[0])


def test_a_pitch_leaves_room_between_rows() -> None:
    """Integers of several tables come to lie side by side."""
    table = Table([4], 5, 3, pitch=12)
    places = table.sent(padded_slots([4, 0, 2], 3).view(np.uint8))
    table.moves.queue("gather_rows", 3, places, table.stream)
    found = table.fetched(table.batches[0], 36).reshape(3, 12)
    assert np.array_equal(found[:, :4], table.rows[0][[4, 0, 2]])
    assert not found[:, 4:].any()


def test_a_slot_beyond_the_table_is_found() -> None:
    """Memory has an end, also for kernels."""
    table = Table([16], 3, 1)
    places = table.sent(np.array([3], np.int32).view(np.uint8))
    with pytest.raises(Exception, match="gather_rows reads"):
        table.moves.queue("gather_rows", 1, places, table.stream)


def test_a_state_table_begins_with_zeros_and_knows_its_tensors() -> None:
    """A port that is not what the manifest says is refused in one sentence."""
    lease = Lease(CheckedDevice())
    specs = [TensorSpec(name="latent", dtype="float32", shape=(4, 8, 8))]
    table = StateTable(lease, specs, 5, lease.stream())
    strip = table.strip("latent", Port("next_latent", "float32", (4, 8, 8)), 512)
    assert (strip.batch, strip.row_bytes, strip.pitch_bytes) == (512, 1024, 1024)
    sentence = r"has latent as float16 \[4, 8, 8\], the manifest as float32 \[4, 8, 8\]"
    with pytest.raises(BadBundle, match=sentence):
        table.strip("latent", Port("latent", "float16", (4, 8, 8)), 0)
    lease.close()


def test_long_rows_are_shared_by_blocks() -> None:
    """A scalar takes one block, a latent several, a large state at most 64."""
    assert [shares_of(size) for size in (4, 2048, 2049, 1 << 22)] == [1, 1, 2, 64]
    assert row_bytes("int64", ()) == 8
    assert row_bytes("float32", (2, 3)) == 24


# ---- the kernels


def test_the_kernels_are_those_of_the_source() -> None:
    """rows.ptx is what nvcc makes of rows.cu; the compiler itself leaves no trace in it."""
    if (nvcc := shutil.which("nvcc")) is None:
        pytest.skip("there is no nvcc to compile rows.cu with")
    if instructions(compile_rows.TARGET.read_text("utf-8")) != instructions(
        compile_rows.compiled(nvcc)
    ):
        pytest.fail("rows.ptx is not of rows.cu; run python -m engines.gpu.compile_rows")


def instructions(text: str) -> list[str]:
    """Lines without comments and blanks."""
    lines = (line.split("//")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


@pytest.mark.parametrize("target", ["75", "80", "86", "89", "90", "100", "120"])
def test_the_kernels_assemble_for_every_gpu(target: str, tmp_path: Path) -> None:
    """What a driver does with the PTX, from Turing to Blackwell."""
    if (ptxas := shutil.which("ptxas")) is None:
        pytest.skip("there is no ptxas to assemble rows.ptx with")
    command = [ptxas, f"-arch=sm_{target}", str(compile_rows.TARGET), "-o", str(tmp_path / "rows")]
    subprocess.run(command, check=True)


def test_the_kernels_need_no_new_driver() -> None:
    """An old PTX version, both entries, and the zero byte that a driver looks for."""
    text = ptx()
    assert text.endswith(b"\0")
    assert b".version 6.3" in text
    assert b".target sm_75" in text
    assert all(b".entry " + name in text for name in (b"gather_rows", b"scatter_rows"))
    assert text.count(b"\0") == 1
