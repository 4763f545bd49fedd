"""All roles of a line on one machine: server, sink, workers, cameras, page.

The sink and the workers come first and the cameras last, so that no frame waits for an engine to
load; they stop in the order of a frame's journey, so that every frame is answered and every verdict
acted on. A second signal ends this process, and the kernel ends the others with it.
"""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from engines.contracts import EngineFault, StreamLost
from pipeline.access.credentials import USERS
from pipeline.config import LineSettings
from pipeline.crew import Crew
from pipeline.journal import Journal, journal_path
from pipeline.pulse import Pulse
from pipeline.server import embedded_server
from pipeline.shared import remove_shared
from pipeline.stream import Ledger, open_stream
from pipeline.telemetry import facts, serve_metrics

LOOK_S = 0.1
LISTEN_LOOKS = 5
BEATING = ("inspect", "sink", "ingest")  # roles that hang when they fall silent
READY_LOOKS = 1800  # three minutes for engines to load
DRAIN_S = {"ingest": 20.0, "inspect": 20.0, "sink": 20.0, "dashboard": 5.0}  # in this order


def run_line(
    settings: LineSettings,
    stop: threading.Event,
    line: Path,
    server: Server | str | None = None,
    on_ready: Callable[[], None] | None = None,
) -> dict[str, Ledger]:
    """Run a line until its sources end or ``stop`` is set; the ledger of each camera.

    ``server`` comes from ``line_server``, or is the address of one that the caller keeps; without
    it the line has its own.
    Raises GivenUp where a process cannot be kept alive, StreamLost where there is no server.
    Call it from a thread that lives as long as the line.
    """
    metrics = settings.metrics
    with ExitStack() as stack:
        if settings.dashboard.enabled:  # it would only be missed later
            settings.dashboard.secret("dashboard")
        token = metrics.secret("metrics") if metrics.port else ""
        stack.enter_context(serve_metrics("run", metrics.host, metrics.port_of("run"), token))
        if not isinstance(server, Server):
            server = stack.enter_context(line_server(settings, server))
        url = settings.redis.address("operator", server.url)
        stream = stack.enter_context(open_stream(url, settings.redis.namespace))
        pulse = stack.enter_context(closing(Pulse(url, settings.redis.namespace)))
        stack.callback(remove_shared, settings.run_dir)
        crew = Crew(line.resolve(), settings.run_dir, _environment(settings, server))
        stack.callback(crew.kill)
        try:
            _keep_running(settings, crew, server, pulse, stop=stop, on_ready=on_ready)
        finally:  # given up or not: every frame is answered and every verdict acted on
            for role, patience_s in DRAIN_S.items():
                crew.end(role, patience_s)
        return {name: stream.ledger(name) for name in settings.camera_names}


def _keep_running(
    settings: LineSettings,
    crew: Crew,
    server: Server,
    pulse: Pulse,
    *,
    stop: threading.Event,
    on_ready: Callable[[], None] | None,
) -> None:
    _start_inspection(settings, crew)
    if _wait_until_ready(crew, pulse, stop) and on_ready:
        on_ready()
    _start_cameras(settings, crew, stop)
    for look in itertools.count():
        if stop.wait(LOOK_S) or crew.all_finished("ingest"):
            return
        crew.tend()
        if look % LISTEN_LOOKS == 0:
            _listen(crew, server, pulse)


def _pids(pulse: Pulse, role: str) -> list[int]:
    """Process ids of a role on this machine that beat; their names are <host>-<pid>."""
    places = (name.rpartition("-") for name in pulse.living(role))
    return [int(pid) for host, _, pid in places if host == socket.gethostname()]


def _listen(crew: Crew, server: Server, pulse: Pulse) -> None:
    """Kill what hangs; start a server of our own again when it is gone."""
    try:
        living = {role: _pids(pulse, role) for role in BEATING}
    except StreamLost as error:
        facts.event("server_lost", level="error", sentence=str(error))
        crew.forgive()
        server.restart()
        return
    if not any(living.values()):  # not all of them hang: the server is full or takes no writes
        crew.forgive()
        return
    for role, pids in living.items():
        crew.hear(role, pids)


class Server:
    """Where the streams live; one that is ours is started again when it dies."""

    def __init__(self, url: str, folder: Path | None = None, users: Path | None = None) -> None:
        self.url = url  # without a password
        self._folder = folder
        self._users = users
        self._running = ExitStack()

    @property
    def is_own(self) -> bool:
        """Whether this line has started it, and starts it again."""
        return self._folder is not None

    def __enter__(self) -> Server:
        if self._folder is not None:
            self.url = self._start(self._folder)
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def restart(self) -> None:
        """Start a server of our own again; somebody else's is waited for."""
        if self._folder is not None:
            self._running.close()
            self._start(self._folder)

    def _start(self, folder: Path) -> str:
        return self._running.enter_context(embedded_server(folder, users=self._users))


@contextmanager
def line_server(settings: LineSettings, redis_url: str | None = None) -> Iterator[Server]:
    """The server of a line: one that others keep, or the embedded one, whose ledgers begin at 0."""
    if redis_url is not None or not settings.redis.embedded:
        yield Server(redis_url or settings.redis.url)
        return
    access = settings.redis.access
    with Server("", settings.run_dir / "redis", access / USERS if access else None) as server:
        for name in settings.camera_names:
            with Journal(journal_path(settings.run_dir, name)) as journal:
                journal.count_anew()
        yield server


def _environment(settings: LineSettings, server: Server) -> dict[str, str]:
    """What the processes are told beside the YAML; never a password."""
    told = {"ASSAYLINE_RUN_DIR": str(settings.run_dir)}
    if settings.recording is not None:
        told["ASSAYLINE_RECORDING"] = str(settings.recording.absolute())
    if settings.redis.embedded:
        told["ASSAYLINE_REDIS__URL"] = server.url
    if server.is_own:
        told["ASSAYLINE_REDIS__OWNED"] = "true"
    return told


def _start_inspection(settings: LineSettings, crew: Crew) -> None:
    crew.start("sink", "sink")
    for index in range(settings.worker.processes):
        crew.start("inspect", f"inspect {index}", ASSAYLINE_WORKER__INDEX=str(index))
    if settings.dashboard.enabled:
        crew.start("dashboard", "dashboard")


def _wait_until_ready(crew: Crew, pulse: Pulse, stop: threading.Event) -> bool:
    """Return when the sink and every worker beat; False where ``stop`` came first."""
    for _ in range(READY_LOOKS):
        for role in ("inspect", "sink"):
            crew.hear(role, _pids(pulse, role))
        if crew.all_heard("inspect") and crew.all_heard("sink"):
            return True
        if stop.wait(LOOK_S):
            return False
        crew.tend()
    raise EngineFault(f"no inspection began within {READY_LOOKS * LOOK_S:.0f} s; see its log")


def _start_cameras(settings: LineSettings, crew: Crew, stop: threading.Event) -> None:
    if not stop.is_set():
        for camera in settings.cameras:
            label, name = f"ingest {camera.name}", camera.name
            crew.start("ingest", label, "--camera", name, spare_s=camera.source.silence_s)
