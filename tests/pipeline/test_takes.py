"""A line recorded into one file gives the same verdicts again."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from mcap.reader import make_reader

from engines.contracts import BadConfig, BadData
from pipeline.config import load_line
from pipeline.merge import merge_recordings
from pipeline.recording import read_frames, read_verdicts
from pipeline.takes import Kept, Replayed, record_line, replay_line
from tests.tiny_line import CATEGORY, shared_bundle, write_line, write_parts

FRAMES = 30


@dataclass(frozen=True)
class Take:
    """A line, its recording, and the recording replayed flat out."""

    line: Path
    recording: Path
    kept: Kept
    again: Replayed


@pytest.fixture(scope="module")
def take(tmp_path_factory: pytest.TempPathFactory) -> Take:
    """Thirty parts of the miniature line, six of them bad."""
    folder = tmp_path_factory.mktemp("take")
    write_parts(folder / "parts", FRAMES)
    line = write_line(folder, shared_bundle(tmp_path_factory.getbasetemp()))
    recording = folder / "takes" / "monday.mcap"
    kept = record_line(load_line(line), line, recording, None, threading.Event())
    again = replay_line(load_line(line), recording, "max", recording, threading.Event())
    return Take(line, recording, kept, again)


def test_everything_is_kept(take: Take) -> None:
    """Every frame and every verdict is in the one file, and nothing beside it."""
    assert take.kept == Kept(FRAMES, FRAMES)
    assert [path.name for path in take.recording.parent.iterdir()] == ["monday.mcap"]
    verdicts = [verdict.frame_id for verdict in read_verdicts(take.recording)]
    frames = [frame.frame_id for frame in read_frames(take.recording)]
    assert len(set(frames)) == FRAMES
    assert sorted(verdicts) == sorted(frames)


def test_messages_lie_in_the_order_of_time(take: Take) -> None:
    """Any reader of MCAP sees all topics, merged by time."""
    with take.recording.open("rb") as file:
        messages = list(make_reader(file).iter_messages(log_time_order=False))
    topics = {channel.topic for _, channel, _ in messages}
    stamps = [message.log_time for _, _, message in messages]
    kinds = ("frame", "verdict", "mask", "annotations", "log")
    assert topics == {f"/left/{kind}" for kind in kinds}
    assert len(stamps) >= 4 * FRAMES
    assert stamps == sorted(stamps)


def test_a_replay_gives_the_same_verdicts(take: Take) -> None:
    """Flat out, through the real line: no part differs, scores to the last bit."""
    assert take.again.compared == FRAMES
    assert take.again.differences == ()
    assert (take.again.report["captured"], take.again.report["residual"]) == (FRAMES, 0)
    first = {v.frame_id: v.anomaly_score for v in read_verdicts(take.recording)}
    log = take.line.parent / "run" / "replay" / "verdicts.jsonl"
    again = {v.source_frame_id: v.anomaly_score for v in read_verdicts(log)}
    assert again == first
    assert None not in first.values()


def test_a_replay_is_marked(take: Take) -> None:
    """Its verdicts say so and have ids of their own."""
    log = take.line.parent / "run" / "replay" / "verdicts.jsonl"
    again = list(read_verdicts(log))
    assert all(verdict.replayed for verdict in again)
    assert not {v.frame_id for v in again} & {v.source_frame_id for v in again}


def test_an_existing_recording_is_refused(take: Take) -> None:
    """Before anything runs; it keeps its bytes."""
    before = take.recording.read_bytes()
    with pytest.raises(BadData, match="exists already"):
        record_line(load_line(take.line), take.line, take.recording, 5, threading.Event())
    assert take.recording.read_bytes() == before
    assert [path.name for path in take.recording.parent.iterdir()] == ["monday.mcap"]


def test_a_recording_ends_after_its_frames(take: Take, tmp_path: Path) -> None:
    """An endless line is stopped once enough frames are answered; those in flight are kept too."""
    write_parts(tmp_path / "parts", 5)
    bundle = load_line(take.line).bundle
    source = {"kind": "folder", "path": "parts", "rate_hz": 50, "loop": True}
    line = write_line(tmp_path, bundle, camera={"source": source})
    recording = tmp_path / "short.mcap"
    kept = record_line(load_line(line), line, recording, 10, threading.Event())
    assert kept.frames == kept.verdicts >= 10


def test_a_replay_knows_what_the_line_said_of_its_cameras(
    take: Take, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crop and category hold again; another server's address in the environment does not."""
    write_parts(tmp_path / "parts", 12)
    camera = {"crop": [0, 0, 24, 16], "lot": "7"}  # nothing but the corner with the patches
    line = write_line(tmp_path, load_line(take.line).bundle, camera=camera)
    recording = tmp_path / "crop.mcap"
    record_line(load_line(line), line, recording, None, threading.Event())
    settings = load_line(line)
    monkeypatch.setenv("ASSAYLINE_REDIS__URL", "unix:///nowhere/redis.sock")
    monkeypatch.setenv("ASSAYLINE_REDIS__PASSWORD", "of another server")
    again = replay_line(settings, recording, "max", recording, threading.Event())
    assert (again.compared, again.differences) == (12, ())
    log = tmp_path / "run" / "replay" / "verdicts.jsonl"
    assert {(v.category, v.lot) for v in read_verdicts(log)} == {(CATEGORY, "7")}
    assert os.environ["ASSAYLINE_REDIS__URL"] == "unix:///nowhere/redis.sock"


def test_what_a_killed_camera_left_is_merged(take: Take, tmp_path: Path) -> None:
    """A part without an ending gives what is whole of it, beside parts that have one."""
    whole = take.recording.read_bytes()
    torn = tmp_path / "torn.mcap"
    torn.write_bytes(whole[: len(whole) * 2 // 3])
    merged = merge_recordings([take.recording, torn], tmp_path / "both.mcap")
    assert FRAMES < merged["frame"] < 2 * FRAMES
    assert len(list(read_frames(tmp_path / "both.mcap"))) == merged["frame"]


@pytest.mark.parametrize("speed", ["0", "-1", "fast", "nan", "inf"])
def test_a_speed_that_is_none_is_refused(take: Take, speed: str) -> None:
    """Nothing is replayed at it."""
    with pytest.raises(BadConfig, match="is no speed"):
        replay_line(load_line(take.line), take.recording, speed, None, threading.Event())
