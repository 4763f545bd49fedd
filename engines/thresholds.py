"""Calibrate a bundle for every engine that this machine runs, and again whenever people ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.backend import open_backend
from engines.bundle import CALIBRATION, Bundle, open_bundle
from engines.calibration import Calibration
from engines.calibration_fit import Wanted, fit_calibration
from engines.contracts import BadConfig, BadData, InspectionError, ParityError
from engines.parity import compare
from engines.parity_set import choose_frames, has_frames, load_frames, save_frames

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from engines.contracts import Backend, UInt8
    from engines.parity import ParityReport
    from engines.recipe import Progress, TrainSettings

ENGINE = "openvino"  # others by ``assayline calibrate``
REFERENCE = "f32"  # what another precision has to agree with
INT8 = "int8"  # made from the finished bundle, so it comes last


def calibrate_everywhere(
    bundle: Bundle,
    held_out: Mapping[str, Sequence[UInt8]],
    settings: TrainSettings,
    progress: Progress,
    *,
    date: str = "",
) -> tuple[Bundle, list[str]]:
    """Thresholds for each engine here; then the parity frames, which lie near the thresholds.

    Where the data cannot carry the promise the bundle stays uncalibrated, and a sentence says so.
    ``date`` is written down beside each promise.
    """
    calibration = Calibration(bundle_id=bundle.bundle_id, entries={})
    own = [precision for precision in settings.precisions if precision != INT8]
    try:
        for precision in dict.fromkeys((REFERENCE, *own)):
            fresh = _calibrated(
                bundle, (ENGINE, precision), held_out, settings, progress, date=date
            )
            calibration = calibration.joined(fresh) if fresh else calibration
        bundle = _with_parity_frames(bundle, calibration, held_out, settings.seed)
    except BadData as refusal:
        return bundle, [f"not calibrated: {refusal}"]
    # The graphs are the same; only the parity frames have joined them.
    calibration = calibration.model_copy(update={"bundle_id": bundle.bundle_id})
    calibration.save(bundle.folder / CALIBRATION)
    disagreements = []
    if disagreement := _half_refused(bundle, calibration):
        kept = {key: e for key, e in calibration.entries.items() if not key.endswith(":bf16")}
        calibration = calibration.model_copy(update={"entries": kept})
        calibration.save(bundle.folder / CALIBRATION)
        disagreements.append(disagreement)
    if INT8 in settings.precisions:
        fresh, reason = _quantised(bundle, held_out, settings, progress, date=date)
        calibration = calibration.joined(fresh) if fresh else calibration
        calibration.save(bundle.folder / CALIBRATION)
        disagreements += [reason] if reason else []
    return bundle, [_promise(calibration), *_left_out(calibration, held_out), *disagreements]


def _quantised(
    bundle: Bundle,
    held_out: Mapping[str, Sequence[UInt8]],
    settings: TrainSettings,
    progress: Progress,
    *,
    date: str,
) -> tuple[Calibration | None, str]:
    """Thresholds of int8 graphs made from held-out parts, or why there are none."""
    from engines.quantisation import quantise

    try:
        quantise(bundle, held_out, lambda share, told: progress("int8", share, told))
    except (ParityError, BadConfig) as refusal:
        return None, str(refusal)
    return _calibrated(bundle, (ENGINE, INT8), held_out, settings, progress, date=date), ""


def _half_refused(bundle: Bundle, calibration: Calibration) -> str:
    """Why bf16 may not judge with this bundle, by its parity set; empty where it may."""
    if f"{ENGINE}:bf16" not in calibration.entries:
        return ""
    with open_backend(bundle, ENGINE, "bf16") as half:
        report = _agreement(bundle, half)
    return "" if report.passed else f"bf16 is not offered: {report.sentence()}"


def _agreement(bundle: Bundle, engine: Backend) -> ParityReport:
    """Whether an engine finds what single precision finds; BadBundle without a parity set."""
    frames = load_frames(bundle)
    with open_backend(bundle, ENGINE, REFERENCE) as reference:
        return compare(bundle, engine, reference, frames.images, frames.categories)


def calibrate_bundle(
    path: Path,
    data: Path,
    categories: Sequence[str] | None,
    *,
    backend: str,
    precision: str,
    wanted: Wanted,
    progress: Progress = lambda *_: None,
) -> Calibration:
    """Fit thresholds on the good images of ``data`` that the bundle was not trained on, and save.

    Raises BadData where too few are left for the promise, ParityError where a precision other than
    f32 disagrees with it; nothing is then saved.
    """
    bundle = open_bundle(path)
    images = unseen_good(bundle, data, categories)
    if precision == "auto" and not has_frames(bundle):
        precision = REFERENCE  # nothing could prove that another one agrees
    with open_backend(bundle, backend, precision) as engine:
        if not engine.key.endswith(f":{REFERENCE}"):
            _agreement(bundle, engine).require()
        fresh = fit_calibration(
            bundle,
            engine,
            images,
            wanted,
            progress=lambda done, total: progress("calibrate", done / total, f"{done} frames"),
        )
    older = bundle.calibration()
    (older.joined(fresh) if older else fresh).save(bundle.folder / CALIBRATION)
    return fresh


def unseen_good(
    bundle: Bundle, data: Path, categories: Sequence[str] | None
) -> dict[str, list[UInt8]]:
    """Good images, at the size of frames, that the bundle was not trained on, by category."""
    from engines.dataset import categories as find_categories
    from engines.dataset import good_items, load_model_input
    from engines.images import fingerprint

    seen = set(bundle.manifest.training.get("trained_on", ()))
    unseen: dict[str, list[UInt8]] = {}
    for name in categories or find_categories(data):
        loaded = (load_model_input(i, bundle.frame_size) for i in good_items(data, name))
        unseen[name] = [image for image in loaded if fingerprint(image) not in seen]
        if not unseen[name]:
            raise BadData(
                f"{name}: the bundle was trained on all these good images; "
                "a threshold needs others, so add new ones"
            )
    return unseen


def _with_parity_frames(
    bundle: Bundle,
    calibration: Calibration,
    held_out: Mapping[str, Sequence[UInt8]],
    seed: int,
) -> Bundle:
    from engines.export import reseal

    with open_backend(bundle, ENGINE, REFERENCE) as engine:
        judged = calibration.entries[engine.key]
        rows = {
            name: [tile for image in images for tile in bundle.tiling.cut(image)]
            for name, images in held_out.items()
            if name in judged
        }
        frames = choose_frames(bundle, engine, calibration, rows, seed)
    save_frames(frames, bundle.folder)
    return reseal(bundle)


def _calibrated(
    bundle: Bundle,
    engine_name: tuple[str, str],
    held_out: Mapping[str, Sequence[UInt8]],
    settings: TrainSettings,
    progress: Progress,
    *,
    date: str,
) -> Calibration | None:
    """Thresholds for one engine, or None where this machine does not run it."""
    try:
        engine = open_backend(bundle, *engine_name)
    except InspectionError:
        return None
    with engine:
        return fit_calibration(
            bundle,
            engine,
            held_out,
            Wanted(
                settings.max_false_reject,
                settings.confidence,
                settings.early_exit or None,
                date,
            ),
            partly=True,
            progress=lambda done, total: progress(
                "calibrate", done / total, f"{' '.join(engine_name)}: {done} frames"
            ),
        )


def _left_out(calibration: Calibration, held_out: Mapping[str, Sequence[UInt8]]) -> list[str]:
    """What was too few to calibrate; parts of these categories stay UNDECIDED."""
    calibrated = {name for entries in calibration.entries.values() for name in entries}
    return [
        f"not calibrated for {name}: {len(images)} held-out good images are too few"
        for name, images in held_out.items()
        if name not in calibrated
    ]


def _promise(calibration: Calibration) -> str:
    keys = ", ".join(calibration.entries)
    evidence = [entry.evidence for by in calibration.entries.values() for entry in by.values()]
    worst = max(evidence, key=lambda promise: promise.bound)
    return (
        f"calibrated for {keys}: false rejects at most {worst.bound:.1%} "
        f"with confidence {worst.confidence:.0%}"
    )
