"""One file that holds a training run: tensors and a JSON header, replaced in one step.

Everything is safetensors, never pickle. The header travels in the same file as the tensors, so a
kill can leave the old state or the new one, never half of each.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from engines.contracts import BadData

FORMAT = 1


def write_tensors(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write and replace atomically; survives a kill at any moment and a power cut after return."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.partial")
    header = {"format": str(FORMAT), "facts": json.dumps(facts)}
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, scratch, header)
    with scratch.open("rb") as written:
        os.fsync(written.fileno())
    scratch.replace(path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a checkpoint; raises BadData when it is damaged or of another format."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BadData(f"{path} is damaged; delete it and train without --resume") from error
    if header.get("format") != str(FORMAT):
        raise BadData(f"{path} is of another version; delete it and train without --resume")
    return tensors, json.loads(header["facts"])


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and step counts of every parameter, by parameter number."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value for i, each in state.items() for name, value in each.items()}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Fill an optimiser built for the same parameters."""
    whole = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**whole, "state": state})


def part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under ``prefix.``, without it."""
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with ``prefix.`` before every name."""
    return {f"{prefix}.{k}": v for k, v in tensors.items()}
