"""A synthetic production line: three products, their defects with truth, a camera and a belt."""

from pipeline.simulator.dataset import write_dataset
from pipeline.simulator.faults import FAULTS, Fault
from pipeline.simulator.line import SimulatedLine, Truth
from pipeline.simulator.render import DEFAULT_SIZE, PARTS, Rendered, defects, render

__all__ = [
    "DEFAULT_SIZE",
    "FAULTS",
    "PARTS",
    "Fault",
    "Rendered",
    "SimulatedLine",
    "Truth",
    "defects",
    "render",
    "write_dataset",
]
