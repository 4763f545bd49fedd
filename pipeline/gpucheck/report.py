"""What people and machines read of a check: a table as it goes, one JSON and one Markdown."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from pipeline.bench.machine import machine_facts
from pipeline.gpucheck.outcome import State
from pipeline.gpucheck.parts import GPU, PARTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from pipeline.gpucheck.outcome import Outcome

TOLD = ("date", "processor", "cores", "memory_gib", "system", "python", "libraries")
STYLES = {State.DONE: "green", State.NOT_HERE: "dim", State.FAILED: "bold red"}
WIDEST = max(len(name) for name in PARTS)


class Telling:
    """Prints parts as they end; one that is not here for the reason just told is only counted."""

    def __init__(self, console: Console) -> None:
        self._console, self._last = console, ""

    def __call__(self, outcome: Outcome) -> None:
        """One line of a part that has ended."""
        absent = outcome.sentence if outcome.state is State.NOT_HERE else ""
        if not absent or absent != self._last:
            style = STYLES[outcome.state]
            self._console.print(
                f"[{style}]{outcome.state.value:<8}[/{style}] {outcome.part:<{WIDEST}}  "
                f"{escape(outcome.sentence)} [dim]{outcome.seconds:.0f} s[/dim]",
                soft_wrap=True,
            )
        self._last = absent


def print_outcomes(outcomes: Sequence[Outcome], console: Console) -> None:
    """How many parts ended how, and why so many are not here."""
    counts = {state: sum(o.state is state for o in outcomes) for state in State}
    console.print(", ".join(f"{count} {state.value}" for state, count in counts.items()))
    reasons = Counter(o.sentence for o in outcomes if o.state is State.NOT_HERE)
    for reason, count in reasons.items():
        if count > 1:
            console.print(f"{count} parts: {escape(reason)}", soft_wrap=True)


def write_report(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Write ``<GPU's name>.json`` and ``.md`` into the folder."""
    gpu, machine = _gpu(outcomes), machine_facts()
    name = _file_name(gpu)
    content = {
        "gpu": gpu,
        "machine": machine,
        "parts": [outcome.as_json() for outcome in outcomes],
    }
    text = json.dumps(content, indent=1, default=str)
    (folder / f"{name}.json").write_text(text + "\n", "utf-8")
    (folder / f"{name}.md").write_text(as_markdown(gpu, outcomes, machine), "utf-8")


def as_markdown(gpu: str, outcomes: Sequence[Outcome], machine: Mapping[str, Any]) -> str:
    """The machine and the parts, then the figures of those that ran; what did not run has none."""
    facts = [f"{name.replace('_', ' ')} {_fact(machine[name])}" for name in TOLD if name in machine]
    lines = [f"# GPU check: {gpu}", "", _cell(" · ".join(facts)), ""]
    lines += ["| part | | found |", "|---|---|---|"]
    for (state, sentence), alike in groupby(outcomes, lambda o: (o.state, o.sentence)):
        names = ", ".join(outcome.part for outcome in alike)
        lines.append(f"| {names} | {state.value} | {_cell(sentence)} |")
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


def _fact(found: object) -> str:
    return ", ".join(map(str, found)) if isinstance(found, list | tuple) else str(found)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
