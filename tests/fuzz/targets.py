"""Every decoder of what comes from outside, with valid inputs to start from.

A target is a function from pieces of bytes that may raise what its decoder promises and nothing
else. Files lie in memory where the machine has such a place.
"""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engines.bundle import _read_manifest, open_bundle
from engines.calibration import load_calibration
from engines.contracts import BadBundle, BadConfig, BadData, BadFrame, Decision, Frame, Verdict
from engines.images import decode_image, decode_map, encode_map, encode_png
from engines.presets import read_settings
from pipeline.config import load_line
from pipeline.evidence.chain import Chain, Tampered, link_in, read_chain
from pipeline.journal import Journal
from pipeline.merge import merge_recordings
from pipeline.originals import HEADER, MARK, SUFFIX, original_of, originals_folder
from pipeline.outputs.jsonl import Jsonl
from pipeline.reading import _check_geometry
from pipeline.recording import Recorder, read_exposures, read_verdicts, recorded_cameras
from pipeline.shared import FRAMES, FrameRing, FrameRings, LostImage, remove_shared, shared_path
from pipeline.soundings import tell_verdict
from pipeline.telemetry import facts
from pipeline.wire import FrameEntry, entry_from, head_bytes, head_of, to_fields, verdict_fields
from pipeline.wire import verdict_from as verdict_of
from tests.fuzz.mutate import Case

FRAME_FIELDS = ("head", "image", "lz4", "slot")
VERDICT_FIELDS = ("verdict", "mask", "picture", "map")
MEMORY = Path("/dev/shm")  # noqa: S108 - the mount itself
Seeds = Callable[["Room"], Sequence[Case]]


@dataclass(frozen=True)
class Room:
    """A folder for the files of one target."""

    folder: Path
    bundle: Path  # a small valid one

    def file(self, name: str, data: bytes) -> Path:
        """A file with these bytes, written over whatever was there."""
        path = self.folder / name
        path.write_bytes(data)
        return path

    def clear(self) -> None:
        """Nothing of the last case is left."""
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


@dataclass(frozen=True)
class Target:
    """One decoder: valid inputs, what decodes, what it may raise, and its share of all cases."""

    name: str
    seeds: Seeds
    decode: Callable[..., Any]  # room, *pieces
    refuses: tuple[type[Exception], ...]
    share: int


@contextmanager
def rooms(bundle: Path) -> Iterator[Callable[[str], Room]]:
    """Rooms for targets by their names, all gone afterwards."""
    place = MEMORY if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place, prefix="assayline-fuzz-") as folder:

        @functools.cache
        def room(name: str) -> Room:
            (Path(folder) / name).mkdir()
            return Room(Path(folder) / name, bundle)

        facts.speak_as("fuzz", "error")  # a broken recording is an event, a million are not
        try:
            yield room
        finally:
            facts.speak_as("assayline", "warning")
            for name in Path(folder).iterdir():
                remove_shared(name)


def picture(side: int = 24, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A small image [side, side + 4, 3]."""
    return np.random.default_rng(seed).integers(0, 255, (side, side + 4, 3), np.uint8)


def frame_entry(counter: int = 1, **more: Any) -> FrameEntry:  # noqa: ANN401 - any field
    """A small valid frame."""
    image = np.zeros((8, 6, 3), np.uint8)
    return FrameEntry(f"left/1-{counter}", "left", 5, 9, image, frame_size=(8, 6), **more)


def verdict(number: int = 1, **more: Any) -> Verdict:  # noqa: ANN401 - any field
    """A small valid verdict."""
    told = {"captured_ns": 5, "decided_ns": 9, "lot": "L", "latency_ms": {"total": 1.5}}
    region = {"x": 1, "y": 2, "w": 3, "h": 4, "area_px": 5, "peak": 0.5}
    fields = {"decision": Decision.FAIL, "regions": (region,), **told, **more}
    return Verdict(frame_id=f"left/1-{number}", camera="left", **fields)


# -- seeds and decoders ------------------------------------------------------------------------


def _frames(_: Room) -> Sequence[Case]:
    cases = []
    for codec, slot in (("none", b""), ("lz4", b""), ("none", b"x" * 40)):
        entry = frame_entry(category="disc", crop=(1, 1, 2, 3), part_id="p")
        fields = to_fields(entry, slot, codec)  # type: ignore[arg-type]
        cases.append(tuple(bytes(fields.get(name, b"")) for name in FRAME_FIELDS))
    return cases


def _decode_frame(room: Room, *pieces: bytes) -> None:
    fields = {n.encode(): p for n, p in zip(FRAME_FIELDS, pieces, strict=True) if p}
    entry = entry_from(fields, FrameRings(room.folder, {"left"}).fetch)
    assert entry.image.shape[2] == 3
    _check_geometry(entry)
    head_of(entry)
    to_fields(entry)


def _verdicts(_: Room) -> Sequence[Case]:
    mask, seen = encode_png(picture()[:, :, 0] > 200), encode_png(picture())
    fields = verdict_fields(verdict(), mask, seen, encode_map(np.ones((8, 8), np.float32)))
    bare = verdict_fields(verdict(2, decision=Decision.UNDECIDED, reason="deadline"))
    return [tuple(one[name] for name in VERDICT_FIELDS) for one in (fields, bare)]


def _decode_verdict(_: Room, *pieces: bytes) -> None:
    found, *pictures = verdict_of(
        {n.encode(): p for n, p in zip(VERDICT_FIELDS, pieces, strict=True)}
    )
    tell_verdict(found, 100)
    head_of(found)
    for data in pictures[:2]:
        if data:
            decode_image(data)


def _images(_: Room) -> Sequence[Case]:
    cases = []
    for mode in ("RGB", "L", "P", "RGBA", "1"):
        image = Image.fromarray(picture()).convert(mode)
        for kind in ("PNG", "JPEG", "BMP", "TIFF"):
            if kind != "JPEG" or mode in {"RGB", "L"}:
                file = io.BytesIO()
                image.save(file, kind)
                cases.append((file.getvalue(),))
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture()).save(turned, "JPEG", exif=exif)
    return [*cases, (turned.getvalue(),)]


def _decode_image(_: Room, data: bytes) -> None:
    image = decode_image(data, "fuzzed")
    assert image.ndim == 3
    assert image.dtype == np.uint8


def _maps(_: Room) -> Sequence[Case]:
    return [(encode_map(picture(side)[:, :, 0].astype(np.float32) / 90),) for side in (4, 16, 40)]


def _journals(room: Room) -> Sequence[Case]:
    path = room.folder / "seed.journal"
    with Journal(path) as journal:
        journal.belong_to("server")
        for counter in range(4):
            journal.add(head_of(frame_entry(counter, lot="L")))
        journal.settle(["left/1-1"], {"pass": 1})
    return [(path.read_bytes(),), (head_bytes(head_of(frame_entry())) + b"\n",)]


def _decode_journal(room: Room, data: bytes) -> None:
    Journal(room.file("left.journal", data)).close()


def _recordings(room: Room) -> Sequence[Case]:
    path = room.folder / "seed.mcap"
    with Recorder(path) as recorder:
        for number in range(3):
            recorder.frame(Frame(f"left/1-{number}", "left", 5 + number, picture(16, number)))
            recorder.verdict(verdict(number), encode_png(picture()[:, :, 0] > 99))
    whole = path.read_bytes()
    return [(whole,), (whole[: len(whole) * 2 // 3],)]


def _decode_recording(room: Room, data: bytes) -> None:
    path = room.file("one.mcap", data)
    recorded_cameras(path)
    list(read_exposures(path))
    list(read_verdicts(path))


def _merge(room: Room, data: bytes) -> None:
    (room.folder / "all.mcap").unlink(missing_ok=True)
    merge_recordings([room.file("one.mcap", data)], room.folder / "all.mcap")


def _logs(_: Room) -> Sequence[Case]:
    lines = [verdict(number).model_dump_json().encode() + b"\n" for number in range(3)]
    return [(b"".join(lines),), (lines[0],)]


def _decode_log(room: Room, data: bytes) -> None:
    path = room.file("verdicts.jsonl", data)
    Jsonl(path, "never").close()
    list(read_verdicts(path))


def _lines(_: Room) -> Sequence[Case]:
    paths = (Path("configs/line.demo.yaml"), Path("configs/line.example.yaml"))
    shared = b"a: &a {b: [1, 2]}\nc: *a\n"
    return [*((path.read_bytes(),) for path in paths), (shared,)]


def _trainings(_: Room) -> Sequence[Case]:
    return [(path.read_bytes(),) for path in sorted(Path("configs").glob("train.*.yaml"))]


def _manifests(room: Room) -> Sequence[Case]:
    small = json.loads((room.bundle / "manifest.json").read_bytes())
    return [(json.dumps(small).encode(),), ((room.bundle / "manifest.json").read_bytes(),)]


def _decode_manifest(room: Room, data: bytes) -> None:
    room.file("manifest.json", data)
    _read_manifest(room.folder)


def _calibrations(room: Room) -> Sequence[Case]:
    return [((room.bundle / "calibration.json").read_bytes(),)]


def _zips(room: Room) -> Sequence[Case]:
    cases = []
    for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", how) as archive:
            for path in sorted(room.bundle.iterdir()):
                archive.write(path, path.name)
            if how == zipfile.ZIP_STORED:
                archive.writestr("../outside", b"x")
                archive.writestr("/root", b"x")
        cases.append((file.getvalue(),))
    return cases


def _decode_zip(room: Room, data: bytes) -> None:
    room.clear()
    beside = set(room.folder.parent.iterdir())
    try:
        open_bundle(room.file("bundle.zip", data)).calibration()
    finally:
        assert set(room.folder.parent.iterdir()) == beside, "it wrote outside its folder"
        assert all(p.name.startswith((".bundle-", "bundle.zip")) for p in room.folder.iterdir())
        assert not any(p.is_symlink() for p in room.folder.rglob("*"))


def _chains(room: Room) -> Sequence[Case]:
    path = room.folder / "seed.jsonl"
    chain = Chain(path, "L")
    for number in range(3):
        chain.append(
            {"kind": "verdict", "pictures": {}}, verdict(number).model_dump_json().encode()
        )
    chain.close()
    return [(path.read_bytes(), path.with_suffix(".head").read_bytes())]


def _decode_chain(room: Room, data: bytes, head: bytes) -> None:
    path = room.file("L.jsonl", data)
    room.file("L.head", head)
    for line in data.splitlines():
        link_in(line)
    try:
        list(read_chain(path, "L"))
    finally:
        Chain(path, "L").close()


def _rings(room: Room) -> Sequence[Case]:
    path = shared_path(room.folder, "left", FRAMES)
    image = np.zeros((8, 6, 3), np.uint8)
    with FrameRing(path, 4, image.nbytes) as ring:
        ring.release_all_but([])
        reference = ring.put("left/1-1", image)
        assert reference
        return [(path.read_bytes(), reference)]


def _decode_ring(room: Room, ring: bytes, reference: bytes) -> None:
    path = shared_path(room.folder, "left", FRAMES)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(ring)
    FrameRings(room.folder, {"left"}).fetch("left/1-1", reference, (8, 6))


def _originals(_: Room) -> Sequence[Case]:
    return [(HEADER.pack(MARK, 8, 6) + bytes(8 * 6 * 3),)]


def _decode_original(room: Room, data: bytes) -> None:
    folder = originals_folder(room.folder, "left")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"1-1{SUFFIX}").write_bytes(data)
    found = original_of(room.folder, "left/1-1")
    assert found is None or found.size


TARGETS = (
    Target("frame", _frames, _decode_frame, (BadFrame, LostImage), 300),
    Target("verdict", _verdicts, _decode_verdict, (BadFrame,), 200),
    Target("image", _images, _decode_image, (BadFrame,), 150),
    Target("map", _maps, lambda _, data: decode_map(data), (BadFrame,), 60),
    Target("journal", _journals, _decode_journal, (), 40),
    Target("recording", _recordings, _decode_recording, (BadData,), 60),
    Target("merge", _recordings, _merge, (BadData,), 20),
    Target("log", _logs, _decode_log, (BadData,), 60),
    Target(
        "line", _lines, lambda room, data: load_line(room.file("l.yaml", data)), (BadConfig,), 10
    ),
    Target(
        "training",
        _trainings,
        lambda room, data: read_settings(room.file("t.yaml", data)),
        (BadConfig,),
        10,
    ),
    Target("manifest", _manifests, _decode_manifest, (BadBundle,), 30),
    Target(
        "calibration",
        _calibrations,
        lambda room, data: load_calibration(room.file("calibration.json", data)),
        (BadBundle,),
        20,
    ),
    Target("bundle", _zips, _decode_zip, (BadBundle,), 10),
    Target("evidence", _chains, _decode_chain, (Tampered,), 40),
    Target("ring", _rings, _decode_ring, (BadFrame, LostImage), 60),
    Target("original", _originals, _decode_original, (), 40),
)
