"""A recording is not believed when it speaks of its own sizes."""

from __future__ import annotations

import resource
import struct
from pathlib import Path

import pytest
import zstandard
from mcap.records import Chunk
from mcap.writer import CompressionType, Writer

from engines.contracts import BadData
from pipeline.recording import read_exposures, read_verdicts, recorded_cameras
from pipeline.records import MAX_RECORD_BYTES, TooLarge, bounded_records
from pipeline.wire import MAX_VERDICT_BYTES

HUGE = 4 << 30
MAGIC = b"\x89MCAP0\r\n"


def chunk(data: bytes, claimed: int, compression: str = "zstd") -> bytes:
    """A recording of one chunk that claims to hold so many bytes."""
    body = struct.pack("<QQQI", 0, 0, claimed, 0)
    body += struct.pack("<I", len(compression)) + compression.encode()
    body += struct.pack("<Q", len(data)) + data
    return MAGIC + bytes([6]) + struct.pack("<Q", len(body)) + body


def bomb() -> bytes:
    """A few kilobytes of zstd that unfold to four gigabytes."""
    packer = zstandard.ZstdCompressor(level=19).compressobj(size=HUGE)
    block = bytes(1 << 24)
    return b"".join(packer.compress(block) for _ in range(8)) + bytes(16)


def peak_kb() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("claimed", [0, 100, HUGE, 2**63, 2**64 - 1])
def test_a_chunk_that_unfolds_to_gigabytes_is_not_unfolded(tmp_path: Path, claimed: int) -> None:
    """Whatever its header claims, and whatever its contents do: no memory is spent."""
    path = tmp_path / "bomb.mcap"
    before = peak_kb()
    told = bomb()
    for data in (told, b"\x28\xb5\x2f\xfd" + bytes(40)):
        path.write_bytes(chunk(data, claimed))
        assert list(read_exposures(path)) == []
        assert recorded_cameras(path) == []
    assert peak_kb() - before < 200_000
    with path.open("wb") as file:
        file.write(chunk(told, claimed))
    with path.open("rb") as file, pytest.raises(TooLarge):
        list(bounded_records(file))


def test_a_packing_that_we_never_use_is_refused(tmp_path: Path) -> None:
    """What is packed by lz4 could unfold to any size."""
    with (tmp_path / "x.mcap").open("wb") as file:
        writer = Writer(file, compression=CompressionType.LZ4)
        writer.start()
        schema = writer.register_schema("s", "jsonschema", b"{}")
        channel = writer.register_channel("/left/frame", "json", schema)
        writer.add_message(channel, 1, b"{}", 1)
        writer.finish()  # type: ignore[no-untyped-call]
    with (tmp_path / "x.mcap").open("rb") as file, pytest.raises(TooLarge, match="lz4"):
        list(bounded_records(file))
    assert list(read_exposures(tmp_path / "x.mcap")) == []


def test_a_record_of_any_length_is_not_waited_for(tmp_path: Path) -> None:
    """A length beyond the limit ends the reading."""
    path = tmp_path / "x.mcap"
    for length in (MAX_RECORD_BYTES + 1, 2**40, 2**63, 2**64 - 1):
        path.write_bytes(MAGIC + bytes([5]) + struct.pack("<Q", length) + bytes(100))
        assert list(read_exposures(path)) == []


def test_a_line_without_end_is_no_verdict(tmp_path: Path) -> None:
    """A log of one endless line is refused after what a verdict may have."""
    path = tmp_path / "verdicts.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    before = peak_kb()
    with pytest.raises(BadData):
        list(read_verdicts(path))
    assert peak_kb() - before < 20 * MAX_VERDICT_BYTES // 1000


def test_what_is_judged_is_what_is_read() -> None:
    """The library's chunk has the fields that are judged."""
    assert {"uncompressed_size", "compression", "data"} <= set(Chunk.__dataclass_fields__)
