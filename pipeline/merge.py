"""Several recordings of one line into one file, in the order of time."""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from mcap.reader import McapReader, SeekingReader
from mcap.records import Channel, Message, Schema
from mcap.writer import MCAP0_MAGIC, Writer

from pipeline.recording import BREAKS, CHUNK_BYTES, check_recording
from pipeline.records import MAX_RECORD_BYTES, bounded_records
from pipeline.telemetry import facts

_Found = tuple[Any, Channel, Message]  # with its schema


def merge_recordings(parts: Sequence[Path], path: Path) -> Counter[str]:
    """Write the messages of ``parts`` to ``path``; how many there are of each kind.

    Channels and schemas keep their names. A part that breaks off gives what is whole of it. Raises
    BadData where a part is no recording.
    """
    for part in parts:
        check_recording(part)
    kinds: Counter[str] = Counter()
    with ExitStack() as stack, path.open("xb") as out:
        writer = Writer(out, chunk_size=CHUNK_BYTES)
        writer.start(library="assayline")
        ids: dict[str, int] = {}
        streams = (_messages(stack.enter_context(part.open("rb"))) for part in parts)
        for schema, channel, message in heapq.merge(*streams, key=lambda found: found[2].log_time):
            if channel.topic not in ids:
                known = writer.register_schema(schema.name, schema.encoding, schema.data)
                encoding = channel.message_encoding
                ids[channel.topic] = writer.register_channel(channel.topic, encoding, known)
            kinds[channel.topic.rpartition("/")[2]] += 1
            writer.add_message(
                ids[channel.topic], message.log_time, message.data, message.publish_time
            )
        writer.finish()  # type: ignore[no-untyped-call]
    return kinds


def _messages(file: BinaryIO) -> Iterator[_Found]:
    """Messages of one recording, sorted by time where it is whole."""
    return _sorted(file) if is_whole(file) else _salvaged(file)


def is_whole(file: BinaryIO) -> bool:
    """Whether a recording was closed in order and can be sought in."""
    file.seek(-len(MCAP0_MAGIC), os.SEEK_END)
    is_closed = file.read() == MCAP0_MAGIC
    file.seek(0)
    try:
        return is_closed and _reader(file).get_summary() is not None
    except (*BREAKS, KeyError):
        return False
    finally:
        file.seek(0)


def _reader(file: BinaryIO) -> McapReader:
    return SeekingReader(file, validate_crcs=True, record_size_limit=MAX_RECORD_BYTES)


def _sorted(file: BinaryIO) -> Iterator[_Found]:
    try:
        yield from _reader(file).iter_messages()
    except (*BREAKS, KeyError) as error:  # of a channel that is nowhere described
        facts.event("recording_broken", level="warning", path=file.name, reason=repr(error))


def _salvaged(file: BinaryIO) -> Iterator[_Found]:
    """Messages of a recording whose writer was killed, in the order of writing."""
    schemas: dict[int, Schema] = {}
    channels: dict[int, Channel] = {}
    try:
        for record in bounded_records(file):
            match record:
                case Schema():
                    schemas[record.id] = record
                case Channel():
                    channels[record.id] = record
                case Message() if record.channel_id in channels:
                    channel = channels[record.channel_id]
                    if channel.schema_id in schemas:  # both may have been in what is broken
                        yield schemas[channel.schema_id], channel, record
    except BREAKS as error:
        facts.event("recording_broken", level="warning", path=file.name, reason=repr(error))
