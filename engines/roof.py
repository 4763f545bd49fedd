"""What a graph asks of a machine, and what a GPU can do: operations, bytes, and both per second.

Operations are those of convolutions and matrix products, two per multiply-add. Bytes are the least
that must move for them: each reads its operands and writes its result once, whatever stands between
them is fused away, and attention keeps its inner matrices to itself. A graph's roof is the longer
of the times that both would take at the rates measured on the same GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from engines.methods import build_method
from engines.torch_device import open_device, settled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from engines.bundle import GraphName

PEAK_SIDE, COPIED_BYTES = 8192, 1 << 30
WARM_UPS, ROUNDS = 3, 10
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
PRODUCTS = {
    functional.conv2d,
    functional.conv_transpose2d,
    functional.linear,
    functional.scaled_dot_product_attention,
    torch.matmul,
    torch.mm,
    torch.bmm,
    Tensor.matmul,
    Tensor.bmm,
    Tensor.__matmul__,
}


@dataclass(frozen=True, slots=True)
class Work:
    """What one call of a graph makes and moves at least."""

    operations: int
    bytes_moved: int

    def roof_s(self, peak: Roof) -> float:
        """Seconds that the call takes at least on a GPU with these rates."""
        return max(self.operations / peak.operations_s, self.bytes_moved / peak.bytes_s)


@dataclass(frozen=True, slots=True)
class Roof:
    """Rates that were measured on a GPU."""

    operations_s: float  # of one large matrix product
    bytes_s: float  # read and written, of one large copy


def work_of(configuration: Mapping[str, Any], precision: str, batch: int) -> dict[GraphName, Work]:
    """Work of each graph of a method at ``batch`` rows; nothing is computed and no weight read."""
    with torch.device("meta"), torch.no_grad():
        method: Any = settled(
            build_method(configuration).to("meta"), torch.device("meta"), precision
        )
        image = torch.zeros(batch, *method.image_size, 3, dtype=torch.uint8)
        one = torch.zeros(batch, dtype=torch.long)
        state, start = _counted(lambda: method.start(image, one, one, one.int()))
        after, step = _counted(lambda: method.step(dict(state)))
        _, finish = _counted(lambda: method.finish({**state, **after}))
    return {"start": start, "step": step, "finish": finish}


def measured_roof(precision: str) -> Roof:
    """This GPU's rates: the best of a few rounds, since a peak is what it does undisturbed.

    Random operands: a product of zeros draws less power and runs faster than any network can.
    """
    device = open_device("cuda")
    shape = (PEAK_SIDE, PEAK_SIDE)
    left, right = (torch.randn(shape, device=device).to(DTYPES[precision]) for _ in range(2))
    product_s = _best_s(lambda: torch.mm(left, right))
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = _best_s(lambda: target.copy_(source))
    return Roof(2 * PEAK_SIDE**3 / product_s, 2 * COPIED_BYTES / copy_s)


def _best_s(run: Callable[[], Tensor]) -> float:
    took = []
    for _ in range(WARM_UPS + ROUNDS):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before.record()
        run()
        after.record()
        after.synchronize()
        took.append(before.elapsed_time(after) / 1e3)
    return float(min(took[WARM_UPS:]))


class _Traffic(TorchFunctionMode):
    """Adds up the bytes that products read and write."""

    bytes_moved = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        told = dict(kwargs or {})
        found = func(*args, **told)
        if func in PRODUCTS:
            touched = (found, *args, *told.values())
            self.bytes_moved += sum(_bytes(t) for t in touched if isinstance(t, Tensor))
        return found


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _counted(call: Callable[[], Any]) -> tuple[Any, Work]:
    with FlopCounterMode(display=False) as operations, _Traffic() as traffic:
        result = call()
    return result, Work(operations.get_total_flops(), traffic.bytes_moved)
