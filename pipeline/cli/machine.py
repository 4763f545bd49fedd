"""Commands about this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.terminal import out, write_json

NAMESPACE = "assayline"  # what a line has unless it says otherwise


def doctor(
    line: Annotated[Path | None, typer.Argument(help="A line's YAML to check as well.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    setup: Annotated[
        Path | None,
        typer.Option(help="Make this folder: Redis users, secrets and certificates for each role."),
    ] = None,
    host: Annotated[
        list[str] | None, typer.Option(help="--setup: how roles reach the server; may be repeated.")
    ] = None,
    tls: Annotated[bool, typer.Option(help="--setup: with certificates.")] = True,
    worker: Annotated[
        bool,
        typer.Option("--worker", help="Only whether the line's worker here turns: for probes."),
    ] = False,
) -> None:
    """Check this machine and a line's Redis, and say how to mend what is wrong.

    Example: assayline doctor configs/line.demo.yaml

    Example: assayline doctor --setup access --host redis.plant
    """
    from pipeline.config import load_line

    settings = load_line(line) if line else None
    if setup is not None:
        _set_up(setup, settings.redis.namespace if settings else NAMESPACE, host or [], tls=tls)
        return
    from pipeline.doctor import doctor as examine
    from pipeline.doctor import print_checks

    if worker:
        if settings is None:
            raise typer.BadParameter("name the line whose worker is asked for")
        from pipeline.doctor.worker import worker_check

        checks = [worker_check(settings)]
    else:
        checks = examine(settings)
    if as_json:
        print(json.dumps([check.as_json() for check in checks], indent=1))
    else:
        print_checks(checks, out)
    raise typer.Exit(0 if all(check.ok or not check.required for check in checks) else 1)


def _set_up(folder: Path, namespace: str, hosts: list[str], *, tls: bool) -> None:
    from pipeline.access.setup import set_up

    for handout in set_up(folder, namespace, tuple(hosts or ["localhost"]), tls=tls):
        out.print(f"{handout.place}: {', '.join(handout.files)}", highlight=False)
    out.print(f"for the line's YAML: {folder / 'line.redis.yaml'}", highlight=False)


def verify(
    what: Annotated[str, typer.Argument(help="A lot, its record, or an archive's folder.")],
    line: Annotated[Path | None, typer.Option(help="The line whose archive holds it.")] = None,
    head: Annotated[str, typer.Option(help="A head noted before: it must still be there.")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write JSON here.")] = None,
) -> None:
    """Prove that a lot's verdicts and pictures are as they were written.

    Example: assayline verify 2026-11 --line configs/line.example.yaml
    """
    from pipeline.config import load_line
    from pipeline.evidence.verify import archives_of, verify

    lots = verify(what, archives_of(load_line(line) if line else None), head)
    for lot in lots:
        out.print(str(lot), highlight=False, markup=False, soft_wrap=True)
    if json_file is not None:
        write_json(json_file, {"lots": [lot.as_json() for lot in lots]})


def bench(
    what: Annotated[
        str,
        typer.Argument(
            help="transport, engine, scheduler, line, capacity, presets, dashboard or all."
        ),
    ] = "all",
    bundles: Annotated[
        list[Path] | None, typer.Argument(help="presets: bundles to compare on --data.")
    ] = None,
    bundle: Annotated[Path, typer.Option(help="Bundle to inspect with.")] = Path(
        "configs/bundles/demo"
    ),
    data: Annotated[
        Path | None,
        typer.Option(help="Test frames (MVTec layout) to measure depth on."),
    ] = None,
    frames: Annotated[int, typer.Option(min=20, help="Frames through the line.")] = 200,
    rate: Annotated[float, typer.Option(min=0.01, help="capacity: Hz of each camera.")] = 5.0,
    gate: Annotated[float, typer.Option(min=1, help="capacity: ms from exposure to gate.")] = 500.0,
    full: Annotated[
        bool, typer.Option("--full", help="scheduler, line: a million frames, 20 000; for minutes.")
    ] = False,
    backend: Annotated[
        str, typer.Option(help="engine: openvino, or a GPU's: tensorrt, torch-cuda.")
    ] = "openvino",
    precision: Annotated[str, typer.Option(help="engine: of a GPU's engine.")] = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write JSON here as well as to runs/bench.")
    ] = None,
) -> None:
    """Ratios measured in one run on this machine, kept in runs/bench.

    Example: assayline bench engine --data data
    """
    from pipeline.bench import Asked, print_bench, run_bench

    asked = Asked(
        bundle,
        data,
        frames,
        rate,
        gate,
        full,
        bundles=tuple(bundles or ()),
        backend=backend,
        precision=precision,
    )
    result = run_bench(what, asked)
    print_bench(result, out)
    if json_file is not None:
        result.write(json_file)


def gpu_check(
    wheels: Annotated[
        Path | None, typer.Option(help="Folder of wheels to install GPU libraries from.")
    ] = None,
    folder: Annotated[Path, typer.Option("--out", help="Where the report goes.")] = Path(
        "runs/gpu-check"
    ),
    bundle: Annotated[
        list[Path] | None,
        typer.Option(help="Bundle to try beside the demo; repeatable. None: specimens."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only parts whose name begins so (speed, parity:tensorrt); repeatable."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, max=64, help="Batch size to time; repeatable.")
    ] = None,
) -> None:
    """Try everything on this machine's GPU, part by part, and write what it found.

    Example: assayline gpu-check --bundle runs/tiles --only speed
    """
    from pipeline.gpucheck import Asked, State, print_outcomes, run_gpu_check
    from pipeline.gpucheck.outcome import BATCHES
    from pipeline.gpucheck.report import Telling
    from pipeline.gpucheck.wheels import install

    for sentence in install(wheels) if wheels else ():
        out.print(sentence, markup=False)
    asked = Asked(folder, tuple(bundle or ()), tuple(batch or BATCHES))
    outcomes = run_gpu_check(asked, only or (), Telling(out))
    print_outcomes(outcomes, out)
    raise typer.Exit(int(any(outcome.state is State.FAILED for outcome in outcomes)))
