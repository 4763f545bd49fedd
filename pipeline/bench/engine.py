"""The CPU engine against torch eager, EfficientAD-S and the machine's own matrix product.

All run on rows of the same size, in turns, in one process; figures are medians over the rounds.
Against torch a whole pass is start, every step of the deepest plan, and finish. Against EfficientAD
it is start, as many steps as frames take that a worker inspects, and finish with every look on the
way; once more without early exit, where frames still choose their depth; and once more with the
deepest plan forced. Rows without a precision in their name take the best one that the
bundle is calibrated for, and each side at its better batch size.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from engines.backend import open_backend
from engines.bundle import GRAPHS, open_bundle
from engines.quantised import offered_int8, read_record
from pipeline.bench.depth import Depth, measured_depth, refuse_tiles
from pipeline.bench.machine import machine_facts, matmul_peak
from pipeline.bench.operations import graph_operations
from pipeline.bench.report import Report, Result
from pipeline.bench.rivals import rivals_at
from pipeline.bench.turns import drawn_rows, in_turns, timed_pass
from pipeline.doctor.machine import cpu_flags

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from engines.bundle import Bundle
    from engines.contracts import Backend
    from pipeline.bench.rivals import Rival
    from pipeline.bench.turns import Medians

ROUNDS, BATCHES, PEAK_SIDE = 5, (1, 8), 1536
TORCH, PEAK = "torch eager f32", "measured matmul peak"
PUBLISHED = "efficientad_s"
RIVALS = {
    PUBLISHED: "EfficientAD-S, padded as published",
    "efficientad_s.unpadded": "EfficientAD-S without padding",
}
OURS, REFERENCE = "ours", "torch"
AS_RUN, NO_EXIT, FIXED = "", ".no_exit", ".fixed"  # how deep frames go, in names of results


class Timed(NamedTuple):
    """One batch size."""

    batch: int
    seconds: dict[str, Medians]  # by who ran
    operations: dict[str, int]  # of the batch, by graph or rival

    def rate(self, who: str) -> float:
        """Frames per second of whole passes."""
        return self.batch / self.seconds[who]["pass"]

    def rate_at(self, depth: Depth) -> float:
        """Our frames per second where frames go so deep and are looked at so often."""
        ours = self.seconds[OURS]
        called = depth.calls * ours["step"] + depth.finishes * ours["finish"]
        return self.batch / (ours["start"] + called)


class Trial(NamedTuple):
    """Everything measured at one precision."""

    precision: str
    peak: float  # operations per second
    depths: dict[str, Depth]  # AS_RUN, NO_EXIT and FIXED
    timed: tuple[Timed, ...]


def bench_engine(
    bundle_path: Path | str,
    data: Path | None = None,
    *,
    rounds: int = ROUNDS,
    batches: Sequence[int] = BATCHES,
    precisions: Sequence[str] | None = None,
    peak_side: int = PEAK_SIDE,
) -> Report:
    """OpenVINO at each precision against all of them; BadBundle for a bundle without steps."""
    bundle = refuse_tiles(open_bundle(bundle_path))
    with open_backend(bundle, "torch", "f32", capacity=max(batches)) as reference:
        trials = [
            _trial(
                bundle,
                reference,
                precision,
                data,
                rounds=rounds,
                batches=batches,
                peak_side=peak_side,
            )
            for precision in precisions or usable_precisions(bundle)
        ]
    headline = next(t for t in trials if t.precision == _offered(bundle, trials))
    results = [*_headlines(headline), *(result for t in trials for result in _details(t))]
    facts = {name: fact for trial in trials for name, fact in _facts(trial).items()}
    return Report(machine_facts() | facts | {"bundle": bundle.bundle_id}, tuple(results))


def usable_precisions(bundle: Bundle) -> tuple[str, ...]:
    """What this processor computes natively, for emulated bf16 is only slow; int8 where built."""
    built = ("int8",) if read_record(bundle) else ()
    return (*dict.fromkeys(("f32", native("bf16"))), *built)


def native(precision: str) -> str:
    """The precision of whatever is not ours: no other network here was quantised."""
    if precision == "f32":
        return "f32"
    return "bf16" if cpu_flags() & {"avx512_bf16", "amx_bf16"} else "f32"


def _offered(bundle: Bundle, trials: Sequence[Trial]) -> str:
    """The last precision that the bundle has thresholds for; the last of all where it has none.

    int8 only where a worker takes it by itself.
    """
    calibration = bundle.calibration()
    known = calibration.entries if calibration else {}
    other = "auto" if "openvino:bf16" in known else "f32"
    takes_int8 = offered_int8(bundle, other) is not None
    named = [t.precision for t in trials if t.precision != "int8" or takes_int8 or len(trials) == 1]
    return ([name for name in named if f"openvino:{name}" in known] or named)[-1]


def _trial(
    bundle: Bundle,
    reference: Backend,
    precision: str,
    data: Path | None,
    *,
    rounds: int,
    batches: Sequence[int],
    peak_side: int,
) -> Trial:
    """One precision against everything else."""
    beside = native(precision)
    peak = matmul_peak(beside, peak_side)
    rivals = rivals_at(bundle.manifest.image_size, beside, max(batches))
    with open_backend(bundle, "openvino", precision, capacity=max(batches)) as ours:
        runners = {OURS: ours, REFERENCE: reference}
        timed = [_timed(bundle, runners, rivals, batch, rounds) for batch in batches]
        peak = max(peak, matmul_peak(beside, peak_side))  # a machine may have been busy before
        depths = {
            AS_RUN: measured_depth(bundle, ours, data),
            NO_EXIT: measured_depth(bundle, ours, data, early_exit=False),
            FIXED: Depth.deepest(bundle, "deepest plan forced"),
        }
    return Trial(precision, peak, depths, tuple(timed))


def _timed(
    bundle: Bundle,
    backends: Mapping[str, Backend],
    rivals: Sequence[Rival],
    batch: int,
    rounds: int,
) -> Timed:
    rows = drawn_rows(bundle, batch)
    runs = {name: partial(timed_pass, backend, rows) for name, backend in backends.items()}
    runs |= {rival.name: partial(rival.timed_pass, rows.image) for rival in rivals}
    operations: dict[str, int] = {
        graph: graph_operations(bundle.path(f"{graph}.onnx"), batch) for graph in GRAPHS
    }
    operations |= {rival.name: rival.operations * batch for rival in rivals}
    return Timed(batch, in_turns(runs, rounds), operations)


def _headlines(trial: Trial) -> Iterator[Result]:
    """Each side at its better batch size."""
    ours = {
        tail: max(one.rate_at(depth) for one in trial.timed) for tail, depth in trial.depths.items()
    }
    theirs = {who: max(one.rate(who) for one in trial.timed) for who in trial.timed[0].seconds}
    for rival in RIVALS:
        for tail in _tails(rival, theirs):
            yield _versus(rival, tail, ours[tail], theirs[rival])
    whole = theirs[OURS]
    yield Result("engine.vs_torch", whole, "frames/s", TORCH, whole / theirs[REFERENCE])


def _tails(rival: str, known: Iterable[str]) -> tuple[str, ...]:
    """The depths that a rival is compared at: all of them for the published one."""
    if rival not in known:
        return ()
    return (AS_RUN, NO_EXIT, FIXED) if rival == PUBLISHED else (AS_RUN,)


def _details(trial: Trial) -> Iterator[Result]:
    """Depth and accuracy, then every batch size by itself."""
    deepest = trial.depths[FIXED].calls
    against = f"deepest plan, {deepest:.0f} calls"
    for way in (AS_RUN, NO_EXIT):
        depth, tail = trial.depths[way], f"{way}.{trial.precision}"
        calls = max(depth.calls, 1e-3)  # where no frame takes a step
        yield Result(f"engine.depth{tail}", calls, "calls/frame", against, deepest / calls)
        if (auroc := depth.image_auroc) is not None:
            name = f"engine.image_auroc{tail}"
            yield Result(name, auroc, "image AUROC", "chance", auroc / 0.5)
    for timed in trial.timed:
        yield from _against_torch(timed, trial.precision)
        yield from _against_rivals(timed, trial)
        yield from _against_peak(timed, trial)


def _against_torch(timed: Timed, precision: str) -> Iterator[Result]:
    theirs = timed.seconds[REFERENCE]
    for part, seconds in timed.seconds[OURS].items():
        name = f"engine.vs_torch.{part}.{precision}_b{timed.batch}"
        each_ms = 1e3 * seconds / timed.batch
        yield Result(name, each_ms, "ms/frame", TORCH, theirs[part] / seconds)


def _against_rivals(timed: Timed, trial: Trial) -> Iterator[Result]:
    for rival in RIVALS:
        for way in _tails(rival, timed.seconds):
            tail, ours = f"{way}.{trial.precision}_b{timed.batch}", timed.rate_at(trial.depths[way])
            yield _versus(rival, tail, ours, timed.rate(rival))


def _versus(rival: str, tail: str, ours: float, theirs: float) -> Result:
    return Result(f"engine.vs_{rival}{tail}", ours, "frames/s", RIVALS[rival], ours / theirs)


def _against_peak(timed: Timed, trial: Trial) -> Iterator[Result]:
    """What share of the measured peak each graph reaches, and the rivals beside them."""
    for part, operations in timed.operations.items():
        seconds = timed.seconds[OURS].get(part) or timed.seconds[part]["pass"]
        rate = operations / seconds
        name = f"engine.of_peak.{part}.{trial.precision}_b{timed.batch}"
        yield Result(name, rate / 1e9, "GFLOP/s", PEAK, rate / trial.peak)


def _facts(trial: Trial) -> dict[str, object]:
    """What a reader of the ratios must know, by the precision it belongs to."""
    timed = trial.timed[0]
    gflop = {
        f"gflop_per_frame_{part}": round(operations / timed.batch / 1e9, 2)
        for part, operations in timed.operations.items()
    }
    peak: dict[str, object] = {f"matmul_gflops_{trial.precision}": round(trial.peak / 1e9, 1)}
    if trial.precision != (beside := native(trial.precision)):
        peak[f"peak_and_rivals_beside_{trial.precision}"] = beside
    depths = {
        f"depth{way.replace('.', '_')}_{trial.precision}": (
            f"{depth.calls:.2f} calls, {depth.finishes:.2f} of finish: {depth.told}"
        )
        for way, depth in trial.depths.items()
    }
    return {**peak, **depths, **gflop}
