"""A method on a device of torch: what must be true before its three functions are run there.

Weights of convolutions lie channels-last, which matrix units read without turning them round. In
bf16 only networks whose rounding can change no discrete choice (``Method.exact_in_bf16``); the rest
stays in single precision, and single precision is not quietly made coarser (TF32).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from engines.contracts import BadConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from engines.methods.method import Method


def open_device(name: str) -> torch.device:
    """The device "cuda" or "cpu"; BadConfig, in one sentence, where torch cannot use it."""
    if name == "cuda":
        if torch.version.cuda is None:
            raise BadConfig(
                f"this torch ({torch.__version__}) is built without CUDA; install a CUDA build of "
                "it, or choose backend openvino"
            )
        if not torch.cuda.is_available():
            raise BadConfig(
                "torch finds no CUDA device; install NVIDIA's driver and let this process see the "
                "GPU (nvidia-smi must list it), or choose backend openvino"
            )
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.fp32_precision = "ieee"
    return torch.device(name)


def device_facts() -> dict[str, Any]:
    """Name, driver, compute capability and memory of the first GPU, as torch sees it."""
    about = torch.cuda.get_device_properties(open_device("cuda"))
    return {
        "gpu": about.name,
        "driver": f"of CUDA {torch.version.cuda}",
        "compute_capability": f"{about.major}{about.minor}",
        "memory_gib": round(about.total_memory / 2**30, 1),
    }


def has_bf16(device: torch.device) -> bool:
    """Whether the device's matrix units compute in bf16."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def settled(method: Method, device: torch.device, precision: str) -> Method:
    """The method on a device, in place: in evaluation mode, channels-last, lowered for "bf16"."""
    method.eval().requires_grad_(False)
    if precision == "bf16":
        for path in method.exact_in_bf16:
            parent, _, name = path.rpartition(".")
            owner = method.get_submodule(parent)
            setattr(owner, name, Lowered(owner.get_submodule(name)))
    for module in method.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.weight.data = module.weight.contiguous(memory_format=torch.channels_last)
    return method.to(device)


class Lowered(nn.Module):
    """A network in bf16 between tensors in single precision; integers pass as they are."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(torch.bfloat16)

    def forward(self, *tensors: Tensor) -> Tensor:
        """What the network says of the tensors, in single precision."""
        lowered = (t.to(torch.bfloat16) if t.is_floating_point() else t for t in tensors)
        answer: Tensor = self.network(*lowered)
        return answer.float()


class Constants(TorchFunctionMode):
    """Makes each small constant of a method's code once, and hands it out again.

    A CUDA graph cannot hold the copy from the host that ``torch.tensor`` is; the run before the
    capture makes them, the capture finds them made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[str, Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        told = dict(kwargs or {})
        if func is not torch.tensor:
            return func(*args, **told)
        key = repr((args, sorted(told.items(), key=lambda item: item[0])))
        if key not in self.made:
            self.made[key] = func(*args, **told)
        return self.made[key]
