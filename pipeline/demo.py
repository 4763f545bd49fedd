"""``assayline demo``: a simulated line on this machine, judged against the truth it was drawn from.

The line is the committed ``configs/line.demo.yaml``; nothing is special about it but its cameras.
Truth never travels with a frame: it is drawn again afterwards from the seed and the part's number.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.live import Live
from rich.table import Table

from engines.contracts import BadConfig
from pipeline.config import load_line
from pipeline.report import Tally, print_report
from pipeline.takes import run_watched
from pipeline.truth import Judged, confusion_table, score_against_truth, write_contact_sheet

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.stream import VerdictDelivery

CONFIGS = Path(__file__).parents[1] / "configs"
FOLDER = Path("runs/demo")


def run_demo(
    frames: int,
    seed: int,
    *,
    dashboard: bool,
    stop: threading.Event,
    console: Console,
    folder: Path = FOLDER,
) -> dict[str, Any]:
    """Run the demo line to its end and return its public report."""
    line = write_line(frames, seed, dashboard=dashboard, folder=folder)
    settings = load_line(line)
    shown, judged = Tally(), Judged(settings)

    def see(delivery: VerdictDelivery) -> None:
        shown.add(delivery.verdict)
        judged.add(delivery)

    with _LiveTable(shown, frames, console):
        report = run_watched(settings, line, see, stop)
    report |= score_against_truth(judged)
    sheet = write_contact_sheet(judged, folder / "rejects.png")
    print_report(report, console, "Demo: two simulated cameras, three parts")
    console.print(confusion_table(report["confusion"]))
    console.print(f"rejected parts with their masks: {sheet}")
    return report


def write_line(frames: int, seed: int, *, dashboard: bool, folder: Path) -> Path:
    """The demo line's YAML with this run's frames and seed, in the run's folder."""
    content = yaml.safe_load((CONFIGS / "line.demo.yaml").read_text("utf-8"))
    cameras = content["cameras"]
    if frames < len(cameras):
        raise BadConfig(f"the demo has {len(cameras)} cameras; give at least {len(cameras)} frames")
    for number, camera in enumerate(cameras):
        share = frames // len(cameras) + (number < frames % len(cameras))
        camera["source"] |= {"frames": share, "seed": seed + number}
    content["bundle"] = str((CONFIGS / content["bundle"]).resolve())
    content["run_dir"] = str(folder.resolve() / "line")
    content.setdefault("dashboard", {})["enabled"] = dashboard
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "line.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


class _LiveTable:
    """Parts per minute, decisions, latency and depth, redrawn twice a second."""

    def __init__(self, tally: Tally, frames: int, console: Console) -> None:
        self._tally, self._frames, self._begun = tally, frames, time.monotonic()
        self._live = Live(get_renderable=self._table, console=console, refresh_per_second=2)

    def __enter__(self) -> None:
        self._live.__enter__()

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    def _table(self) -> Table:
        tally, decisions = self._tally, self._tally.decisions
        minutes = (time.monotonic() - self._begun) / 60
        table = Table(title="Assayline demo", min_width=64)
        for heading in ("verdicts", "parts/min", "PASS", "FAIL", "UNDECIDED", "p50 ms", "p99 ms"):
            table.add_column(heading, justify="right")
        table.add_column("mean steps", justify="right")
        latest = Tally(latency_ms=tally.latency_ms[-200:])
        steps = tally.steps[-200:]
        table.add_row(
            f"{tally.count}/{self._frames}",
            f"{tally.count / minutes:.0f}" if minutes > 0 else "-",
            *(str(decisions[name]) for name in ("PASS", "FAIL", "UNDECIDED")),
            *(f"{latest.percentile(share) or 0:.0f}" for share in (0.5, 0.99)),
            f"{sum(steps) / len(steps):.1f}" if steps else "-",
        )
        return table
