"""All commands under one name, with help texts that show examples."""

from __future__ import annotations

from collections.abc import Callable

import typer

from pipeline.cli import bundles, lines, machine

EXIT_CODES = (
    "Exit codes: 0 done · 1 fault · 2 wrong usage · 3 bad data · 4 bad bundle · "
    "5 bad configuration · 6 no Redis · 7 no source · 8 engines disagree · 9 verdicts differ."
)

app = typer.Typer(
    name="assayline",
    help="Inspect every part on a line with diffusion models trained on good parts only.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)

PANELS: tuple[tuple[str, tuple[Callable[..., None], ...]], ...] = (
    ("Start here", (lines.demo,)),
    (
        "From good images to a bundle",
        (
            bundles.train,
            bundles.calibrate,
            bundles.evaluate,
            bundles.diagnose,
            bundles.build,
            bundles.sizes,
        ),
    ),
    (
        "On the line",
        (
            lines.run,
            lines.swap,
            lines.ingest,
            lines.inspect,
            lines.sink,
            lines.dashboard,
            lines.labels,
        ),
    ),
    ("Frames without a camera", (lines.simulate, lines.record, lines.replay)),
    ("The machine", (machine.doctor, machine.bench, machine.verify, machine.gpu_check)),
)

for panel, commands in PANELS:
    for command in commands:
        app.command(rich_help_panel=panel)(command)
