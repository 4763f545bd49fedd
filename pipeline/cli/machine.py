"""Commands about this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.terminal import out, write_json


def doctor(
    line: Annotated[Path | None, typer.Argument(help="A line's YAML to check as well.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine and a line's Redis, and say how to mend what is wrong.

    Example: assayline doctor configs/line.demo.yaml
    """
    from pipeline.config import load_line
    from pipeline.doctor import doctor as examine
    from pipeline.doctor import print_checks

    checks = examine(load_line(line) if line else None)
    if as_json:
        print(json.dumps([check.as_json() for check in checks], indent=1))
    else:
        print_checks(checks, out)
    raise typer.Exit(0 if all(check.ok or not check.required for check in checks) else 1)


def bench(
    what: Annotated[str, typer.Argument(help="transport, engine or all.")] = "all",
    bundle: Annotated[Path, typer.Option(help="Bundle for the engine benchmark.")] = Path(
        "configs/bundles/demo"
    ),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write JSON here.")] = None,
) -> None:
    """Ratios measured in one run on this machine.

    Example: assayline bench transport --json runs/bench/transport.json
    """
    from pipeline.bench import print_bench, run_bench

    result = run_bench(what, bundle)
    print_bench(result, out)
    write_json(json_file or Path("runs/bench") / f"{what}.json", result.as_json())
