"""What travels on the stream comes back as it was, or is refused in one sentence."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engines.contracts import BadFrame, Decision, Reason, Region, UInt8, Verdict
from pipeline.wire import (
    FrameEntry,
    entry_from,
    head_from,
    head_of,
    split_frame_id,
    to_fields,
    undecided,
    verdict_fields,
    verdict_from,
)

bounded = settings(max_examples=60, deadline=None)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
cameras = st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True)
counters = st.integers(0, 10**15 - 1)
stamps = st.integers(0, 2**62)
sides = st.integers(0, 20_000)
finite = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def entries(draw: st.DrawFn) -> FrameEntry:
    """Any frame that can be sent."""
    camera = draw(cameras)
    h, w = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    return FrameEntry(
        frame_id=f"{camera}/{draw(counters)}-{draw(counters)}",
        camera=camera,
        captured_ns=draw(stamps),
        deadline_ns=draw(stamps),
        image=draw(arrays(np.uint8, (h, w, 3))),
        category=draw(texts),
        recipe=draw(texts),
        part_id=draw(texts),
        lot=draw(texts),
        source_frame_id=draw(texts),
        plan=draw(st.integers(-1, 50)),
        frame_size=draw(st.tuples(sides, sides)),
        crop=draw(st.tuples(sides, sides, sides, sides)),
        replayed=draw(st.booleans()),
    )


regions = st.builds(Region, x=sides, y=sides, w=sides, h=sides, area_px=sides, peak=finite)
verdicts = st.builds(
    Verdict,
    frame_id=texts,
    camera=cameras,
    part_id=texts,
    decision=st.sampled_from(Decision),
    reason=st.none() | st.sampled_from(Reason),
    anomaly_score=st.none() | finite,
    surprise=st.none() | finite,
    threshold=st.none() | finite,
    regions=st.lists(regions, max_size=3).map(tuple),
    level=st.none() | st.integers(0, 999),
    steps=st.integers(0, 50),
    captured_ns=stamps,
    decided_ns=stamps,
    latency_ms=st.dictionaries(texts, st.floats(0, 1e9), max_size=3),
    replayed=st.booleans(),
)


def received(fields: dict[str, Any]) -> dict[bytes, bytes]:
    """Fields as a client gets them back."""
    return {name.encode(): bytes(value) for name, value in fields.items()}


@bounded
@given(entries())
def test_a_frame_comes_back_as_it_was(entry: FrameEntry) -> None:
    """Every field of every frame survives the way through the stream."""
    for codec in ("none", "lz4"):
        assert_same(entry_from(received(to_fields(entry, codec=codec))), entry)


def assert_same(back: FrameEntry, entry: FrameEntry) -> None:
    """Every field is the same."""
    for name in FrameEntry.__slots__:
        np.testing.assert_array_equal(getattr(back, name), getattr(entry, name), err_msg=name)
    assert back.image.dtype == np.uint8


@bounded
@given(verdicts, st.tuples(*[st.binary(max_size=64)] * 3))
def test_a_verdict_comes_back_as_it_was(verdict: Verdict, pictures: tuple[bytes, ...]) -> None:
    """Every verdict survives together with the bytes of its mask, picture and map."""
    assert verdict_from(received(verdict_fields(verdict, *pictures))) == (verdict, *pictures)


names = st.sampled_from([b"head", b"image", b"lz4", b"verdict", b"mask", b"picture", b"slot"])
json_like = st.sampled_from([b"{}", b"[]", b"null", b'{"frame_id":1}', b'{"frame_id":"c/1-1"}'])


@bounded
@given(st.dictionaries(names | st.binary(max_size=8), st.binary(max_size=200) | json_like))
def test_any_bytes_give_a_value_or_bad_frame(fields: dict[bytes, bytes]) -> None:
    """Garbage on the stream is a BadFrame and nothing else."""
    for parse in (entry_from, verdict_from):
        with contextlib.suppress(BadFrame):
            parse(fields)


@bounded
@given(entries(), st.data())
def test_a_damaged_frame_is_a_value_or_bad_frame(entry: FrameEntry, data: st.DataObject) -> None:
    """A flipped or missing byte of a real frame never raises anything but BadFrame."""
    fields = received(to_fields(entry, codec=data.draw(st.sampled_from(["none", "lz4"]))))
    name = data.draw(st.sampled_from(sorted(fields)))
    at = data.draw(st.integers(0, len(fields[name]) - 1))
    patch = data.draw(st.binary(max_size=2))
    fields[name] = fields[name][:at] + patch + fields[name][at + 1 :]
    with contextlib.suppress(BadFrame):
        entry_from(fields)


def an_entry(**changes: Any) -> FrameEntry:  # noqa: ANN401 - any field
    """A frame of 8 x 6 pixels."""
    known = {"frame_id": "cam/1-1", "camera": "cam", "captured_ns": 1, "deadline_ns": 2}
    return FrameEntry(**{**known, "image": np.zeros((8, 6, 3), np.uint8), **changes})


def test_the_image_is_not_copied() -> None:
    """Sending shares the entry's own pixels; receiving shares the bytes received."""
    entry = an_entry()
    fields = to_fields(entry)
    assert np.shares_memory(np.frombuffer(fields["image"], np.uint8), entry.image)
    pixels = bytes(fields["image"])
    back = entry_from({b"head": bytes(fields["head"]), b"image": pixels})
    assert np.shares_memory(back.image, np.frombuffer(pixels, np.uint8))


def test_an_image_is_packed_only_where_that_is_smaller() -> None:
    """An even image travels packed, noise and an image of a few bytes as they are."""
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    even = np.zeros((64, 64, 3), np.uint8)
    for image, name in ((even, "lz4"), (noise, "image"), (even[:1, :1], "image")):
        fields = to_fields(an_entry(image=image), codec="lz4")
        assert fields.keys() == {"head", name}
        assert len(fields[name]) <= image.nbytes
        np.testing.assert_array_equal(entry_from(received(fields)).image, image)


@bounded
@given(
    arrays(np.uint8, st.tuples(*[st.integers(1, 40)] * 2, st.just(3)), fill=st.just(np.uint8(7)))
)
def test_a_packed_image_comes_back_as_it_was(image: UInt8) -> None:
    """Whatever repeats in it."""
    back = entry_from(received(to_fields(an_entry(image=image), codec="lz4")))
    np.testing.assert_array_equal(back.image, image)


@bounded
@given(st.binary(min_size=1, max_size=2000))
def test_any_packed_bytes_give_an_image_or_bad_frame(packed: bytes) -> None:
    """An image of just the size that the head says, or a sentence."""
    head = received(to_fields(an_entry(image=np.zeros((16, 16, 3), np.uint8))))[b"head"]
    with contextlib.suppress(BadFrame):
        assert entry_from({b"head": head, b"lz4": packed}).image.shape == (16, 16, 3)


def test_packed_bytes_cannot_ask_for_memory() -> None:
    """A head that says more than the packed bytes can hold is refused before anything is made."""
    said = to_fields(an_entry(image=np.zeros((4600, 4600, 3), np.uint8)), codec="lz4")
    head, packed = bytes(said["head"]), bytes(said["lz4"])
    assert entry_from({b"head": head, b"lz4": packed}).image.shape == (4600, 4600, 3)
    with pytest.raises(BadFrame, match="length is impossible"):
        entry_from({b"head": head, b"lz4": packed[:1000]})
    with pytest.raises(BadFrame, match="no image"):
        entry_from({b"head": head, b"lz4": packed[:-1]})


def test_a_view_of_a_larger_image_is_sent_whole() -> None:
    """A crop whose rows are not adjacent in memory arrives as the crop."""
    image = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)[2:10, 3:9]
    back = entry_from(received(to_fields(an_entry(image=image))))
    np.testing.assert_array_equal(back.image, image)


@pytest.mark.parametrize(
    "changes",
    [
        {"image": np.zeros((8, 6), np.uint8)},
        {"image": np.zeros((8, 6, 4), np.uint8)},
        {"image": np.zeros((8, 6, 3), np.float32)},
        {"image": np.zeros((0, 6, 3), np.uint8)},
        {"part_id": "P" * 300},
        {"lot": "\ud800"},
        {"captured_ns": -1},
        {"camera": "other"},
    ],
)
def test_what_cannot_arrive_is_not_sent(changes: dict[str, Any]) -> None:
    """Only uint8 [h, w, 3] with pixels in it, described within bounds, is sent."""
    with pytest.raises(BadFrame, match="cam/1-1"):
        to_fields(an_entry(**changes))


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        (b"", "0 bytes"),
        (b"x" * 20_000, "20000 bytes"),
        (
            b'{"schema_version":9,"frame_id":"c/1-1","camera":"c","captured_ns":1,"deadline_ns":1}',
            "9",
        ),
        (b'{"frame_id":"d/1-1","camera":"c","captured_ns":1,"deadline_ns":1}', "not a frame of"),
        (b'{"frame_id":"c/1-1","camera":"c","captured_ns":1,"deadline_ns":1,"x":1}', "x: "),
    ],
)
def test_a_foreign_head_is_named(head: bytes, sentence: str) -> None:
    """Empty, oversized, newer, contradictory and unknown heads are told apart."""
    with pytest.raises(BadFrame, match=sentence):
        head_from(head)


@pytest.mark.parametrize("name", ["", "cam", "cam/1", "cam/1-", "a b/1-1", "cam/1-1\n", "c/٣-1"])
def test_a_frame_id_has_one_form(name: str) -> None:
    """Only <camera>/<epoch>-<counter> names a frame."""
    with pytest.raises(ValueError, match="not a frame id"):
        split_frame_id(name)


def test_an_undecided_verdict_keeps_what_is_known_of_the_part() -> None:
    """Part, lot and recipe reach the line even when nobody could judge the frame."""
    entry = an_entry(part_id="P7", lot="L1", recipe="R", category="disc", captured_ns=2_000_000)
    verdict = undecided(entry, Reason.DEADLINE, 5_000_000)
    assert (verdict.part_id, verdict.lot, verdict.recipe, verdict.category) == (
        "P7",
        "L1",
        "R",
        "disc",
    )
    assert verdict.decision is Decision.UNDECIDED
    assert verdict.latency_ms == {"total": 3.0}
    assert head_of(verdict).part_id == head_of(entry).part_id == "P7"
