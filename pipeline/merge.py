"""Several recordings of one line into one file, in the order of time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from mcap.reader import make_reader
from mcap.writer import Writer

from pipeline.recording import CHUNK_BYTES, check_recording


def merge_recordings(parts: Sequence[Path], path: Path) -> None:
    """Write the messages of ``parts`` to ``path``; channels and schemas keep their names.

    Raises BadData where a part is no recording.
    """
    for part in parts:
        check_recording(part)
    with ExitStack() as stack, path.open("xb") as out:
        writer = Writer(out, chunk_size=CHUNK_BYTES)
        writer.start(library="assayline")
        ids: dict[str, int] = {}
        streams = (_messages(stack.enter_context(part.open("rb"))) for part in parts)
        for _, (schema, channel, message) in heapq.merge(*streams, key=lambda item: item[0]):
            if channel.topic not in ids:
                known = writer.register_schema(schema.name, schema.encoding, schema.data)
                encoding = channel.message_encoding
                ids[channel.topic] = writer.register_channel(channel.topic, encoding, known)
            writer.add_message(
                ids[channel.topic], message.log_time, message.data, message.publish_time
            )
        writer.finish()  # type: ignore[no-untyped-call]


def _messages(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """(time, (schema, channel, message)) of one recording, sorted by time."""
    for found in make_reader(file).iter_messages():
        yield found[2].log_time, found
