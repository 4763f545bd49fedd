"""Engines built for this GPU, and whether they find what the reference finds."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from engines.backend import build_engine, engine_cache, open_backend
from engines.contracts import EngineFault, InspectionError, ParityError
from engines.gpu.engine_file import engine_folder
from engines.gpu.precision import EIGHT_BITS
from engines.parity import EPSILON, compare, open_reference
from engines.parity_set import has_frames
from pipeline.bench.report import Result
from pipeline.gpucheck.bundles import TENSORRT, TIMED, frames_of, tried
from pipeline.gpucheck.outcome import Asked, Found, NotHere

if TYPE_CHECKING:
    from engines.bundle import Bundle

EXACT = "f32"  # an engine in less may disagree: it is then not used, which is no fault


def build(precision: str, asked: Asked) -> Found:
    """TensorRT engines of every bundle in one precision, built ahead of time for this GPU."""
    built: list[str] = []
    refused: dict[str, str] = {}
    gated: dict[str, str] = {}  # eight bits are too few for them, which is no fault
    for name, bundle in tried(asked):
        if precision in EIGHT_BITS and not has_frames(bundle):
            continue  # nothing could say that eight bits are enough
        try:
            built.append(f"{name} as {_built(bundle, precision)}")
        except ParityError as error:
            gated[name] = str(error)
        except InspectionError as error:
            refused[name] = str(error)
    # What refuses every bundle is the machine; what refuses some of them is a fault.
    if not built:
        reasons = [*refused.values(), *gated.values()]
        raise NotHere(next(iter(reasons), "there is no bundle to build"))
    if refused:
        raise EngineFault(" · ".join(f"{name}: {why}" for name, why in refused.items()))
    return Found(", ".join(built), facts=gated)


def _built(bundle: Bundle, precision: str) -> str:
    """The key of a bundle's engines once they load: a library may build for GPUs unlike this.

    Engines that do not are not kept, so that nothing is tried on them.
    """
    key = build_engine(bundle, TENSORRT, precision)
    try:
        open_backend(bundle, TENSORRT, precision, 1).close()
    except InspectionError:
        shutil.rmtree(engine_folder(engine_cache(bundle), precision), ignore_errors=True)
        raise
    return key


def agree(backend: str, precision: str, asked: Asked) -> Found:
    """The parity gate over all frames and plans of every bundle, against f32 on the CPU."""
    results: list[Result] = []
    facts: dict[str, str] = {}
    failed = []
    for name, bundle in tried(asked, without=TIMED, engine=(backend, precision)):
        images, categories = frames_of(bundle)
        with (
            open_backend(bundle, backend, precision) as ours,
            open_reference(bundle) as reference,
        ):
            report = compare(bundle, ours, reference, images, categories)
        worst = max(plan.max_epsilons for plan in report.plans)
        told = f"{report.reference} on the CPU, {report.frames} frames, {report.flips} flips"
        results.append(
            Result(
                f"parity.{name}.{report.backend}",
                worst,
                f"of {EPSILON:.0%}",
                told,
                1 / max(worst, 1e-3),
            )
        )
        facts[name] = report.sentence()
        failed += [] if report.passed else [name]
    if failed and precision == EXACT:
        raise ParityError(" · ".join(facts[name] for name in failed))
    told = f"disagree on {', '.join(failed)}: not to be used there" if failed else "agree"
    return Found(f"{len(results)} bundles: engines {told}", tuple(results), facts)
