"""What the simulator asks of a product: how parts differ, how they look, how they fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from pipeline.simulator.surface import Surface

Part = TypeVar("Part")
Defect = Callable[[Any, np.random.Generator, float], Any]  # part, chance, severity -> damaged part


@dataclass(frozen=True, slots=True)
class Product(Generic[Part]):
    """One kind of part in three verbs.

    ``draw`` makes the natural variation of one good part, a defect returns that very part damaged
    (severity in 0..1), and ``build`` turns either into matter. Good and damaged part therefore
    differ by the damage and by nothing else.
    """

    draw: Callable[[np.random.Generator], Part]
    build: Callable[[Part], Surface]
    defects: Mapping[str, Callable[[Part, np.random.Generator, float], Part]]
