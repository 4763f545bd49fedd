"""Commands that run a line, or a part of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.terminal import out, stages, standing_role, stop_on_signals, write_json

Line = Annotated[Path, typer.Argument(help="The line's YAML, such as configs/line.demo.yaml.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the report here as JSON.")]


def demo(
    frames: Annotated[int, typer.Option(help="Frames in all, over both cameras.")] = 600,
    seed: Annotated[int, typer.Option(help="Seed of the simulated line.")] = 7,
    json_file: JsonFile = None,
    dashboard: Annotated[bool, typer.Option(help="Serve the page Line while it runs.")] = True,
) -> None:
    """Two simulated cameras, three parts, real verdicts: everything on this machine.

    Example: assayline demo --frames 600 --json runs/demo/report.json
    """
    from pipeline.demo import run_demo

    with stop_on_signals() as stop:
        report = run_demo(frames, seed, dashboard=dashboard, stop=stop, console=out)
    if json_file:
        write_json(json_file, report)
    raise typer.Exit(0 if report["residual"] == 0 else 1)


def run(line: Line, json_file: JsonFile = None) -> None:
    """Run all roles of a line, supervised, until its sources end or a signal comes.

    Example: assayline run configs/line.example.yaml
    """
    from pipeline.config import load_line
    from pipeline.report import print_report
    from pipeline.takes import run_watched

    settings = load_line(line)
    with stop_on_signals() as stop:
        report = run_watched(settings, line, lambda _: None, stop)
    write_json(settings.run_dir / "report.json", report)
    print_report(report, out, settings.line)
    if json_file:
        write_json(json_file, report)
    raise typer.Exit(0 if report["residual"] == 0 else 1)


def ingest(line: Line, camera: Annotated[str, typer.Option(help="Which camera.")]) -> None:
    """One camera's frames onto its stream.

    Example: assayline ingest configs/line.example.yaml --camera left
    """
    from pipeline.config import load_line
    from pipeline.ingest import run_ingest

    with standing_role() as stop:
        run_ingest(load_line(line), camera, stop)


def inspect(line: Line) -> None:
    """One inspection worker; start as many as the line needs.

    Example: assayline inspect configs/line.example.yaml
    """
    from pipeline.config import load_line
    from pipeline.worker import run_worker

    with standing_role() as stop:
        run_worker(load_line(line), stop)


def sink(line: Line) -> None:
    """Act on verdicts, and keep the gate.

    Example: assayline sink configs/line.example.yaml
    """
    from pipeline.config import load_line
    from pipeline.sink import run_sink

    with standing_role() as stop:
        run_sink(load_line(line), stop)


def dashboard(line: Line) -> None:
    """Serve the pages of a line: Line, Reject, Review, Threshold, Replay, Health.

    Example: assayline dashboard configs/line.example.yaml
    """
    from pipeline.config import load_line
    from pipeline.dashboard import run_dashboard

    with stop_on_signals() as stop:
        run_dashboard(load_line(line), stop)


def swap(
    line: Line,
    bundle: Annotated[Path | None, typer.Argument(help="The bundle to run from now on.")] = None,
    rollback: Annotated[bool, typer.Option(help="Run again what ran before.")] = False,
    forget: Annotated[bool, typer.Option(help="Keep nothing to roll back to in memory.")] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.0, help="Seconds for all workers to follow.")
    ] = 120.0,
    json_file: JsonFile = None,
) -> None:
    """Another bundle or calibration for a running line, without a stop; or back again.

    Example: assayline swap configs/line.example.yaml bundles/board-2
    """
    import os

    from engines.contracts import BadConfig
    from pipeline.config import load_line
    from pipeline.swap import ordering

    if (bundle is not None) + rollback + forget != 1:
        raise BadConfig("name either a bundle, or --rollback, or --forget")
    os.nice(19)  # what is compiled here must not be felt on the line
    settings = load_line(line)
    with stop_on_signals() as stop:
        if bundle is not None:
            done = ordering.swap(settings, bundle, timeout_s, stop)
        else:
            order = ordering.roll_back if rollback else ordering.forget
            done = order(settings, timeout_s, stop)
    out.print(f"line {settings.line} runs {done.chosen}")
    for worker, seconds in done.followed_s.items():
        out.print(f"  {worker} after {seconds:.1f} s")
    if not done.followed_s:
        out.print("  no worker runs now; it holds from the next start")
    if json_file:
        write_json(json_file, done.as_json())


def labels(
    line: Line,
    out_path: Annotated[Path, typer.Option("--out", help="Where the images go.")],
    json_file: JsonFile = None,
) -> None:
    """Parts that people reviewed, in the MVTec layout: false rejects as good images.

    Example: assayline labels configs/line.example.yaml --out runs/labelled
    """
    from dataclasses import asdict

    from pipeline.config import load_line
    from pipeline.review_export import export_labels

    done = export_labels(load_line(line), out_path)
    out.print(f"{done.good} false rejects as good images, {done.rejects} rejects to evaluate on")
    if done.unsure or done.gone:
        out.print(f"left out: {done.unsure} nobody is sure of, {done.gone} no longer kept")
    if json_file:
        write_json(json_file, asdict(done))


def simulate(
    folder: Annotated[Path, typer.Argument(help="Where the images go, in the MVTec layout.")],
    part: Annotated[list[str] | None, typer.Option(help="disc, board or fabric.")] = None,
    train_good: Annotated[int, typer.Option(min=0, help="Good parts to train on, each.")] = 200,
    test_good: Annotated[int, typer.Option(min=0, help="Good parts to test on, each.")] = 60,
    test_defect: Annotated[int, typer.Option(min=0, help="Defective parts, each.")] = 60,
    seed: Annotated[int, typer.Option(help="Seed of the simulator.")] = 1,
) -> None:
    """Write a data set of simulated parts with truth masks.

    Example: assayline simulate runs/parts --train-good 200
    """
    from pipeline.simulator import PARTS, write_dataset

    with stages() as progress:
        write_dataset(
            folder,
            tuple(part or PARTS),
            train_good,
            test_good,
            test_defect=test_defect,
            seed=seed,
            progress=lambda done, total: progress(
                "simulate", done / max(total, 1), f"{done} parts"
            ),
        )
    out.print(f"parts at {folder}")


def record(
    line: Line,
    recording: Annotated[Path, typer.Option("--out", help="The .mcap file to write.")],
    frames: Annotated[int | None, typer.Option(min=1, help="Stop after this many frames.")] = None,
) -> None:
    """Run a line and keep every frame and verdict in one MCAP file.

    Example: assayline record configs/line.demo.yaml --out runs/monday.mcap --frames 300
    """
    from pipeline.config import load_line
    from pipeline.takes import record_line

    with stop_on_signals() as stop:
        kept = record_line(load_line(line), line, recording, frames, stop)
    out.print(f"{kept.frames} frames and {kept.verdicts} verdicts in {recording}")
    if kept.missing:
        out.print(f"{kept.missing} frames were answered and not recorded: the disk was too slow")


def replay(
    recording: Annotated[Path, typer.Argument(help="A recording (.mcap).")],
    line: Annotated[Path, typer.Option(help="The line whose bundle, crops and worker are used.")],
    speed: Annotated[str, typer.Option(help="1, 2.5, ... times recorded speed, or max.")] = "max",
    against: Annotated[
        Path | None, typer.Option(help="Recording or JSONL whose verdicts are compared.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Feed recorded frames again, and compare the verdicts part by part.

    Example: assayline replay runs/monday.mcap --line configs/line.demo.yaml --against
    runs/monday.mcap
    """
    from engines.contracts import ExitCode
    from pipeline.config import load_line
    from pipeline.takes import print_comparison, replay_line

    with stop_on_signals() as stop:
        result = replay_line(load_line(line), recording, speed, against, stop)
    print_comparison(result, out)
    if json_file:
        write_json(json_file, result.as_json())
    if result.report["residual"]:
        raise typer.Exit(ExitCode.FAULT)
    raise typer.Exit(ExitCode.DIFFERENT if result.differences else ExitCode.OK)
