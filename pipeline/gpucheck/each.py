"""Figures of bundle after bundle: one that fails takes none of another with it."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from engines.contracts import BadConfig, InspectionError
from pipeline.gpucheck.outcome import Found, NotHere, Partly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from engines.bundle import Bundle
    from pipeline.bench.report import Result


def figures_of_each(
    bundles: Iterable[tuple[str, Bundle]],
    figures: Callable[[str, Bundle], Iterable[Result]],
    told: Callable[[Sequence[Result]], str],
) -> Found:
    """All figures, and what is told of them; Partly where some bundle failed.

    What the machine lacks, it lacks for every bundle: NotHere, BadConfig and modules that are not
    installed are raised as they are.
    """
    results: list[Result] = []
    faults: dict[str, str] = {}
    for name, bundle in bundles:
        try:
            results.extend(figures(name, bundle))  # those before a fault are kept
        except (NotHere, BadConfig, ModuleNotFoundError):
            raise
        except InspectionError as error:
            faults[name] = str(error)
        except Exception as error:
            traceback.print_exc()
            faults[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if faults:
        sentence = " · ".join(f"{name}: {fault}" for name, fault in faults.items())
        raise Partly(Found(sentence, tuple(results)))
    return Found(told(results), tuple(results))
