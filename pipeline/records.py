"""Records of an MCAP file whose claims about their own sizes are not believed.

A chunk of a kilobyte may unfold to gigabytes. So chunks are judged by what they claim before they
are unfolded, and no further than they claim.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import zstandard
from mcap.exceptions import McapError
from mcap.records import Chunk, McapRecord
from mcap.stream_reader import StreamReader, breakup_chunk

MAX_RECORD_BYTES = 512 << 20  # the largest frame that a camera may have, as PNG in base64
UNKNOWN = -1  # zstd's word for a frame that does not say how long it is


class TooLarge(McapError):
    """A record that no recording of ours holds."""


def bounded_records(file: BinaryIO) -> Iterator[McapRecord]:
    """Every record, those inside chunks too; raises what the library raises, and TooLarge."""
    reader = StreamReader(
        file, validate_crcs=True, emit_chunks=True, record_size_limit=MAX_RECORD_BYTES
    )
    for record in reader.records:
        if isinstance(record, Chunk):
            _judge(record)
            yield from breakup_chunk(record, validate_crc=True)
        else:
            yield record


def _judge(chunk: Chunk) -> None:
    size = chunk.uncompressed_size
    if chunk.compression == "zstd":
        told = zstandard.frame_content_size(chunk.data)
        size = max(size, 0 if told == UNKNOWN else told)
    elif chunk.compression:
        raise TooLarge(f"a chunk is packed by {chunk.compression}, which we never use")
    if size > MAX_RECORD_BYTES:
        raise TooLarge(f"a chunk claims to hold {size} bytes")
