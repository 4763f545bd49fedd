"""Libraries for the GPU from a folder of wheels, for machines that no index can be reached from."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from typing import TYPE_CHECKING

from engines.contracts import BadData

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXTRAS = ("gpu", "gpu-rtx")
INSTALL_S = 900


def optional_requirements() -> list[str]:
    """What the extras for GPUs ask for, one requirement each."""
    declared = importlib.metadata.requires("assayline") or []
    parts = (text.partition(";") for text in declared)
    wanted = [f"extra == '{extra}'" for extra in EXTRAS]
    return [name.strip() for name, _, when in parts if when.strip().replace('"', "'") in wanted]


def install(folder: Path) -> Iterator[str]:
    """Install each requirement by itself from wheels alone: one that is missing keeps none away.

    Yields a sentence for each. Raises BadData for a folder without wheels.
    """
    if not list(folder.glob("*.whl")):
        raise BadData(f"{folder} holds no wheel; copy there what pip download has fetched")
    for requirement in optional_requirements():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index"]
        done = subprocess.run(
            [*command, "--find-links", str(folder), requirement],
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_S,
        )
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        yield f"{requirement}: {'installed' if done.returncode == 0 else (said or ['not'])[-1]}"
