"""The whole check: part after part, each outcome kept and told as it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.contracts import BadConfig
from pipeline.gpucheck.isolation import run_isolated
from pipeline.gpucheck.outcome import Outcome, State
from pipeline.gpucheck.parts import GPU, PARTS
from pipeline.gpucheck.report import write_report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.gpucheck.outcome import Asked
    from pipeline.gpucheck.parts import Part


def run_gpu_check(
    asked: Asked,
    only: Sequence[str] = (),
    told: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Run every part, or those whose name begins as one of ``only`` does; the report names all.

    A part that is left out keeps the outcome of an earlier run to the same folder. Raises BadConfig
    for a beginning that no part has.
    """
    for beginning in only:
        if not any(name.startswith(beginning) for name in PARTS):
            raise BadConfig(f"there is no part {beginning!r}; choose among {', '.join(PARTS)}")
    asked.write()
    outcomes: list[Outcome] = []
    for name, part in PARTS.items():
        wanted = not only or name == GPU or name.startswith(tuple(only))
        outcome = _outcome(name, part, asked, outcomes) if wanted else asked.kept(name)
        if outcome is None:
            continue
        outcomes.append(outcome)
        if wanted:
            told(outcome)
        write_report(asked.out, outcomes)
    return outcomes


def _outcome(name: str, part: Part, asked: Asked, before: Sequence[Outcome]) -> Outcome:
    if (reason := _reason_against(part, asked, before)) is None:
        return run_isolated(name, part.limit_s, asked)
    outcome = Outcome(name, State.NOT_HERE, reason)
    asked.keep(outcome)
    return outcome


def _reason_against(part: Part, asked: Asked, before: Sequence[Outcome]) -> str | None:
    """Why a part need not be tried."""
    ended = {outcome.part: outcome.state for outcome in before}
    if part.needs_gpu and ended.get(GPU, State.DONE) is not State.DONE:
        return "there is no GPU to try it on"
    # A build that failed at one bundle, or took too long, left the engines of others.
    if ended.get(part.needs) is State.NOT_HERE:
        return f"it needs {part.needs}, which is not there"
    if part.makes_specimens and asked.bundles:
        return "bundles were given"
    return None
