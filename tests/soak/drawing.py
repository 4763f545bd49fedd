"""A soak over its frames: memory, the server, descriptors, latency."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from tests.soak.fit import after_warm_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from tests.soak.running import Look

COLOURS = {"ingest": "#0072B2", "inspect": "#D55E00", "sink": "#009E73", "server": "#CC79A7"}
OTHER, FAINT = "#56B4E9", "#eeeeee"
MB = 1e6


def draw(path: Path, looks: Sequence[Look], summary: dict[str, Any]) -> None:
    """Write the picture."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    (memory, server), (opened, latency) = figure.subplots(2, 2, sharex=True)
    _draw_memory(memory, looks, summary)
    thousands = [look.frames / 1e3 for look in looks]
    server.plot(thousands, [look.redis_bytes / MB for look in looks], color=COLOURS["server"])
    server.set_title(
        f"Redis' own count: {summary['redis_bytes']['per_frame']:+.2f} bytes per frame"
    )
    server.set_ylabel("MB")
    for role in _roles(looks):
        counts = [look.descriptors.get(role, 0) for look in looks]
        opened.plot(thousands, counts, color=COLOURS.get(role, OTHER), label=role)
    opened.set_title("Open descriptors")
    opened.legend(frameon=False)
    timed = [look for look in looks if look.latency_ms]
    for at, name in enumerate(("p50", "p99")):
        values = [look.latency_ms[at] for look in timed if look.latency_ms]
        latency.plot([look.frames / 1e3 for look in timed], values, label=name, lw=0.8)
    latency.set_title("Exposure to verdict, flat out")
    latency.set_ylabel("ms")
    latency.set_yscale("log")
    latency.legend(frameon=False)
    warm = after_warm_up(looks)
    for axes in (memory, server, opened, latency):
        axes.axvspan(0, warm[0].frames / 1e3 if warm else 0, color=FAINT, lw=0, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=None if axes is latency else 0)
    for axes in (opened, latency):
        axes.set_xlabel("thousand frames; grey: warming up")
    figure.savefig(path, dpi=100)


def _draw_memory(axes: Axes, looks: Sequence[Look], summary: dict[str, Any]) -> None:
    thousands = [look.frames / 1e3 for look in looks]
    for role in _roles(looks):
        rss = [look.rss_bytes.get(role, 0) / MB for look in looks]
        slope = summary["rss_bytes"].get(role, {}).get("per_frame", float("nan"))
        label = f"{role} {slope:+.2f} bytes per frame"
        axes.plot(thousands, rss, color=COLOURS.get(role, OTHER), label=label)
    axes.set_title("Resident memory of each role")
    axes.set_ylabel("MB")
    axes.legend(frameon=False)


def _roles(looks: Sequence[Look]) -> list[str]:
    return sorted({role for look in looks for role in look.rss_bytes})
