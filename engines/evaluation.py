"""How good a bundle is on a test folder: the field's metrics, depth used, and decisions.

Everything is measured at the size of the bundle's frames (the model's input, or that of all tiles
together), also where images of a folder differ in size: maps are stretched to it, truth masks are
shrunk to it. Test images only measure; thresholds, scales and normalisation come from the bundle.
Images are ranked by surprise. Where a category was never calibrated on the backend there is none:
then one plan, the deepest, is forced on its images and the raw score ranks. A folder with a
``truth.csv`` (file, severity), as the simulator writes it, is also measured per severity quartile.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from engines.contracts import ADAPTIVE, BadData, Decision, Finding
from engines.dataset import (
    Item,
    load_model_input,
    load_truth,
    mixed_sizes,
    named_categories,
    test_items,
)
from engines.inspector import Inspector, Part, inspect_all
from engines.mosaic import Mosaic
from engines.plots import artist
from engines.scheduler import Policy, Scheduler
from engines.substitutions import told_of
from engines.tables import Measured, Number, Table, markdown_of, table_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from engines.bundle import Bundle
    from engines.calibration import Calibration
    from engines.contracts import Backend
    from engines.masks import Mask

__all__ = ["Evaluation", "Score", "evaluate", "evaluate_on", "to_markdown"]

TRUTH = "truth.csv"
SLOTS = 32
Test = list[tuple["Item", "Mask | None", float | None]]  # image, truth mask, severity


class Score(BaseModel):
    """What one test image got, to compare with the same image through the line."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str  # below the data folder
    category: str
    defect: str
    anomaly_score: Number
    surprise: Number
    decision: Decision | None  # None without a calibration
    plan: int
    level: int
    steps: int


class Evaluation(Table):
    """The result of ``evaluate``; its JSON keys are public."""

    bundle_id: str
    method: str
    backend: str
    calibration_id: str | None
    ranked_by: str  # "surprise" or "anomaly_score"
    note: str  # why, where it is not surprise; and which images were stretched
    substitutions: tuple[str, ...] = ()  # where the bundle is not its paper's method
    plans: dict[int, Table]  # the same with one plan forced on every image, or (-1) none on any
    scores: list[Score]


def to_markdown(evaluation: Evaluation) -> str:
    """The table for a README, and under it what it is of and the note where there is one."""
    parts = [markdown_of(evaluation), origin(evaluation), evaluation.note]
    return "\n\n".join(filter(None, parts))


def origin(evaluation: Evaluation) -> str:
    """What was measured, in one sentence that goes wherever its numbers go."""
    return told_of(
        evaluation.method, evaluation.bundle_id, evaluation.backend, evaluation.substitutions
    )


def evaluate(
    bundle: Bundle,
    data_root: Path | str,
    categories: Sequence[str] | None = None,
    *,
    backend: str = "openvino",
    precision: str = "auto",
    plans: Sequence[int] | None = None,
    plot: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Open the bundle on a backend and measure it on a folder in the MVTec layout.

    ``plans`` are measured each by itself as well, -1 for those that the graph chooses, calibrated
    or not; ``plot`` is a folder for sheets and charts.
    """
    from engines.backend import open_backend

    slots = max(SLOTS, bundle.tiling.count)
    with open_backend(bundle, backend, precision, slots) as opened:
        return evaluate_on(
            bundle,
            opened,
            data_root,
            categories,
            plans=plans,
            plot=plot,
            progress=progress,
        )


def evaluate_on(
    bundle: Bundle,
    backend: Backend,
    data_root: Path | str,
    categories: Sequence[str] | None = None,
    *,
    plans: Sequence[int] | None = None,
    plot: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """As ``evaluate``, on a backend that is open already."""
    known_as = (bundle.manifest.method, bundle.bundle_id, backend.key)
    substitutions = bundle.manifest.substitutions
    draw = artist(plot, told_of(*known_as, substitutions)) if plot else None
    size = bundle.frame_size
    tests = _tests(data_root, categories, size)
    calibrations = {name: _usable_calibration(bundle, backend, name) for name in tests}
    deepest = _deepest(bundle)
    tick = _ticker((1 + len(plans or [])) * sum(map(len, tests.values())), progress)

    def measure(policy: int, uncalibrated: int) -> dict[str, list[Measured]]:
        return {
            name: _measure(
                bundle,
                backend,
                test,
                calibration=calibrations[name],
                plan=uncalibrated if calibrations[name] is None else policy,
                tick=tick,
            )
            for name, test in tests.items()
        }

    measured = measure(ADAPTIVE, deepest)
    table = table_of(measured, size)
    if draw:
        for name, found in measured.items():
            draw(name, found, table.categories[name], size)
    bare = [name for name, calibration in calibrations.items() if calibration is None]
    known = next((c for c in calibrations.values() if c is not None), None)
    return Evaluation(
        bundle_id=bundle.bundle_id,
        method=bundle.manifest.method,
        backend=backend.key,
        calibration_id=known.calibration_id if known else None,
        ranked_by="surprise" if known else "anomaly_score",
        note=" ".join(filter(None, [_note(bare, backend.key, deepest), *_stretched(tests, size)])),
        substitutions=substitutions,
        categories=table.categories,
        mean=table.mean,
        plans={plan: table_of(measure(plan, plan), size) for plan in plans or []},
        scores=[_score(one, data_root) for found in measured.values() for one in found],
    )


def _tests(
    data_root: Path | str, categories: Sequence[str] | None, size: tuple[int, int]
) -> dict[str, Test]:
    severities = _severities(Path(data_root))
    return {
        name: [
            (item, load_truth(item, size), severities.get(_below(item, data_root)))
            for item in test_items(data_root, name)
        ]
        for name in named_categories(data_root, categories)
    }


def _note(bare: Sequence[str], backend_key: str, plan: int) -> str:
    """Why these categories are ranked by their raw score; empty where none is."""
    if not bare:
        return ""
    return f"not calibrated for {backend_key}: {', '.join(bare)}; there plan {plan} is forced."


def _stretched(tests: Mapping[str, Test], size: tuple[int, int]) -> list[str]:
    """A sentence for each category whose images differ in size."""
    return [told for test in tests.values() if (told := mixed_sizes([i for i, _, _ in test], size))]


def _severities(data_root: Path) -> dict[str, float]:
    """Severity of each simulated image by its path below the data folder; empty without truth."""
    if not (data_root / TRUTH).is_file():
        return {}
    try:
        with (data_root / TRUTH).open(newline="") as file:
            return {row["file"]: float(row["severity"]) for row in csv.DictReader(file)}
    except (KeyError, ValueError, TypeError) as error:
        raise BadData(
            f"{data_root / TRUTH} lacks the columns file and severity ({error}); write it again"
        ) from error


def _below(item: Item, data_root: Path | str) -> str:
    return item.path.relative_to(data_root).as_posix()


def _measure(
    bundle: Bundle,
    backend: Backend,
    test: Test,
    *,
    calibration: Calibration | None,
    plan: int,
    tick: Callable[[], None],
) -> list[Measured]:
    """Inspect one category's items, in the order of the folder."""
    findings: dict[int, Finding] = {}
    exits = calibration.exit_rule(backend.key) if calibration else None
    mosaic = Mosaic.of(bundle, calibration, backend.key)
    inspector = Inspector(backend, scheduler=Scheduler(Policy(), exits=exits), mosaic=mosaic)
    for finding in inspect_all(inspector, _parts(bundle, [item for item, _, _ in test], plan)):
        findings[int(finding.frame_id)] = finding
        tick()
    return [
        Measured(
            item,
            truth,
            findings[i],
            calibration.judge(findings[i], backend.key) if calibration else None,
            severity,
        )
        for i, (item, truth, severity) in enumerate(test)
    ]


def _parts(bundle: Bundle, items: Sequence[Item], plan: int) -> Iterator[Part]:
    """Parts read from disk one by one, as slots become free."""
    for i, item in enumerate(items):
        yield Part(
            frame_id=str(i),
            category_id=bundle.category_id(item.category),
            category=bundle.category_name(item.category),
            image=load_model_input(item, bundle.frame_size),
            plan=plan,
        )


def _usable_calibration(bundle: Bundle, backend: Backend, category: str) -> Calibration | None:
    """The bundle's calibration where it is this bundle's and covers the category."""
    calibration = bundle.calibration()
    if calibration is None or calibration.bundle_id != bundle.bundle_id:
        return None
    entry = calibration.entry(backend.key, bundle.category_name(category))
    return calibration if entry else None


def _deepest(bundle: Bundle) -> int:
    """The last of the plans with most steps, which is the published one."""
    plans = bundle.manifest.plans
    return max(range(len(plans)), key=lambda plan: (len(plans[plan].levels), plan))


def _ticker(total: int, progress: Callable[[int, int], None] | None) -> Callable[[], None]:
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    return tick


def _score(one: Measured, data_root: Path | str) -> Score:
    finding, judgement = one.finding, one.judgement
    return Score(
        path=_below(one.item, data_root),
        category=one.item.category,
        defect=one.item.defect,
        anomaly_score=finding.anomaly_score if math.isfinite(finding.anomaly_score) else None,
        surprise=judgement.surprise if judgement else None,
        decision=judgement.decision if judgement else None,
        plan=finding.plan,
        level=finding.level,
        steps=finding.steps,
    )
