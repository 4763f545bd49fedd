"""Presets: model size, resolution, features, bank and precision chosen together, as settings files.

A preset is a file like any other, ``configs/preset.<name>.yaml``; what a ``--config`` or an option
says beside it wins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.contracts import BadConfig
from engines.yaml_file import read_yaml

CONFIGS = Path(__file__).parents[1] / "configs"
PRESETS = ("fast", "balanced", "accurate")


def preset_path(name: str) -> Path:
    """The settings file of a preset; raises BadConfig for one that does not exist."""
    if name not in PRESETS:
        raise BadConfig(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    return CONFIGS / f"preset.{name}.yaml"


def read_settings(path: Path) -> dict[str, Any]:
    """The keys of a settings file as they stand; raises BadConfig where it holds none."""
    raw = read_yaml(path) or {}
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise BadConfig(f"{path} holds no settings; start from configs/train.tiny.yaml")
    return raw
