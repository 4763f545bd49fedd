"""All commands under one name, with help texts that show examples."""

from __future__ import annotations

import typer

from pipeline.cli import bundles, lines, machine

EXIT_CODES = (
    "Exit codes: 0 done · 1 fault · 2 wrong usage · 3 bad data · 4 bad bundle · "
    "5 bad configuration · 6 no Redis · 7 no source · 8 engines disagree · 9 verdicts differ."
)

app = typer.Typer(
    name="assayline",
    help="Inspect every part on a production line with diffusion models trained on good parts only.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)

app.command(rich_help_panel="Start here")(lines.demo)
for command in (bundles.train, bundles.calibrate, bundles.evaluate, bundles.build):
    app.command(rich_help_panel="From good images to a bundle")(command)
for command in (lines.run, lines.ingest, lines.inspect, lines.sink, lines.dashboard):
    app.command(rich_help_panel="On the line")(command)
for command in (lines.simulate, lines.record, lines.replay):
    app.command(rich_help_panel="Frames without a camera")(command)
for command in (machine.doctor, machine.bench):
    app.command(rich_help_panel="The machine")(command)
