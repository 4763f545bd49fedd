"""A recorded line opens in Foxglove: schemas it knows, a part's messages at one place."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from mcap.reader import make_reader

from engines.contracts import Decision, Verdict
from engines.images import decode_image, encode_png
from engines.masks import outlines
from pipeline.annotations import drawing, log_line
from pipeline.foxglove import CHANNELS, SCHEMAS
from tests.tiny_line import shared_bundle, write_line, write_parts

FRAMES = 20
BAD_EVERY = 5
# Fields of Foxglove's published schemas that its panels read; all of them must be there.
PUBLISHED = {
    "foxglove.CompressedImage": {"timestamp", "frame_id", "data", "format"},
    "foxglove.ImageAnnotations": {"circles", "points", "texts"},
    "foxglove.Log": {"timestamp", "level", "message", "name", "file", "line"},
}
LINE = {
    "timestamp", "type", "points", "outline_color", "outline_colors", "fill_color", "thickness",
}  # fmt: skip
LABEL = {"timestamp", "position", "text", "font_size", "text_color", "background_color"}


class Message(NamedTuple):
    """One message as a reader of MCAP sees it."""

    topic: str
    schema: str
    log_ns: int
    told_ns: int
    body: dict[str, Any]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``assayline record`` leaves of twenty parts, four of them bad."""
    folder = tmp_path_factory.mktemp("foxglove")
    write_parts(folder / "parts", FRAMES, BAD_EVERY)
    line = write_line(folder, shared_bundle(tmp_path_factory.getbasetemp()))
    path = folder / "take.mcap"
    command = [sys.executable, "-m", "pipeline", "record", str(line), "--out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def messages(recording: Path) -> list[Message]:
    """Every message in the order of the file's timeline."""
    with recording.open("rb") as file:
        return [
            Message(
                channel.topic,
                schema.name if schema else "",
                message.log_time,
                message.publish_time,
                json.loads(message.data),
            )
            for schema, channel, message in make_reader(file).iter_messages()
        ]


def of(messages: list[Message], kind: str) -> dict[int, Message]:
    """The messages of a kind by their time."""
    found = [message for message in messages if message.topic == f"/left/{kind}"]
    assert len({message.log_ns for message in found}) == len(found)
    return {message.log_ns: message for message in found}


def at(body: Mapping[str, Any]) -> int:
    """The time that a message says of itself."""
    stamp = body["timestamp"]
    assert 0 <= stamp["nsec"] < 10**9
    return int(stamp["sec"] * 10**9 + stamp["nsec"])


def test_channels_carry_the_schemas_that_foxglove_knows(recording: Path) -> None:
    """Names, JSON encoding and JSON Schema; each with all the fields that are published."""
    with recording.open("rb") as file:
        summary = make_reader(file).get_summary()
    assert summary is not None
    channels = list(summary.channels.values())
    schemas = {channel.topic: summary.schemas[channel.schema_id] for channel in channels}
    assert {channel.message_encoding for channel in channels} == {"json"}
    assert {topic: schema.name for topic, schema in schemas.items()} == {
        f"/left/{kind}": name for kind, name in CHANNELS.items() if kind != "bad_exposure"
    }
    for schema in schemas.values():
        assert schema.encoding == "jsonschema"
        told = json.loads(schema.data)
        assert told["type"] == "object"
        if schema.name in PUBLISHED:
            assert told["title"] == schema.name
            assert PUBLISHED[schema.name] <= set(told["properties"])
            assert set(told["required"]) == PUBLISHED[schema.name]


def test_images_are_bytes_to_foxglove() -> None:
    """Base64 is said where data is, or the panel would show text."""
    data = SCHEMAS["foxglove.CompressedImage"]["properties"]["data"]
    assert data == {"type": "string", "contentEncoding": "base64"}


def test_the_timeline_only_goes_forward(recording: Path, messages: list[Message]) -> None:
    """Log times never fall, in the index and in the order of writing."""
    with recording.open("rb") as file:
        written = [m.log_time for _, _, m in make_reader(file).iter_messages(log_time_order=False)]
    assert written == sorted(written)
    assert [message.log_ns for message in messages] == written


def test_a_part_s_messages_lie_on_its_frame(messages: list[Message]) -> None:
    """Frame, verdict, drawing and mask of a part share one time; the mask only where it failed."""
    frames, verdicts = of(messages, "frame"), of(messages, "verdict")
    masks, drawn = of(messages, "mask"), of(messages, "annotations")
    failed = {ns for ns, one in verdicts.items() if one.body["decision"] == "FAIL"}
    assert len(frames) == FRAMES
    assert set(frames) == set(verdicts) == set(drawn)
    assert set(masks) == failed
    assert len(failed) >= FRAMES // BAD_EVERY
    for ns, frame in frames.items():
        assert frame.body["frame"]["frame_id"] == verdicts[ns].body["frame_id"]
        for message in (frame, drawn[ns], *([masks[ns]] if ns in masks else [])):
            assert at(message.body) == ns
        assert ns == verdicts[ns].body["captured_ns"]
        assert verdicts[ns].told_ns == verdicts[ns].body["decided_ns"] >= ns


def test_a_mask_fits_its_frame_and_its_drawing_fits_the_mask(messages: list[Message]) -> None:
    """Both are PNG of one size, and the outline lies on the white of the mask."""
    frames, drawn = of(messages, "frame"), of(messages, "annotations")
    for ns, mask in of(messages, "mask").items():
        pictures = [decode_image(base64.b64decode(one.body["data"])) for one in (frames[ns], mask)]
        assert pictures[0].shape == pictures[1].shape
        assert {one.body["format"] for one in (frames[ns], mask)} == {"png"}
        assert mask.body["frame_id"] == frames[ns].body["frame_id"] == "left"
        lines = drawn[ns].body["points"]
        assert lines
        for line in lines:
            assert set(line) == LINE
            for point in line["points"]:
                assert pictures[1][int(point["y"]), int(point["x"]), 0] == 255


def test_every_part_says_its_decision_on_the_picture(messages: list[Message]) -> None:
    """One label per frame, so that a reject's outline does not stay on the next part."""
    verdicts = of(messages, "verdict")
    for ns, drawn in of(messages, "annotations").items():
        (label,) = drawn.body["texts"]
        assert set(label) == LABEL
        assert label["text"].startswith(verdicts[ns].body["decision"])
        assert drawn.body["circles"] == []


def test_the_log_says_when_it_was_decided(messages: list[Message]) -> None:
    """A line per verdict, at its own time, a reject louder than a pass."""
    log = [message for message in messages if message.topic == "/left/log"]
    verdicts = {m.body["frame_id"]: m.body for m in messages if m.topic == "/left/verdict"}
    assert len(log) == FRAMES
    for line in log:
        verdict = verdicts[line.body["message"].split()[0]]
        assert at(line.body) == line.log_ns == verdict["decided_ns"]
        assert line.body["level"] == {"PASS": 2, "FAIL": 3, "UNDECIDED": 4}[verdict["decision"]]


def test_a_mask_that_is_none_costs_only_its_drawing() -> None:
    """Bytes that are no image are kept by the recording and drawn by nobody."""
    verdict = Verdict(
        frame_id="left/1-1", camera="left", decision=Decision.FAIL, captured_ns=1, decided_ns=2
    )
    drawn = drawing(verdict, b"no image")
    assert drawn["points"] == []
    assert len(drawn["texts"]) == 1
    assert log_line(verdict)["message"].startswith("left/1-1 FAIL")


def test_outlines_are_bounded_and_the_largest_come_first() -> None:
    """However torn a mask is, its drawing has an end; the mask itself is the evidence."""
    mask = np.zeros((64, 64), np.bool_)
    mask[::2, ::2] = True
    mask[20:40, 20:40] = True
    lines = outlines(mask, most=100)
    assert sum(len(line) for line in lines) <= 100
    xs = [x for x, _ in lines[0]]
    assert max(xs) - min(xs) >= 19
    assert outlines(np.zeros((4, 4), np.bool_)) == []
    assert len(lines_of(encode_png(mask))) > 1


def lines_of(mask_png: bytes) -> list[dict[str, Any]]:
    """The lines drawn for a mask."""
    verdict = Verdict(
        frame_id="left/1-1", camera="left", decision=Decision.FAIL, captured_ns=1, decided_ns=2
    )
    lines: list[dict[str, Any]] = drawing(verdict, mask_png)["points"]
    return lines
