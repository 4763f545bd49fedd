"""Settings enter once, validated and frozen; every mistake is one sentence with its mend."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from engines.contracts import BadConfig
from pipeline.config import LineSettings, RedisSettings, load_line

REPOSITORY = Path(__file__).parents[2]
LINE = {
    "line": "one",
    "bundle": "shipped",
    "cameras": [{"name": "left", "source": {"kind": "simulator"}}],
}


def write(folder: Path, **changes: object) -> Path:
    """A line file with some keys changed."""
    path = folder / "line.yaml"
    path.write_text(yaml.safe_dump({**LINE, **changes}))
    return path


@pytest.mark.parametrize("name", ["demo", "example"])
def test_committed_lines_load(name: str) -> None:
    """The lines in configs/ are valid."""
    assert load_line(REPOSITORY / "configs" / f"line.{name}.yaml").cameras


def test_relative_paths_belong_to_the_folder_of_the_file(tmp_path: Path) -> None:
    """A line means the same from every working directory."""
    camera = {"name": "left", "source": {"kind": "folder", "path": "parts"}}
    settings = load_line(write(tmp_path, cameras=[camera], sinks={"jsonl": {"path": "/v.jsonl"}}))
    assert settings.bundle == tmp_path / "shipped"
    assert settings.cameras[0].source.path == tmp_path / "parts"  # type: ignore[union-attr]
    assert settings.sinks.jsonl is not None
    assert settings.sinks.jsonl.path == Path("/v.jsonl")
    assert settings.run_dir == Path("runs/one").absolute()


def test_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One value is overridden, its neighbours stay."""
    monkeypatch.setenv("ASSAYLINE_REDIS__URL", "redis://elsewhere")
    monkeypatch.setenv("ASSAYLINE_WORKER__SLOTS", "7")
    settings = load_line(write(tmp_path, worker={"slots": 3, "batch_max": 4}))
    assert settings.redis.url == "redis://elsewhere"
    assert (settings.worker.slots, settings.worker.batch_max) == (7, 4)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"workr": {}}, "unknown key workr; did you mean worker?"),
        ({"sinks": {"mqtt": {"hots": "x"}}}, "unknown key sinks.mqtt.hots; did you mean host?"),
        (
            {"cameras": [{"name": "a", "gate_msx": 1, "source": {"kind": "simulator"}}]},
            "unknown key cameras.0.gate_msx; did you mean gate_ms?",
        ),
        (
            {"cameras": [{"name": "a", "source": {"kind": "simulator", "sead": 1}}]},
            "did you mean seed?",
        ),
        ({"cameras": [{"name": "a", "source": {"kind": "simulatr"}}]}, "'simulatr'"),
        ({"cameras": LINE["cameras"] * 2}, "two cameras are called left"),  # type: ignore[operator]
        ({"cameras": []}, "the line has no camera"),
        ({"worker": {"slots": 0}}, "worker.slots: input should be greater than 0"),
        ({"worker": {"zzz": 0}}, "known keys are backend, "),
        ({"cameras": [{"source": {"kind": "simulator"}}]}, "cameras.0.name is missing"),
        ({"line": "../x"}, "line: "),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    """The place, what is wrong, and what was probably meant."""
    with pytest.raises(BadConfig) as caught:
        load_line(write(tmp_path, **changes))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "", "\x00"])
def test_what_is_no_settings_file_is_refused(tmp_path: Path, text: str) -> None:
    """Broken YAML and foreign files are BadConfig."""
    path = tmp_path / "line.yaml"
    path.write_text(text)
    with pytest.raises(BadConfig):
        load_line(path)
    with pytest.raises(BadConfig, match="cannot be read"):
        load_line(tmp_path / "absent.yaml")


def test_settings_are_frozen(tmp_path: Path) -> None:
    """Nobody changes a setting after it was read."""
    settings = load_line(write(tmp_path))
    with pytest.raises(ValidationError):
        settings.worker.slots = 1


@pytest.mark.parametrize(
    ("given", "shown", "address"),
    [
        ("redis://ann:s3cret@host:6380/2", "redis://ann@host:6380/2", "s3cret"),
        ("rediss://:s3cret@host", "rediss://host", "s3cret"),
    ],
)
def test_a_password_is_used_and_never_shown(given: str, shown: str, address: str) -> None:
    """It leaves the URL on the way in and comes back only in the address."""
    settings = RedisSettings(url=given)
    assert settings.url == shown
    assert "s3cret" not in repr(settings) + settings.model_dump_json()
    assert settings.address() == given
    assert address in settings.address()


def test_a_password_from_the_environment_joins_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Characters that mean something in a URL are escaped."""
    monkeypatch.setenv("ASSAYLINE_REDIS__PASSWORD", "p@ss/word")
    settings = load_line(write(tmp_path, redis={"url": "redis://ann@host"}))
    assert settings.redis.address() == "redis://ann:p%40ss%2Fword@host"


@pytest.mark.parametrize(
    ("source", "overrun", "gate_ms"),
    [
        ({"kind": "folder", "path": "x"}, "wait", 600_000),
        ({"kind": "folder", "path": "x", "rate_hz": 5}, "reject", 500),
        ({"kind": "simulator"}, "reject", 500),
        ({"kind": "simulator", "rate_hz": 0}, "wait", 600_000),
        ({"kind": "replay", "path": "x", "speed": "max"}, "wait", 600_000),
        ({"kind": "camera", "index": 0}, "reject", 500),
    ],
)
def test_frames_wait_only_where_no_belt_moves(
    source: dict[str, object], overrun: str, gate_ms: int
) -> None:
    """A source from storage waits for credits and has no gate; a belt does neither."""
    camera = {"name": "a", "source": source}
    [chosen] = LineSettings(line="l", bundle="b", cameras=[camera]).cameras  # type: ignore[arg-type, list-item]
    assert (chosen.overrun, chosen.gate_ms) == (overrun, gate_ms)


@pytest.mark.parametrize(
    ("gates_ms", "gathering_ms"),
    [((100,), 0.0), ((60_000, 100), 0.0), ((400,), 10.0), ((60_000,), 100.0)],
)
def test_verdicts_gather_where_every_gate_is_far(
    gates_ms: tuple[int, ...], gathering_ms: float
) -> None:
    """A fortieth of the shortest way, at most a tenth of a second; nothing near a gate."""
    source = {"kind": "simulator"}
    cameras = [{"name": f"c{ms}", "source": source, "gate_ms": ms} for ms in gates_ms]
    settings = LineSettings(line="l", bundle="b", cameras=cameras)  # type: ignore[arg-type]
    assert settings.gathering_ms == pytest.approx(gathering_ms)


def test_an_unknown_camera_is_named_with_those_there_are(tmp_path: Path) -> None:
    """The sentence lists the cameras of the line."""
    with pytest.raises(BadConfig, match="no camera right; it has left"):
        load_line(write(tmp_path)).camera("right")


def test_what_shares_memory_is_not_packed(tmp_path: Path) -> None:
    """A codec without a stream to use it on is refused; one for the stream is taken."""
    camera = {"name": "left", "source": {"kind": "simulator"}, "codec": "lz4"}
    assert load_line(write(tmp_path, cameras=[camera])).cameras[0].codec == "lz4"
    with pytest.raises(BadConfig, match="nothing is packed"):
        load_line(write(tmp_path, cameras=[{**camera, "transport": "shared"}]))


@pytest.mark.parametrize(
    ("redis", "camera", "shares"),
    [
        ({}, {}, True),
        ({"url": "unix:///run/redis.sock", "owned": True}, {}, True),
        ({"url": "unix:///run/redis.sock"}, {}, False),
        ({"url": "redis://redis.plant:6379"}, {}, False),
        ({}, {"codec": "lz4"}, False),
        ({}, {"transport": "inline"}, False),
        ({"url": "unix:///run/redis.sock"}, {"transport": "shared"}, True),
    ],
)
def test_memory_is_shared_beside_a_server_of_the_lines_own(
    tmp_path: Path, redis: dict[str, object], camera: dict[str, object], shares: bool
) -> None:
    """All roles are on one host then; any other line has to be told."""
    cameras = [{"name": "left", "source": {"kind": "simulator"}, **camera}]
    line = load_line(write(tmp_path, cameras=cameras, redis=redis))
    assert line.shares_memory(line.cameras[0]) == shares
    may = camera.get("transport") != "inline" and "codec" not in camera
    assert line.shared_cameras == ("left",) * may  # a worker takes what comes


@pytest.mark.parametrize("wanted", [{"transport": "shared"}, {"originals_bytes": 1}])
@pytest.mark.parametrize(
    ("url", "is_here"),
    [
        ("embedded", True),
        ("unix:///run/redis.sock", True),
        ("redis://localhost:6379/0", True),
        ("redis://me:secret@127.1.2.3:6379", True),
        ("rediss://[::1]:6379", True),
        ("redis://redis.plant:6379", False),
        ("redis://127.plant", False),
        ("rediss://192.168.7.2:6379", False),
    ],
)
def test_memory_is_shared_on_one_host_only(
    tmp_path: Path, wanted: dict[str, object], url: str, is_here: bool
) -> None:
    """Shared memory with a Redis elsewhere is refused, with what to do."""
    camera = {"name": "left", "source": {"kind": "simulator"}, **wanted}
    path = write(tmp_path, cameras=[camera], redis={"url": url})
    if is_here:
        assert load_line(path)
        return
    with pytest.raises(BadConfig, match=f"asks for {next(iter(wanted))}.*redis.url names another"):
        load_line(path)
