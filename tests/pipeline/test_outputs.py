"""Outputs: whole records, bounded folders, retries that end, and none that delays another."""

from __future__ import annotations

import json
import resource
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from engines.contracts import BadConfig, Decision, InspectionError, Verdict
from engines.images import read_image
from pipeline.config import MqttSettings, WebhookSettings
from pipeline.outputs.archive import Archive, stem_of
from pipeline.outputs.jsonl import Jsonl
from pipeline.outputs.lane import OutputLane
from pipeline.outputs.mqtt import Mqtt
from pipeline.outputs.output import StillOwed
from pipeline.outputs.reject import FileReject
from pipeline.outputs.webhook import Webhook
from pipeline.stream import VerdictDelivery
from pipeline.telemetry import facts
from tests.pipeline.outgoing import OPEN, delivery
from tests.tiny_line import bad_part


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: Callable[[], object]) -> None:
    """Return once it is true."""
    until = time.monotonic() + 20
    while not what():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.01)


# -- JSONL ---------------------------------------------------------------------------------------


def test_jsonl_writes_a_verdict_once_over_restarts(tmp_path: Path) -> None:
    """A frame id in the file is not written again, and a line torn by a crash is cut off."""
    path = tmp_path / "verdicts.jsonl"
    for numbers in ([1, 2, 2], [2, 3]):
        output = Jsonl(path, "each")
        for number in numbers:
            output.act(delivery(number), OPEN)
        output.close()
        with path.open("ab") as file:
            file.write(b'{"frame_id": "left/7-9", "torn')
    Jsonl(path).close()
    verdicts = [Verdict.model_validate_json(line) for line in path.read_bytes().splitlines()]
    assert [verdict.frame_id for verdict in verdicts] == ["left/7-1", "left/7-2", "left/7-3"]


@contextmanager
def disk_full_at(size: int) -> Iterator[None]:
    """No file of this process grows beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_jsonl_leaves_no_half_line_on_a_full_disk(tmp_path: Path) -> None:
    """What the disk took of a line is cut off, and the next one is whole."""
    path = tmp_path / "verdicts.jsonl"
    output = Jsonl(path)
    output.act(delivery(1), OPEN)
    with disk_full_at(path.stat().st_size + 100), pytest.raises(OSError, match="part of a line"):
        output.act(delivery(2), OPEN)
    output.act(delivery(3), OPEN)
    output.close()
    verdicts = [Verdict.model_validate_json(line) for line in path.read_bytes().splitlines()]
    assert [verdict.frame_id for verdict in verdicts] == ["left/7-1", "left/7-3"]


def test_jsonl_without_a_place_is_refused(tmp_path: Path) -> None:
    """A path below a file is BadConfig before any verdict is read."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BadConfig, match="cannot be written"):
        Jsonl(tmp_path / "file" / "verdicts.jsonl")


# -- archive -------------------------------------------------------------------------------------


def test_archive_keeps_pictures_of_what_did_not_pass(tmp_path: Path) -> None:
    """Picture, mask and record of a FAIL; nothing of a PASS; the same frame only once."""
    archive = Archive(tmp_path, 10_000_000)
    for seen in (delivery(1), delivery(1), delivery(2, Decision.PASS)):
        archive.act(seen, OPEN)
    names = sorted(path.name for path in (tmp_path / "left").iterdir())
    assert names == ["7-1.json", "7-1.mask.png", "7-1.picture.png"]
    assert read_image(tmp_path / "left" / "7-1.picture.png").shape == (64, 64, 3)
    assert json.loads((tmp_path / "left" / "7-1.json").read_text())["decision"] == "FAIL"


def test_archive_takes_the_original_of_what_did_not_pass(tmp_path: Path) -> None:
    """The full exposure lies beside a rejected part; one that is gone is counted, the rest kept."""
    asked: list[str] = []

    def fetch(frame_id: str) -> Any:  # noqa: ANN401 - an image or None
        asked.append(frame_id)
        return bad_part(5, (90, 120)) if frame_id == "left/7-1" else None

    missed = ("assayline_originals_missed_total", {"camera": "left", "reason": "gone"})
    before = facts.registry.get_sample_value(*missed) or 0.0
    archive = Archive(tmp_path, 10_000_000, {"left": fetch})
    for seen in (delivery(1), delivery(2, Decision.PASS), delivery(3)):
        archive.act(seen, OPEN)
    assert asked == ["left/7-1", "left/7-3"]
    original = read_image(tmp_path / "left" / "7-1.original.png")
    np.testing.assert_array_equal(original, bad_part(5, (90, 120)))
    assert (tmp_path / "left" / "7-3.json").exists()
    assert not (tmp_path / "left" / "7-3.original.png").exists()
    assert facts.registry.get_sample_value(*missed) == before + 1


def test_archive_is_bounded_and_forgets_the_oldest(tmp_path: Path) -> None:
    """Its bytes stay below the limit, over a restart too."""
    size = _size_of_one(tmp_path / "one")
    for first in (0, 6):
        archive = Archive(tmp_path / "many", 4 * size + size // 2)
        for number in range(first, first + 6):
            archive.act(delivery(number), OPEN)
    kept = sorted((tmp_path / "many").rglob("*.json"), key=lambda p: int(p.stem.split("-")[1]))
    assert sum(path.stat().st_size for path in (tmp_path / "many").rglob("*.*")) <= 4.5 * size
    assert 3 <= len(kept) <= 5
    assert kept[-1].stem == "7-11"


def _size_of_one(folder: Path) -> int:
    Archive(folder, 10_000_000).act(delivery(0), OPEN)
    return sum(path.stat().st_size for path in (folder / "left").iterdir())


@pytest.mark.parametrize("camera", ["..", "...", ".hidden", "a.b"])
def test_archive_names_are_no_paths(tmp_path: Path, camera: str) -> None:
    """Whatever a camera is called, its parts stay inside the folder."""
    stem = stem_of(delivery(1, camera=camera))
    assert (tmp_path / stem).resolve().parent.parent == tmp_path.resolve()
    assert "." not in stem
    with pytest.raises(ValueError, match="not a frame id"):
        stem_of(_renamed("../../etc/7-1"))


def _renamed(frame_id: str) -> VerdictDelivery:
    verdict = delivery(1).verdict.model_copy(update={"frame_id": frame_id})
    return VerdictDelivery("left", "7-1", verdict, b"", b"")


def test_a_full_disk_costs_a_part_its_pictures_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One event however often it happens; each verdict counts as done; no half part stays."""
    archive, done = Archive(tmp_path, 10_000_000), threading.Semaphore(0)
    with OutputLane(archive, 16) as lane:
        with disk_full_at(200):
            for number in range(3):
                lane.offer(delivery(number), done.release)
            assert all(done.acquire(timeout=10) for _ in range(3))
        lane.offer(delivery(9), done.release)
        assert done.acquire(timeout=10)
    events = [line for line in capsys.readouterr().err.splitlines() if "output_failed" in line]
    assert len(events) == 1
    assert "File too large" in events[0]
    assert {path.stem.split(".")[0] for path in (tmp_path / "left").iterdir()} == {"7-9"}


# -- reject signal -------------------------------------------------------------------------------


def test_the_reject_signal_never_goes_back(tmp_path: Path) -> None:
    """The sequence goes on over a restart; a repeated frame changes nothing."""
    path = tmp_path / "reject.json"
    signal = FileReject(path, heartbeat_ms=1)
    for number in (1, 2, 2):
        signal.signal(delivery(number, Decision.PASS).verdict)
    again = FileReject(path, heartbeat_ms=1)
    again.signal(delivery(2, Decision.PASS).verdict)
    again.signal(delivery(3).verdict)
    written = json.loads(path.read_text())
    assert (written["sequence"], written["frame_id"], written["decision"]) == (
        3,
        "left/7-3",
        "FAIL",
    )
    assert [known["sequence"] for known in written["recent"]] == [1, 2, 3]


@pytest.mark.parametrize("torn", [b"", b'{"sequence": 7, "rec', b'{"sequence": 7, "recent": [[]]}'])
def test_a_torn_reject_signal_goes_on_after_the_one_before(tmp_path: Path, torn: bytes) -> None:
    """What a power cut left of the file costs no more than the last writing's numbers."""
    path = tmp_path / "reject.json"
    signal = FileReject(path)
    for number in range(3):
        signal.signal(delivery(number, Decision.PASS).verdict)
    path.write_bytes(torn)
    FileReject(path).signal(delivery(2, Decision.PASS).verdict)
    assert json.loads(path.read_text())["sequence"] == 3


def test_signals_given_together_are_all_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share a writing, but no writing brings more than half of what a reader finds."""
    path, seen = tmp_path / "reject.json", []
    signal = FileReject(path)
    write = signal._write

    def looked_at() -> None:
        write()
        seen.append([known["sequence"] for known in json.loads(path.read_text())["recent"]])

    monkeypatch.setattr(signal, "_write", looked_at)
    signal.signal(*(delivery(number).verdict for number in range(80)))
    assert len(seen) == 3
    assert {number for numbers in seen for number in numbers} == set(range(1, 81))
    signal.signal(delivery(79).verdict)
    assert len(seen) == 3


def test_the_heartbeat_moves_without_verdicts(tmp_path: Path) -> None:
    """A sink that turns renews the stamp and nothing else."""
    path = tmp_path / "reject.json"
    signal = FileReject(path, heartbeat_ms=1)
    signal.beat()
    first = json.loads(path.read_text())
    time.sleep(0.002)
    signal.beat()
    second = json.loads(path.read_text())
    assert second["heartbeat_ns"] > first["heartbeat_ns"]
    assert {**second, "heartbeat_ns": 0} == {**first, "heartbeat_ns": 0}


# -- lanes ---------------------------------------------------------------------------------------


class Stuck:
    """An output that waits until it is told to go on."""

    name = "stuck"

    def __init__(self) -> None:
        self.free = threading.Event()
        self.acted: list[str] = []

    def act(self, seen: VerdictDelivery, closing: threading.Event) -> None:
        """Wait, then act."""
        while not self.free.wait(0.01):
            if closing.is_set():
                raise StillOwed("told to end")
        self.acted.append(seen.verdict.frame_id)

    def rest(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def test_a_stuck_output_delays_nobody_and_its_losses_are_done() -> None:
    """Offering never blocks; what does not fit the queue is done at once, the rest in order."""
    output, done = Stuck(), []
    with OutputLane(output, 4) as lane:
        for number in range(20):
            lane.offer(delivery(number), lambda n=number: done.append(n))
        assert 14 <= len(done) <= 16
        output.free.set()
        wait_for(lambda: len(done) == 20)
    assert output.acted == [
        f"left/7-{n}" for n in range(20) if n not in done[: 20 - len(output.acted)]
    ]


def test_who_gathers_acts_on_all_in_order() -> None:
    """Verdicts that wait for others are acted on in their order, and at once when all ends."""
    output, done = Stuck(), []
    output.free.set()
    with OutputLane(output, 64, gather_s=30.0) as lane:
        for number in range(20):
            lane.offer(delivery(number), lambda n=number: done.append(n))
    assert done == list(range(20))
    assert output.acted == [f"left/7-{n}" for n in range(20)]


class Slow(Stuck):
    """An output that takes a moment for each verdict."""

    def act(self, seen: VerdictDelivery, closing: threading.Event) -> None:  # noqa: ARG002 - Output
        """Act in a millisecond."""
        time.sleep(0.001)
        self.acted.append(seen.verdict.frame_id)


def test_a_backlog_is_not_lost_on_an_output_that_moves() -> None:
    """After a sink was away its verdicts come faster than any output acts; each is acted on."""
    output, done = Slow(), list[int]()
    with OutputLane(output, 4) as lane:
        for number in range(200):
            lane.offer(delivery(number), lambda n=number: done.append(n), from_backlog=True)
    assert output.acted == [f"left/7-{number}" for number in range(200)]
    assert done == list(range(200))


def test_an_output_that_stands_still_holds_up_a_backlog_once() -> None:
    """It is waited for as long as one place may take; what comes then does not fit, and is done."""
    output, done = Stuck(), list[int]()
    with OutputLane(output, 4) as lane:
        began = time.monotonic()
        for number in range(50):
            lane.offer(delivery(number), lambda n=number: done.append(n), from_backlog=True)
        assert time.monotonic() - began < 1.0
        assert 44 <= len(done) <= 46
        output.free.set()


def test_what_does_not_concern_an_output_is_done_at_once() -> None:
    """It is not even woken, however stuck it is."""
    output, done = Stuck(), []
    with OutputLane(output, 4, concerned=lambda verdict: verdict.decision != "PASS") as lane:
        for number in range(20):
            lane.offer(delivery(number, Decision.PASS), lambda n=number: done.append(n))
        assert done == list(range(20))
    assert not output.acted


def test_what_an_output_still_owes_is_not_done() -> None:
    """Told to end while stuck, it leaves its verdicts unacknowledged for the next start."""
    output, done = Stuck(), []
    with OutputLane(output, 4) as lane:
        for number in range(3):
            lane.offer(delivery(number), lambda n=number: done.append(n))
    assert (done, output.acted) == ([], [])


# -- MQTT ----------------------------------------------------------------------------------------


@contextmanager
def mosquitto(port: int) -> Iterator[None]:
    """A real broker on a port of this machine."""
    broker = subprocess.Popen(["mosquitto", "-p", str(port)], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: _listens(port))
        yield
    finally:
        broker.terminate()
        broker.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.skipif(shutil.which("mosquitto") is None, reason="mosquitto is not installed")
def test_mqtt_waits_for_its_broker() -> None:
    """Verdicts offered while the broker is away arrive, in order, when it is there."""
    port, arrived, done = free_port(), [], []
    output = Mqtt(MqttSettings(port=port, topic="plant"))
    with OutputLane(output, 8) as lane:
        for number in range(3):
            lane.offer(delivery(number), lambda n=number: done.append(n))
        with mosquitto(port):
            listener = Client(CallbackAPIVersion.VERSION2)
            listener.on_message = lambda _, __, message: arrived.append(message)
            listener.connect("127.0.0.1", port)
            listener.subscribe("plant/#", qos=1)
            listener.loop_start()
            lane.offer(delivery(3), lambda: done.append(3))
            wait_for(lambda: len(done) == 4)
            wait_for(lambda: any(b"7-3" in message.payload for message in arrived))
            listener.disconnect()
            listener.loop_stop()
    assert done == [0, 1, 2, 3]
    assert {message.topic for message in arrived} == {"plant/left"}


def test_mqtt_without_a_broker_ends_when_told() -> None:
    """What it could not publish is still owed."""
    closing = threading.Event()
    closing.set()
    output = Mqtt(MqttSettings(port=free_port()))
    with pytest.raises(StillOwed):
        output.act(delivery(1), closing)
    output.close()


# -- webhook -------------------------------------------------------------------------------------


@contextmanager
def receiver(statuses: list[int]) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """A real HTTP server that answers with these statuses, then 200; what it was sent."""
    sent: list[tuple[str, bytes]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            sent.append((self.headers["idempotency-key"], body))
            self.send_response(statuses.pop(0) if statuses else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/quality", sent
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_webhook_tries_again_what_may_pass() -> None:
    """503 and 429 are tried again with the same key; only the chosen decisions are posted."""
    with receiver([503, 429]) as (url, sent):
        output = Webhook(WebhookSettings(url=url))
        output.act(delivery(1), OPEN)
        output.act(delivery(2, Decision.PASS), OPEN)
        output.close()
    assert [key for key, _ in sent] == ["left/7-1"] * 3
    assert Verdict.model_validate_json(sent[-1][1]).decision is Decision.FAIL


def test_a_webhook_takes_no_for_an_answer() -> None:
    """400 is not tried again, and the sentence does not show the URL."""
    with receiver([400]) as (url, sent):
        output = Webhook(WebhookSettings(url=f"{url}?token=secret"))
        with pytest.raises(InspectionError, match="status 400") as caught:
            output.act(delivery(1), OPEN)
        output.close()
    assert len(sent) == 1
    assert "secret" not in str(caught.value)


def test_a_webhook_that_stays_away_is_given_up() -> None:
    """Its attempts are bounded; told to end, it still owes the verdict."""
    output = Webhook(WebhookSettings(url=f"http://127.0.0.1:{free_port()}/", attempts=2))
    with pytest.raises(InspectionError, match="ConnectError"):
        output.act(delivery(1), OPEN)
    closing = threading.Event()
    closing.set()
    with pytest.raises(StillOwed):
        output.act(delivery(1), closing)
    output.close()
