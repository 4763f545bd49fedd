"""What chaos showed, for people: a table of faults, the invariants, pictures over time."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from tests.faults.gates import MARGIN_MS
from tests.faults.injuries import INJURIES
from tests.faults.looks import Look
from tests.faults.rounds import ROLES, Round

PICTURES = ("recovery.png", "flow.png", "memory.png")


def write_report(folder: Path, rounds: list[Round], others: dict[str, Any], seed: int) -> Path:
    """``report.md``, ``report.json`` and the pictures; the path of the first."""
    told = totals(rounds)
    document = {"seed": seed, **told, **others, "rounds": [one.as_json() for one in rounds]}
    (folder / "report.json").write_text(json.dumps(document) + "\n")
    _draw(folder, rounds)
    path = folder / "report.md"
    path.write_text("\n".join(_lines(rounds, told, others, seed)) + "\n")
    return path


def totals(rounds: list[Round]) -> dict[str, Any]:
    """The sums that have to be right."""
    decisions: Counter[str] = Counter()
    for one in rounds:
        decisions.update(one.decisions)
    hurts = [hurt for one in rounds for hurt in one.hurts]
    return {
        "seconds": sum(one.seconds for one in rounds),
        "faults": len(hurts),
        "captured": sum(one.captured for one in rounds),
        "decisions": dict(decisions.most_common()),
        "residual": sum(one.residual for one in rounds),
        "duplicates": sum(one.duplicates for one in rounds),
        "wrongs": [f"round {one.number}: {wrong}" for one in rounds for wrong in one.wrongs],
        "slow_recoveries": sum(hurt.recovery_s > hurt.bound_s for hurt in hurts),
        "gates_checked": sum(one.gates.checked for one in rounds),
        "gates_excused": sum(one.gates.excused for one in rounds),
        "least_stamped_ms": _least(one.gates.least_stamped_ms for one in rounds),
        "least_seen_ms": _least(one.gates.least_seen_ms for one in rounds),
    }


def _lines(
    rounds: list[Round], told: dict[str, Any], others: dict[str, Any], seed: int
) -> list[str]:
    decisions = ", ".join(f"{count} {name}" for name, count in told["decisions"].items())
    return [
        "# Chaos",
        "",
        f"Seed {seed}: {told['faults']} faults over {told['captured']} frames in "
        f"{told['seconds'] / 60:.1f} minutes and {len(rounds)} rounds; residual "
        f"{told['residual']}, duplicates {told['duplicates']}, "
        f"{len(told['wrongs'])} broken invariants, {told['slow_recoveries']} slow recoveries.",
        "",
        f"Verdicts: {decisions}.",
        "",
        _gates(told),
        "",
        *_table(rounds),
        *_told_of(others),
        "## Broken invariants",
        "",
        *([f"* {wrong}" for wrong in told["wrongs"]] or ["None."]),
        "",
        *(f"![{name}]({name})\n" for name in PICTURES),
        f"Rerun one round: `python -m tests.faults.chaos --seed {seed} --round N`.",
    ]


def _gates(told: dict[str, Any]) -> str:
    checked, excused = told["gates_checked"], told["gates_excused"]
    return (
        f"Gates: {checked} parts were answered at least {told['least_stamped_ms']} ms before their "
        f"gate (at least {MARGIN_MS:.0f} are promised), and an onlooker had seen each verdict "
        f"{told['least_seen_ms']} ms before it. Excused are {excused} parts, whose gate came while "
        "the server was stopped, frozen or read-only, its clock was set, the network was cut, or "
        "no sink lived (then nobody can answer, or nobody could tell the gate), or which a dying "
        "camera's process alone had in its hand."
    )


def _kept(kind: str, least_ms: float | None) -> str:
    if INJURIES[kind].excuses == "gate":
        return "excused"
    return "" if least_ms is None else f"{least_ms:.0f}"


def _least(some: Iterable[float | None]) -> float | None:
    return min((one for one in some if one is not None), default=None)


def _table(rounds: list[Round]) -> list[str]:
    times: dict[str, list[float]] = defaultdict(list)
    bounds: dict[str, float] = {}
    gates: dict[str, list[float | None]] = defaultdict(list)
    for hurt in (hurt for one in rounds for hurt in one.hurts):
        times[hurt.kind].append(hurt.recovery_s)
        bounds[hurt.kind] = hurt.bound_s
        gates[hurt.kind].append(hurt.least_ms)
    lines = [
        "| fault | times | recovery s, median | longest | bound | over | least ms before gate |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, some in sorted(times.items()):
        over, least = sum(one > bounds[kind] for one in some), _least(gates[kind])
        told = _kept(kind, least)
        lines.append(
            f"| {kind} | {len(some)} | {median(some):.2f} | {max(some):.2f} | "
            f"{bounds[kind]:.0f} | {over} | {told} |"
        )
    return [*lines, ""]


def _told_of(others: dict[str, Any]) -> list[str]:
    if "isolation" not in others:
        return []
    one = others["isolation"]
    return [
        f"Faults of one camera: p99 of the other {one['p99_quiet_ms']:.1f} ms without "
        f"({one['frames_quiet']} frames) and {one['p99_hurt_ms']:.1f} ms with them "
        f"({one['frames_hurt']} frames), ratio {one['ratio']:.2f} of at most {one['ratio_max']}.",
        "",
    ]


def _draw(folder: Path, rounds: list[Round]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    _draw_recovery(axes, rounds)
    figure.savefig(folder / PICTURES[0], dpi=90)
    figure, axes = pyplot.subplots(figsize=(12, 4), layout="constrained")
    _draw_flow(axes, rounds)
    figure.savefig(folder / PICTURES[1], dpi=90)
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4), layout="constrained")
    _draw_memory(axes, rounds)
    figure.savefig(folder / PICTURES[2], dpi=90)
    pyplot.close("all")


def _draw_recovery(axes: Any, rounds: list[Round]) -> None:  # noqa: ANN401 - matplotlib's
    """Each recovery as a point, the longest kinds on top, beside the bound of its kind."""
    times: dict[str, list[float]] = defaultdict(list)
    bounds: dict[str, float] = {}
    for hurt in (hurt for one in rounds for hurt in one.hurts):
        times[hurt.kind].append(hurt.recovery_s)
        bounds[hurt.kind] = hurt.bound_s
    kinds = sorted(times, key=lambda kind: median(times[kind]))
    for at, kind in enumerate(kinds):
        axes.plot(times[kind], [at] * len(times[kind]), "C0o", ms=4, alpha=0.5)
        axes.plot(median(times[kind]), at, "k|", ms=14)
        axes.plot(bounds[kind], at, "C3|", ms=14, mew=2)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds until the line is well; black: median, red: the bound")


def _draw_flow(axes: Any, rounds: list[Round]) -> None:  # noqa: ANN401 - matplotlib's
    offset_s = 0.0
    for one in rounds:
        points = one.flow
        rates = [(b[0], (b[1] - a[1]) / (b[0] - a[0])) for a, b in itertools.pairwise(points)]
        axes.plot([offset_s + t for t, _ in rates], [rate for _, rate in rates], "C0", lw=0.8)
        for hurt in one.hurts:
            axes.axvline(offset_s + hurt.at_s, color="C3", alpha=0.2, lw=0.8)
        offset_s += one.seconds
    axes.set_xlabel("seconds; red: a fault")
    axes.set_ylabel("verdicts acted on per second")


def _draw_memory(axes: Any, rounds: list[Round]) -> None:  # noqa: ANN401 - matplotlib's
    """A line for each process; one that has just been started is small."""
    offset_s, named = 0.0, set[str]()
    for one in rounds:
        by_pid: dict[tuple[str, int], list[Look]] = defaultdict(list)
        for look in one.looks:
            by_pid[look.role, look.pid].append(look)
        for (role, _), looks in by_pid.items():
            at_s = [offset_s + look.at_s for look in looks]
            style = {"color": f"C{ROLES.index(role)}", "lw": 1, "marker": ".", "ms": 2}
            label = None if role in named else role
            named.add(role)
            axes[0].plot(at_s, [look.rss_mb for look in looks], label=label, **style)
            axes[1].plot(at_s, [look.descriptors for look in looks], **style)
        offset_s += one.seconds
    for axis, told in zip(axes, ("resident memory, MB", "descriptors"), strict=True):
        axis.set_xlabel("seconds")
        axis.set_ylabel(f"{told} of a process")
        axis.set_ylim(bottom=0)
    if named:
        axes[0].legend()
