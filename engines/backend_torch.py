"""The reference: runs a method's start, step and finish directly, in eager single precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engines.backend import BatchedBackend, columns
from engines.contracts import Evidence, Progress, Rows

if TYPE_CHECKING:
    from engines.methods.method import Method, State


class TorchBackend(BatchedBackend):
    """A method, its weights loaded, over rows that torch owns.

    Batches are not padded, since eager code compiles no shapes. The state's tensors are allocated
    at the first start, when their shapes are known.
    """

    key = "torch:f32"

    def __init__(self, method: Method, capacity: int = 32) -> None:
        super().__init__(capacity)
        self._method = method.eval()
        self._state: State = {}

    def close(self) -> None:
        """Release the rows."""
        self._state = {}

    @torch.inference_mode()
    def _start(self, rows: Rows, slots: list[int]) -> Progress:
        inputs = {name: torch.from_numpy(column) for name, column in columns(rows).items()}
        return self._scatter(self._method.start(**inputs), slots)

    @torch.inference_mode()
    def _step(self, slots: list[int]) -> Progress:
        return self._scatter(self._method.step(self._gather(slots)), slots)

    @torch.inference_mode()
    def _finish(self, slots: list[int]) -> Evidence:
        anomaly_map, anomaly_score = self._method.finish(self._gather(slots))
        return Evidence(anomaly_map.numpy(), anomaly_score.numpy())

    def _gather(self, slots: list[int]) -> State:
        return {name: tensor[slots] for name, tensor in self._state.items()}

    def _scatter(self, rows: State, slots: list[int]) -> Progress:
        for name, tensor in rows.items():
            if name not in self._state:
                self._state[name] = tensor.new_zeros((self.capacity, *tensor.shape[1:]))
            self._state[name][slots] = tensor
        return self._progress(slots)

    def _progress(self, slots: list[int]) -> Progress:
        state = self._state
        return Progress(
            steps_left=state["steps_left"][slots].numpy(),
            plan=state["plan"][slots].numpy(),
            level=state["level"][slots].numpy(),
        )
