"""What people and machines read of a check: a table as it goes, one JSON and one Markdown."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from pipeline.bench.machine import machine_facts
from pipeline.gpucheck.outcome import State
from pipeline.gpucheck.parts import GPU

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from pipeline.gpucheck.outcome import Outcome

WORDS = {
    State.DONE: "[green]done[/green]",
    State.NOT_HERE: "[dim]not here[/dim]",
    State.FAILED: "[bold red]FAILED[/bold red]",
}


def print_outcome(outcome: Outcome, console: Console) -> None:
    """One line of a part that has ended."""
    word, took = WORDS[outcome.state], f"{outcome.seconds:.0f} s"
    console.print(f"{word:<8} {outcome.part:<24} {escape(outcome.sentence)} [dim]{took}[/dim]")


def print_outcomes(outcomes: Sequence[Outcome], console: Console) -> None:
    """How many parts ended how."""
    counts = {state: sum(o.state is state for o in outcomes) for state in State}
    console.print(", ".join(f"{count} {state.value}" for state, count in counts.items()))


def write_report(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Write ``<GPU's name>.json`` and ``.md`` into the folder."""
    gpu, name = _gpu(outcomes), _file_name(_gpu(outcomes))
    content = {
        "gpu": gpu,
        "machine": machine_facts(),
        "parts": [outcome.as_json() for outcome in outcomes],
    }
    text = json.dumps(content, indent=1, default=str)
    (folder / f"{name}.json").write_text(text + "\n", "utf-8")
    (folder / f"{name}.md").write_text(as_markdown(gpu, outcomes), "utf-8")


def as_markdown(gpu: str, outcomes: Sequence[Outcome]) -> str:
    """The parts, then the figures of those that ran; what did not run has none."""
    lines = [f"# {gpu}", "", "| part | | found |", "|---|---|---|"]
    lines += [f"| {o.part} | {o.state.value} | {_cell(o.sentence)} |" for o in outcomes]
    for outcome in outcomes:
        if outcome.results:
            lines += ["", f"## {outcome.part}", ""]
            lines += ["| figure | value | unit | against | ratio |", "|---|---:|---|---|---:|"]
            lines += [
                f"| {r.name} | {r.value:,.4g} | {r.unit} | {_cell(r.against)} | {r.ratio:.3g} |"
                for r in outcome.results
            ]
        if outcome.facts:
            lines += ["", f"## {outcome.part}: facts", ""]
            lines += [f"* {name}: {_cell(fact)}" for name, fact in outcome.facts.items()]
    return "\n".join(lines) + "\n"


def _gpu(outcomes: Sequence[Outcome]) -> str:
    facts: dict[str, Any] = next((o.facts for o in outcomes if o.part == GPU), {})
    return str(facts.get("gpu", "no GPU"))


def _file_name(gpu: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
