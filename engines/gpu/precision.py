"""In which precision each graph of a bundle is built, and what that is called.

A bundle's wish to keep a graph at f32 holds for fp16 as it does for bf16. On the demo bundle, whose
start holds a severity bank, fp16 rounded node by node moved 12 scores by up to 2.3 times what the
parity gate allows and turned 2 verdicts; with start at f32 it was 0.11 times, and none turned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from engines.bundle import GRAPHS, GraphName
from engines.contracts import BadBundle, BadConfig
from engines.parity import ParityReport

if TYPE_CHECKING:
    from engines.bundle import Bundle

EIGHT_BITS = ("int8", "fp8")  # of learned layers where the gate allows it; the rest is fp16
PRECISIONS = ("f32", "fp16", "bf16", "int8", "fp8")
AUTO = "fp16"  # three bits more than bf16, and networks here stay in its range; the gate decides


class EightBits(BaseModel):
    """What of a bundle takes eight bits, and what the gate found on the CPU."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    layers: str  # which, in words
    counts: dict[GraphName, int]  # of layers; the rest of a graph is fp16
    calibrated_on: str
    on_cpu: ParityReport

    def sentence(self) -> str:
        """What people should know of it."""
        counts = ", ".join(f"{count} layers of {name}" for name, count in self.counts.items())
        return (
            f"{counts} ({self.layers}), calibrated on {self.calibrated_on}: "
            f"{self.on_cpu.sentence()}"
        )


def precisions_of(bundle: Bundle, asked: str | Mapping[str, str]) -> dict[GraphName, str]:
    """The precision of each graph, from one for all or one for each.

    A bundle may hold a graph at f32; that gives way only to who asks for that graph by name.
    Raises BadConfig for a precision that does not exist.
    """
    pins = bundle.manifest.configuration.get("precision", {})
    if not isinstance(pins, dict):
        raise BadBundle(f"bundle {bundle.folder}: precision is no table of graph names")
    if isinstance(asked, Mapping):
        return {graph: _known(asked.get(graph, "auto")) for graph in GRAPHS}
    wanted = _known(asked)
    return {graph: "f32" if pins.get(graph) == "f32" else wanted for graph in GRAPHS}


def summary_of(asked: str | Mapping[str, str]) -> str:
    """What engines are called by: the precision asked for all graphs, or that of each."""
    if isinstance(asked, Mapping):
        kinds = {graph: _known(asked.get(graph, "auto")) for graph in GRAPHS}
        if len(set(kinds.values())) > 1:
            return ",".join(f"{graph}={kind}" for graph, kind in kinds.items())
        return kinds["step"]
    return _known(asked)


def _known(precision: str) -> str:
    if precision == "auto":
        return AUTO
    if precision not in PRECISIONS:
        raise BadConfig(
            f"there is no precision {precision!r} for tensorrt; choose auto, "
            f"{', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}"
        )
    return precision
