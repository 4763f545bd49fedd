"""What a running line serves is the table: every row, of the right role, with the right labels."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from prometheus_client import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from engines.contracts import Decision, Reason, SourceLost, StreamLost, Verdict
from pipeline.access.credentials import USERS, role_address
from pipeline.access.setup import set_up
from pipeline.config import LineSettings, load_line
from pipeline.metrics import METRICS, PREFIX
from pipeline.pulse import Pulse
from pipeline.server import embedded_server
from pipeline.soundings import Soundings, tell_verdict
from pipeline.sources import BadExposure, Exposure
from pipeline.sources.live import reconnecting
from pipeline.stream import Stream, open_stream
from pipeline.supervisor import run_line
from pipeline.telemetry import facts
from pipeline.wire import FrameEntry
from tests.tiny_line import SIZE, good_part, shared_bundle, write_line, write_parts

ROOT = Path(__file__).parents[2]
ROLES = ("sink", "inspect", "run", "ingest")
LIBRARY_LABELS = {"le"}
Families = dict[str, Family]


class Served(NamedTuple):
    """What each process of a running line says."""

    line: LineSettings
    roles: dict[str, Families]


def scraped(port: int) -> Families:
    """The families of one process, by name; none where nobody answers yet."""
    try:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=2).text
    except httpx.HTTPError:
        return {}
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(families: Families, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels; 0 without any."""
    bare = name.removesuffix("_total").removesuffix("_count")
    family = families.get(f"{PREFIX}{bare}")
    return sum(
        sample.value
        for sample in (family.samples if family else ())
        if sample.name == f"{PREFIX}{name}" and labels.items() <= sample.labels.items()
    )


def free_base() -> int:
    """A port such that the ports of the roles above it are free."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            base = int(probe.getsockname()[1]) - 40
        if all(_is_free(base + offset) for offset in (0, 1, 32, 33)):
            return base


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A line in its own processes, asked while it runs, when all of them have something to say."""
    folder = tmp_path_factory.mktemp("served")
    write_parts(folder / "parts", 300)
    camera = {
        "source": {"kind": "folder", "path": "parts", "rate_hz": 15},
        "recipe": "thin",
        "gate_ms": 5000,
    }
    bundle = shared_bundle(tmp_path_factory.getbasetemp())
    sinks = {"jsonl": {}, "archive": {}}
    path = write_line(folder, bundle, camera=camera, sinks=sinks, metrics={"port": free_base()})
    line, stop = load_line(path), threading.Event()
    running = threading.Thread(target=run_line, args=(line, stop, path))
    running.start()
    try:
        yield Served(line, _asked_when_told(line))
    finally:
        stop.set()
        running.join()


def _asked_when_told(line: LineSettings) -> dict[str, Families]:
    until = time.monotonic() + 60
    while True:
        roles = {role: scraped(line.metrics.port_of(role)) for role in ROLES}
        sink = roles["sink"]
        if value(sink, "verdicts_total") >= 30 and value(sink, "ledger_frames") >= 60:
            return roles
        assert time.monotonic() < until, "the line never told"
        time.sleep(0.2)


# -- a running line -----------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_a_process_serves_the_rows_of_its_role(served: Served, role: str) -> None:
    """No metric is missing, none is foreign, and kind and meaning are the table's."""
    rows = {name: row for name, row in METRICS.items() if role in row.roles}
    found = served.roles[role]
    assert set(found) == {PREFIX + name.removesuffix("_total") for name in rows}
    for name, row in rows.items():
        family = found[PREFIX + name.removesuffix("_total")]
        assert family.type == row.kind, name
        for sample in family.samples:
            assert set(sample.labels) - LIBRARY_LABELS == set(row.labels), name


def test_the_document_names_what_is_served(served: Served) -> None:
    """docker/METRICS.md has a row for each metric of a running line, with its labels and role."""
    document = (ROOT / "docker" / "METRICS.md").read_text("utf-8")
    for role, families in served.roles.items():
        for family in families.values():
            name = family.name + ("_total" if family.type == "counter" else "")
            (row,) = [line for line in document.splitlines() if line.startswith(f"| `{name}` ")]
            _, kind, _, labels, roles, _ = (cell.strip() for cell in row.strip("|").split("|"))
            assert kind == family.type
            assert roles == "every role" or role in roles.split(", ")
            for sample in family.samples:
                told = set(labels.split(", ")) - {"–"}
                assert set(sample.labels) - LIBRARY_LABELS == told, name


def test_the_numbers_are_of_this_line(served: Served) -> None:
    """Cameras and recipes are named, counts agree between processes, nothing is unaccounted for."""
    sink, ingest, inspect = (served.roles[role] for role in ("sink", "ingest", "inspect"))
    place = {"camera": "left", "recipe": "thin"}
    judged = value(sink, "verdicts_total", **place)
    assert judged == value(sink, "verdicts_total") >= 30
    assert value(sink, "verdict_seconds_count", **place) == judged
    assert value(sink, "verdict_gate_ratio_count", **place) == judged
    assert value(sink, "surprise_count", camera="left") == judged
    assert 0 < value(sink, "verdicts_total", decision="FAIL") < judged
    assert value(ingest, "frames_admitted_total", **place) >= judged
    assert value(inspect, "depth_steps_count", **place) > 0
    assert value(inspect, "stage_seconds_count", stage="write") > 0
    assert value(inspect, "loop_turn_seconds_count") > 0
    assert value(inspect, "false_reject_promise_ratio") > 0
    assert value(sink, "ledger_residual_frames", camera="left") == 0
    assert value(sink, "gate_seconds", camera="left") == 5


def test_the_line_says_how_it_is(served: Served) -> None:
    """The server answers, its worker beats, its camera delivers, its disk has a size."""
    sink, ingest, inspect = (served.roles[role] for role in ("sink", "ingest", "inspect"))
    assert value(sink, "server_up") == value(sink, "workers_alive") == 1
    assert value(sink, "workers_expected") == 1
    assert value(sink, "server_memory_used_bytes") > 0
    assert 0 < value(sink, "disk_free_bytes") < value(sink, "disk_size_bytes")
    assert value(ingest, "camera_connected", camera="left") == 1
    for told in (
        value(ingest, "camera_frame_timestamp_seconds"),
        value(inspect, "worker_beat_timestamp_seconds"),
    ):
        assert 0 <= time.time() - told < 60


# -- a camera ----------------------------------------------------------------------------------


class Loose:
    """A camera whose plug comes off after one exposure."""

    def exposures(self, stop: threading.Event) -> Iterator[Exposure]:  # noqa: ARG002 - Session
        """One, and no more."""
        yield BadExposure("loose", 1, "no image; look at the plug.")
        raise SourceLost("the plug came off")

    def close(self) -> None:
        """Nothing is held."""


def test_an_outage_is_told_until_it_is_over() -> None:
    """Connected while it delivers, 0 while it is tried again, 1 after it came back."""
    seen, stop = [], threading.Event()

    def connect() -> Loose:
        seen.append(sample("camera_connected", camera="loose"))
        return Loose()

    exposures = reconnecting(connect, "loose", 5.0, stop)
    for _ in range(2):
        next(exposures)
        seen.append(sample("camera_connected", camera="loose"))
    stop.set()
    assert seen == [0, 1, 0, 1]


# -- what the sink tells, exactly ---------------------------------------------------------------


def sample(name: str, **labels: str) -> float:
    """One number of this process."""
    return facts.registry.get_sample_value(f"{PREFIX}{name}", labels) or 0.0


def test_a_verdict_is_told_against_its_own_gate() -> None:
    """The same 60 ms are in time for one camera and late for another."""
    for camera, gate_ms in (("slow", 100.0), ("fast", 50.0)):
        verdict = Verdict(
            frame_id=f"{camera}/1-1",
            camera=camera,
            decision=Decision.UNDECIDED,
            reason=Reason.NO_EVIDENCE,
            captured_ns=10**9,
            decided_ns=10**9 + 60_000_000,
        )
        tell_verdict(verdict, gate_ms)
    for camera, in_time in (("slow", 1), ("fast", 0)):
        place = {"camera": camera, "recipe": "none"}
        assert sample("verdict_gate_ratio_bucket", le="1.0", **place) == in_time
        assert sample("verdict_gate_ratio_count", **place) == 1
        assert sample("verdict_seconds_sum", **place) == pytest.approx(0.06)
        told = {**place, "decision": "UNDECIDED", "reason": "no_evidence"}
        assert sample("verdicts_total", **told) == 1


def entry(number: int) -> FrameEntry:
    """A frame of camera left."""
    now = time.time_ns()
    return FrameEntry(
        frame_id=f"left/1-{number}",
        camera="left",
        captured_ns=now,
        deadline_ns=now + 10**10,
        image=good_part(number, SIZE),
    )


@pytest.fixture
def line(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> LineSettings:
    """Settings of a line of one camera."""
    bundle = shared_bundle(tmp_path_factory.getbasetemp())
    settings = load_line(write_line(tmp_path, bundle))
    settings.run_dir.mkdir(parents=True)
    return settings


@pytest.fixture
def stream(redis_url: str, namespace: str) -> Iterator[Stream]:
    """A stream of one's own."""
    with open_stream(redis_url, namespace) as opened:
        yield opened


def test_what_is_open_is_no_residual(
    line: LineSettings, stream: Stream, redis_url: str, namespace: str
) -> None:
    """Frames on their way are open and backlog; none of them is unaccounted for."""
    stream.ensure_group("left")
    for number in (1, 2, 3):
        stream.admit(entry(number))
    with closing(Pulse(redis_url, namespace)) as pulse:
        pulse.beat("inspect", "here-1")
        Soundings(stream, pulse, line).sound()
    assert sample("ledger_frames", camera="left", outcome="captured") == 3
    assert sample("frames_open", camera="left") == sample("frames_backlog", camera="left") == 3
    assert sample("ledger_residual_frames", camera="left") == 0
    assert sample("workers_alive") == sample("server_up") == 1


def test_the_sink_may_look(
    line: LineSettings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where each role has a user of its own, the sink's reads all that it tells."""
    access, namespace = tmp_path / "access", line.redis.namespace
    set_up(access, namespace, tls=False)
    with embedded_server(tmp_path / "guarded", users=access / USERS) as url:
        address = role_address(url, access, namespace, "sink")
        facts.gauge("server_up", 0)
        with (
            open_stream(address, namespace) as guarded,
            closing(Pulse(address, namespace)) as pulse,
        ):
            Soundings(guarded, pulse, line).sound()
    assert sample("server_up") == 1
    assert "soundings_refused" not in capfd.readouterr().err


def test_a_lost_server_is_told(
    line: LineSettings,
    stream: Stream,
    redis_url: str,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The looking goes on, and says that the server is away and nobody can beat."""

    def lost(camera: str) -> None:
        raise StreamLost(f"no server for {camera}")

    monkeypatch.setattr(stream, "ledger", lost)
    with closing(Pulse(redis_url, namespace)) as pulse:
        Soundings(stream, pulse, line).sound()
    assert sample("server_up") == sample("workers_alive") == 0
    assert sample("disk_free_bytes") > 0
