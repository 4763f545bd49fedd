"""An order is given, and every worker follows it; or it is taken back, and all return."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.contracts import InspectionError
from pipeline.swap.roster import Standing, standings
from pipeline.swap.wanted import Choice, Wanted, write_wanted

if TYPE_CHECKING:
    from pipeline.config import LineSettings

LOOK_S = 0.05
BACK_S = 10.0  # workers have so long to return to what they ran


class SwapRefused(InspectionError):
    """The line runs what it ran; the text says which worker did not follow."""


@dataclass(frozen=True, slots=True)
class Swapped:
    """An order that every worker follows; without any it waits for one to start."""

    chosen: Choice
    before: Choice | None
    followed_s: dict[str, float]  # worker -> seconds from the order

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "bundle_id": self.chosen.bundle_id,
            "calibration_id": self.chosen.calibration_id,
            "before": self.before.model_dump(mode="json") if self.before else None,
            "workers": self.followed_s,
        }


def ordered(
    settings: LineSettings, order: Wanted, back: Wanted, timeout_s: float, stop: threading.Event
) -> Swapped:
    """Give an order and wait for every worker; where one does not follow, order ``back``.

    Raises SwapRefused then. A worker that starts meanwhile follows by itself; one that has died is
    waited for, since it starts again.
    """
    workers = len(standings(settings.run_dir))
    began_s, followed_s = time.monotonic(), dict[str, float]()
    write_wanted(settings, order)
    try:
        while True:
            told, passed_s = standings(settings.run_dir), time.monotonic() - began_s
            done = [name for name, one in told.items() if _has_followed(one, order.number)]
            followed_s = {name: followed_s.get(name, round(passed_s, 3)) for name in done}
            if len(done) == len(told) >= workers:
                return Swapped(order.chosen, order.before, followed_s)
            _require_patience(told, order.number, f"{len(done)} of {max(workers, len(told))}")
            if stop.wait(LOOK_S) or passed_s > timeout_s:
                why = "was interrupted" if stop.is_set() else f"took more than {timeout_s:g} s"
                raise SwapRefused(
                    f"the swap {why}: {len(done)} of {max(workers, len(told))} workers had "
                    "followed, and all run again what they ran"
                )
    except SwapRefused:
        _take_back(settings, back.model_copy(update={"number": order.number + 1}))
        raise


def _require_patience(told: dict[str, Standing], number: int, followed: str) -> None:
    """SwapRefused where a worker has refused the order; there is nothing to wait for."""
    for name, standing in told.items():
        if standing.number == number and standing.state == "refused":
            raise SwapRefused(
                f"worker {name} refused ({standing.sentence}); {followed} workers had followed, "
                "and all run again what they ran"
            )


def _has_followed(standing: Standing, number: int) -> bool:
    return standing.number >= number and standing.state == "runs"


def _take_back(settings: LineSettings, back: Wanted) -> None:
    """Order what was run before, and give the workers a moment to return to it."""
    write_wanted(settings, back)
    until = time.monotonic() + BACK_S
    while time.monotonic() < until:
        told = standings(settings.run_dir).values()
        if all(_has_followed(one, back.number) for one in told):
            return
        time.sleep(LOOK_S)
