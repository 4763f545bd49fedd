"""One question to the machine, with what was found and how to mend it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from engines.contracts import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console


class Weight(StrEnum):
    """What a check that is not ok means."""

    REQUIRED = "required"  # nothing may start
    ADVICE = "advice"  # it runs, worse than it could
    FACT = "fact"  # good to know, never wrong


@dataclass(frozen=True, slots=True)
class Check:
    """``mend`` is one sentence, and empty exactly when there is nothing to mend."""

    name: str
    ok: bool
    found: str
    mend: str = ""
    weight: Weight = Weight.REQUIRED

    @property
    def required(self) -> bool:
        """Whether nothing may start unless this holds."""
        return self.weight is Weight.REQUIRED

    @property
    def refuses(self) -> bool:
        """Whether this check alone keeps the line from starting."""
        return self.required and not self.ok

    def as_json(self) -> dict[str, Any]:
        """Plain values, with the keys of the fields."""
        return asdict(self) | {"weight": self.weight.value}


def required(name: str, ok: bool, found: str, mend: str) -> Check:
    """A check that must hold."""
    return Check(name, ok, found, "" if ok else mend)


def advice(name: str, ok: bool, found: str, mend: str) -> Check:
    """A check that should hold."""
    return Check(name, ok, found, "" if ok else mend, Weight.ADVICE)


def fact(name: str, found: str) -> Check:
    """Something worth knowing that cannot be wrong."""
    return Check(name, True, found, "", Weight.FACT)


def exit_code_of(checks: Sequence[Check]) -> ExitCode:
    """BAD_CONFIG where a required check fails, else OK."""
    return ExitCode.BAD_CONFIG if any(check.refuses for check in checks) else ExitCode.OK


def as_table(checks: Sequence[Check]) -> Table:
    """What ``doctor`` prints; a word in the first column, so colour never speaks alone."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "check", "found", "how to mend"):
        table.add_column(column, overflow="fold")
    for check in checks:
        # What was found is text, not markup: 'assayline[train]' has brackets of its own.
        table.add_row(_word(check), *map(escape, (check.name, check.found, check.mend)))
    return table


def print_checks(checks: Sequence[Check], console: Console) -> None:
    """Print the table, and one sentence that says whether a line may start."""
    console.print(as_table(checks))
    refusing = [check.name for check in checks if check.refuses]
    advised = sum(not check.ok and not check.required for check in checks)
    if refusing:
        console.print(f"Not ready: mend {', '.join(refusing)}.")
    else:
        console.print(f"Ready{f', with {advised} pieces of advice' if advised else ''}.")


def _word(check: Check) -> str:
    if check.weight is Weight.FACT:
        return "[dim]fact[/dim]"
    if check.ok:
        return "[green]ok[/green]"
    return "[bold red]MEND[/bold red]" if check.refuses else "[yellow]advice[/yellow]"
