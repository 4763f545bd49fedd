"""A bundle's int8 graphs: calibrated, tried by the parity gate, and written beside the bundle.

How much is quantised is the gate's to say: choices of layers are tried, the fastest first, until
one agrees with single precision on the bundle's parity frames at every plan. finish holds no
network worth it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.backend import columns, start_inputs
from engines.backend_openvino import OpenVinoBackend
from engines.bundle import CALIBRATION
from engines.contracts import EngineFault, ParityError
from engines.dataset import evenly
from engines.nncf_layers import load_nncf, quantised_graph
from engines.parity import compare
from engines.parity_set import load_frames
from engines.quantised import (
    KEY,
    RECORD,
    Quantised,
    QuantisedGraph,
    openvino_version,
    quantised_folder,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engines.bundle import Bundle, GraphName
    from engines.contracts import UInt8
    from engines.nncf_layers import Choice
    from engines.openvino_graphs import Named
    from engines.parity import ParityReport
    from engines.quantised import Model

    Told = Callable[[float, str], None]  # share done in [0, 1], one line of facts
    GraphOf = Callable[[GraphName, Choice], tuple[Model, int]]

IMAGES = 48  # to calibrate on, at most; each gives step as many samples as its plan has calls
ROUNDS, BATCH = 5, 8  # of timing
Samples = dict["GraphName", list["Named"]]


@dataclass(frozen=True, slots=True)
class Rung:
    """What is quantised of each graph, and in words."""

    told: str
    choices: Mapping[GraphName, Choice]


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """The int8 graphs of one rung."""

    rung: Rung
    models: dict[GraphName, Model]
    layers: dict[GraphName, int]
    report: ParityReport


RUNGS = (
    Rung("networks of start and step", {"start": "convolutions", "step": "learned"}),
    Rung("network of step", {"step": "learned"}),
    Rung("convolutions of step", {"step": "convolutions"}),
    Rung("network of start", {"start": "convolutions"}),
)


def quantise(
    bundle: Bundle,
    images: Mapping[str, Sequence[UInt8]] | None = None,
    told: Told = lambda *_: None,
) -> Quantised:
    """Make a bundle's int8 graphs and put them beside it, in the place of older ones.

    images: good model inputs [H, W, 3] by category to calibrate on; None: the parity frames.
    Thresholds of older int8 graphs are removed, for they were not these'. Raises ParityError where
    no choice of layers agrees with single precision; nothing is then changed.
    """
    frames = load_frames(bundle)
    pairs = [(name, image) for name, some in (images or {}).items() for image in some]
    pairs = pairs or list(zip(frames.categories, frames.images, strict=True))
    with _opened(bundle, {}) as reference:
        samples = sampled(bundle, reference, pairs[evenly(len(pairs), IMAGES)])

        @functools.cache
        def graph_of(name: GraphName, choice: Choice) -> tuple[Model, int]:
            return quantised_graph(bundle.path(f"{name}.onnx"), choice, samples[name])

        made = agreeing(bundle, reference, graph_of, told)
    record = Quantised(
        bundle_id=bundle.bundle_id,
        openvino=openvino_version(),
        nncf=str(load_nncf().__version__),
        layers=made.rung.told,
        calibrated_on=f"{len(samples['start'])} {'good images' if images else 'parity frames'}",
        graphs={name: _described(name, model, made) for name, model in made.models.items()},
        row_ms=row_times(bundle, made.models),
    )
    _put(bundle, record, made.models)
    return record


def sampled(
    bundle: Bundle, backend: OpenVinoBackend, pairs: Sequence[tuple[str, UInt8]]
) -> Samples:
    """What start and step are given, one row each, on named images that walk the deepest plan."""
    depths = [len(plan.levels) for plan in bundle.manifest.plans]
    deepest = depths.index(max(depths))
    found: Samples = {"start": [], "step": []}
    for name, image in pairs:
        rows = start_inputs([image], [bundle.category_id(name)], [deepest])
        given = columns(rows)
        found["start"].append({n: given[n] for n in bundle.manifest.spec.graphs["start"].inputs})
        left = backend.start(rows, [0]).steps_left[0]
        while left > 0:
            found["step"].append(backend.given("step", 0))
            left = backend.step([0]).steps_left[0]
    return found


def row_times(bundle: Bundle, models: Mapping[GraphName, Model]) -> dict[str, float]:
    """ms of a row through start and one step in batches, by precision, measured in turns."""
    opened = {"int8": _opened(bundle, models), "f32": _opened(bundle, {})}
    with contextlib.suppress(EngineFault):  # not every processor has it
        opened["bf16"] = _opened(bundle, {}, "bf16")
    times: dict[str, list[float]] = {name: [] for name in opened}
    for _ in range(ROUNDS + 1):
        for name, backend in opened.items():
            begun = time.perf_counter()
            backend.rehearse("start", BATCH)
            backend.rehearse("step", BATCH)
            times[name].append(1e3 * (time.perf_counter() - begun) / BATCH)
    for backend in opened.values():
        backend.close()
    return {name: round(statistics.median(each[1:]), 3) for name, each in times.items()}


def agreeing(
    bundle: Bundle,
    reference: OpenVinoBackend,
    graph_of: GraphOf,
    told: Told,
    kind: str = "int8",
) -> Made:
    """The first rung that the gate lets through; ParityError names the errors of all of them.

    ``graph_of``: a graph with a choice of its layers in ``kind``, and how many those are.
    """
    frames, refused = load_frames(bundle), []
    for done, rung in enumerate(RUNGS):
        told(done / len(RUNGS), rung.told)
        parts = {name: graph_of(name, choice) for name, choice in rung.choices.items()}
        layers = {name: count for name, (_, count) in parts.items() if count}
        models = {name: parts[name][0] for name in layers}
        if len(models) < len(parts):
            continue  # a later rung says the same of what is left
        with _opened(bundle, models) as engine:
            report = compare(bundle, engine, reference, frames.images, frames.categories)
        if report.passed:
            told(1.0, f"{rung.told}: {report.sentence()}")
            return Made(rung, models, layers, report)
        epsilons = max(plan.max_epsilons for plan in report.plans)
        outside = sum(plan.flips_outside for plan in report.plans)
        refused.append(f"{rung.told}: {epsilons:.1f} of the allowed score error, {outside} flips")
    raise ParityError(
        f"{kind} is not offered, it disagrees with f32 ({'; '.join(refused) or 'no layers'})"
    )


def _opened(
    bundle: Bundle, models: Mapping[GraphName, Model], precision: str = ""
) -> OpenVinoBackend:
    pins = bundle.manifest.configuration.get("precision", {})
    return OpenVinoBackend(
        bundle.folder,
        bundle.manifest.spec,
        precision=precision or ("int8" if models else "f32"),
        pins=pins,
        quantised=models,
    )


def _described(name: GraphName, model: Model, made: Made) -> QuantisedGraph:
    files = {
        f"{name}.{kind}": hashlib.sha256(content).hexdigest()
        for kind, content in zip(("xml", "bin"), model, strict=True)
    }
    return QuantisedGraph(layers=made.layers[name], files=files)


def _put(bundle: Bundle, record: Quantised, models: Mapping[GraphName, Model]) -> None:
    """Write graphs and record as one folder, complete or not at all."""
    folder = quantised_folder(bundle)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".int8-", dir=folder.parent))
    scratch.chmod(0o755)  # read by whoever runs a worker
    for name, (xml, weights) in models.items():
        (scratch / f"{name}.xml").write_bytes(xml)
        (scratch / f"{name}.bin").write_bytes(weights)
    (scratch / RECORD).write_text(record.model_dump_json(indent=1) + "\n", "utf-8")
    _forget_thresholds(bundle)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def _forget_thresholds(bundle: Bundle) -> None:
    """Thresholds are of graphs: those of older int8 graphs judge none of these."""
    calibration = bundle.calibration()
    if calibration is not None and KEY in calibration.entries:
        kept = {key: entry for key, entry in calibration.entries.items() if key != KEY}
        calibration.model_copy(update={"entries": kept}).save(bundle.path(CALIBRATION))
