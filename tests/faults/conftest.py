"""A bundle and a runner for tests that hurt real processes."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from engines.contracts import Verdict
from pipeline.config import LineSettings, load_line
from pipeline.pulse import Pulse
from pipeline.server import embedded_server
from pipeline.stream import Ledger, Stream, open_stream
from pipeline.supervisor import run_line
from tests.faults.servers import HurtServer
from tests.stub_line import mixed, shared_stub_bundle, write_numbers, write_stub_line
from tests.tiny_line import shared_bundle

PATIENCE_S = 60.0
Runner = Callable[[Path], AbstractContextManager["Running"]]


@dataclass
class Running:
    """A line that runs in this process's children."""

    settings: LineSettings
    stream: Stream
    pulse: Pulse
    stop: threading.Event
    ready: threading.Event
    ledgers: dict[str, Ledger]
    error: BaseException | None = None
    thread: threading.Thread | None = None

    def now(self) -> list[Ledger]:
        """The ledger of each camera as it is."""
        return [self.stream.ledger(name) for name in self.settings.camera_names]

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that beat."""
        return [int(name.rpartition("-")[2]) for name in self.pulse.living("inspect")]

    def wait_for(self, what: Callable[[], object]) -> None:
        """Return once ``what`` is true; fails where that never happens."""
        until = time.monotonic() + PATIENCE_S
        while not what():
            assert time.monotonic() < until, "what was waited for never happened"
            assert self.error is None, f"the line ended: {self.error}"
            time.sleep(0.01)

    def finish(self) -> list[Verdict]:
        """Wait for the line's own end; every verdict its sink has acted on."""
        assert self.thread is not None
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive(), "the line did not end"
        assert self.error is None, f"the line ended: {self.error}"
        record = self.settings.run_dir / "verdicts.jsonl"
        return [Verdict.model_validate_json(line) for line in record.read_bytes().splitlines()]

    def assert_all_answered_once(self, verdicts: list[Verdict], frames: int) -> None:
        """The three assertions that end every fault: answered, once, and nothing left."""
        counts = Counter(verdict.frame_id for verdict in verdicts)
        assert len(counts) == frames
        assert set(counts.values()) == {1}
        for name, ledger in self.ledgers.items():
            assert (ledger.residual, ledger.open, self.stream.backlog(name)) == (0, 0, 0)


@pytest.fixture
def grey_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that measures grey."""
    return shared_bundle(tmp_path_factory.getbasetemp())


class StubLine(Protocol):
    """Writes a line on the timed stub over parts of these numbers; its YAML."""

    def __call__(self, numbers: list[int] | None = None, **settings: Any) -> Path:  # noqa: ANN401
        """Settings as ``write_stub_line`` takes them."""
        ...


@pytest.fixture
def stub_line(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> StubLine:
    """A line on the timed stub, 50 frames a second without end unless it is told otherwise."""
    bundle = shared_stub_bundle(tmp_path_factory.getbasetemp())

    def write(numbers: list[int] | None = None, **settings: Any) -> Path:  # noqa: ANN401
        write_numbers(tmp_path / "parts", numbers or mixed(40))
        return write_stub_line(tmp_path, Path(settings.pop("bundle", bundle)), **settings)

    return write


@pytest.fixture
def hurt(tmp_path: Path) -> Iterator[HurtServer]:
    """A server of the test's own."""
    with HurtServer(tmp_path / "server") as server:
        yield server


@pytest.fixture
def running(tmp_path: Path) -> Runner:
    """Run the line of a YAML file in its own processes, on a server of its own."""

    @contextmanager
    def run(line: Path) -> Iterator[Running]:
        settings = load_line(line)
        with (
            embedded_server(tmp_path / "server") as url,
            open_stream(url, settings.redis.namespace) as stream,
        ):
            pulse, stop = Pulse(url, settings.redis.namespace), threading.Event()
            here = Running(settings, stream, pulse, stop, threading.Event(), {})
            here.thread = threading.Thread(target=_run, args=(here, line, url))
            here.thread.start()
            try:
                here.wait_for(here.ready.is_set)
                yield here
            finally:
                stop.set()
                here.thread.join(PATIENCE_S)
                pulse.close()

    return run


def _run(here: Running, line: Path, url: str) -> None:
    try:
        here.ledgers |= run_line(here.settings, here.stop, line, url, here.ready.set)
    except BaseException as error:
        here.error = error
