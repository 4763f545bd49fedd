"""What a training run is asked for, and the good images it may see.

Good images are split once, by a hash of their names: most train the codec, the bank and the
denoiser; the rest, which no part of the method has seen, fit its scales and its calibration and
make its parity set.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from engines.calibration_fit import good_images_needed
from engines.contracts import BY_PATH, BadConfig, BadData, UInt8
from engines.dataset import (
    good_items,
    held_count,
    load_model_input,
    mixed_sizes,
    named_categories,
    split_holdout,
)
from engines.methods import METHODS
from engines.presets import preset_path, read_settings
from engines.substitutions import OWN_FEATURES, has_bank, looks_by
from engines.tiles import Tiling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from engines.dataset import Item

    Progress = Callable[[str, float, str], None]  # stage, share done in [0, 1], one line of facts

METHOD_OPTIONS: dict[str, set[str]] = {  # each is described in its method's module
    "DeCo-Diff": set(),
    "GLAD": {"start_level", "steps", "floor_level", "reach", "test"},
    "D3AD": {"eta", "t_max"},
    "DRDC-style": {"fusion", "refinement", "low_pass"},
}
IN_WORDS = {"reach", "test", "fusion"}  # options that may be a word; the others are numbers
NOTE = "note"  # the stage whose facts are a sentence that stays on the screen
TRAIN_MIN = 8  # good images to train on, of each category


class TrainSettings(BaseModel):
    """What a training run is asked for; the same keys as in ``configs/train.*.yaml``."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    preset: str = ""  # of engines.presets: its values stand for what is not given
    method: Literal["DeCo-Diff", "GLAD", "D3AD", "DRDC-style"] = "DeCo-Diff"
    options: dict[str, float | str] = {}  # of the method: METHOD_OPTIONS
    size: str = "tiny"  # of the denoiser; or "path:..." of a pretrained one
    codec: Literal["features", "vae"] = "features"
    vae: str = "lean"  # lean, tiny, kl; or "path:..." of a pretrained one
    features: dict[str, Any] | None = None  # None: EfficientNet-Lite0, beside a VAE nothing
    strides: tuple[PositiveInt, ...] = (8, 16)  # of the activations that describe a patch
    patch_stride: PositiveInt = 8  # one patch of the bank per so many pixels
    latent_stride: PositiveInt = 8  # one cell of the latent per so many pixels
    channels: PositiveInt = 64  # of the feature codec
    bank_channels: PositiveInt = 152  # components that the severity bank compares; 152 = all
    image_size: tuple[PositiveInt, PositiveInt] = (256, 256)
    overlap: float = Field(default=0.1, ge=0, le=0.5)  # of neighbouring tiles, share of a tile
    tiles: str = "1x1"  # rows x columns of model inputs that a frame is cut into
    bank_rows: int = Field(default=1000, ge=0)  # per category; 0 = no severity bank
    preconditioned: bool = False  # the denoiser starts from what is best for whitened latents
    whitened: bool = False  # changes are measured in the covariance of good parts' changes
    scorer: bool = False  # a learned scorer, trained on synthetic anomalies
    scorer_minutes: PositiveFloat = 6.0
    scorer_pool: PositiveInt = 3000  # images it learns from, made once
    minutes: PositiveFloat = 20.0
    codec_minutes: PositiveFloat = 5.0  # of a VAE, or of a feature codec's decoder for people
    steps: PositiveInt = 100_000  # whichever of minutes and steps comes first
    batch: PositiveInt = 16
    learning_rate: PositiveFloat = 1e-3
    dropout: float = Field(default=0.1, ge=0, lt=1)
    label_dropout: float = Field(default=0.1, ge=0, lt=1)
    variants: PositiveInt = 4  # augmented copies of each image in the latent cache
    shift_px: int = Field(default=4, ge=0)
    holdout: float = Field(default=0.25, gt=0, lt=1)
    # What OpenVINO is calibrated for, where it agrees with f32; int8 is made for it first.
    precisions: tuple[Literal["f32", "bf16", "int8"], ...] = ("f32", "bf16")
    max_false_reject: float = Field(default=0.05, gt=0, lt=1)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    early_exit: float = Field(default=0.0, ge=0, lt=1)  # verdicts it may change; 0 = none
    seed: int = 0
    snapshots: int = Field(default=0, ge=0)  # weights kept along the way, for a learning curve

    @field_validator("options")
    @classmethod
    def _are_known(
        cls, options: dict[str, float | str], told: ValidationInfo
    ) -> dict[str, float | str]:
        method = told.data.get("method", "")  # absent where it is itself refused
        known = METHOD_OPTIONS.get(method, set(options))
        for name, value in options.items():
            if name not in known:
                close = difflib.get_close_matches(name, known, 1) or sorted(known) or ["none"]
                raise ValueError(f"{method} has no {name}; choose {', '.join(close)}")
            if isinstance(value, str) and name not in IN_WORDS:
                raise ValueError(f"{name} is {value!r}; give a number")
        return options

    @field_validator("preconditioned")
    @classmethod
    def _is_trained_here(cls, preconditioned: bool, told: ValidationInfo) -> bool:
        size = told.data.get("size", "")
        if preconditioned and size.startswith(BY_PATH):
            raise ValueError(f"{size} was trained without it; leave it out or name another size")
        return preconditioned

    @field_validator("tiles")
    @classmethod
    def _can_be_cut(cls, tiles: str, told: ValidationInfo) -> str:
        size, overlap = told.data.get("image_size"), told.data.get("overlap")
        if size and overlap is not None:  # absent where they are themselves refused
            try:
                Tiling.parse(tiles, overlap, size)
            except BadConfig as error:
                raise ValueError(str(error)) from None
        return tiles

    @property
    def tiling(self) -> Tiling:
        """How frames are cut into model inputs; BadConfig where they cannot be."""
        return Tiling.parse(self.tiles, self.overlap, self.image_size)


@dataclass(frozen=True, slots=True, eq=False)
class GoodParts:
    """Good images of one category at the size of frames, split once."""

    category: str
    train: UInt8  # [N, H, W, 3]
    held_out: UInt8  # [M, H, W, 3]

    def cut(self, tiling: Tiling) -> GoodParts:
        """The same as model inputs, those of an image together."""
        return GoodParts(self.category, tiling.cut_all(self.train), tiling.cut_all(self.held_out))


def load_good(
    data: Path,
    names: Sequence[str] | None,
    settings: TrainSettings,
    progress: Progress = lambda *_: None,
) -> list[GoodParts]:
    """Read and split the good images of each category; raises BadData for what cannot serve.

    Every category is judged by its count of files before one is read. One whose held-out part
    cannot carry the promised false-reject rate may still be trained on; a note says what is coming.
    """
    splits = {name: _split(data, name, settings) for name in named_categories(data, names)}
    for name, (kept, held_out) in splits.items():
        at_risk = _promise_at_risk(name, len(kept), len(held_out), settings)
        mixed = mixed_sizes([*kept, *held_out], settings.tiling.frame_size)
        for told in filter(None, (at_risk, mixed)):
            progress(NOTE, 1.0, told)
    parts = []
    for done, (name, (kept, held_out)) in enumerate(splits.items()):
        progress("read", done / len(splits), name)
        parts.append(GoodParts(name, _stack(kept, settings), _stack(held_out, settings)))
    return parts


def _split(data: Path, name: str, settings: TrainSettings) -> tuple[list[Item], list[Item]]:
    items = good_items(data, name)
    # The least count of which enough is left to train on; the search starts just below it.
    least = int((TRAIN_MIN - 0.5) / (1 - settings.holdout))
    while least - held_count(least, settings.holdout) < TRAIN_MIN:
        least += 1
    if len(items) < least:
        raise BadData(
            f"{name!r} has {len(items)} good images, too few to train on: give at least {least}."
        )
    return split_holdout(items, settings.holdout, settings.seed)


def _promise_at_risk(name: str, kept: int, held_out: int, settings: TrainSettings) -> str:
    """Why a category will stay uncalibrated, and what would mend it; empty where it will not."""
    rate, confidence = settings.max_false_reject, settings.confidence
    needed = good_images_needed(rate, confidence)
    if held_out >= needed:
        return ""
    mends = [f"add good images ({math.ceil(needed / settings.holdout)} in all)"]
    if kept + held_out >= needed + TRAIN_MIN:
        mends.append(f"raise holdout to {math.ceil(100 * needed / (kept + held_out)) / 100:.2f}")
    carried = next(
        (p for p in range(1, 100) if good_images_needed(p / 100, confidence) <= held_out), 0
    )
    if carried:
        mends.append(f"promise max_false_reject {carried / 100:.2f}")
    return (
        f"{name!r} holds out {held_out} of {kept + held_out} good images, but a false-reject rate "
        f"of at most {rate:.3g} with confidence {confidence:.3g} needs {needed}, so "
        f"it will not be calibrated: {', or '.join(mends)}."
    )


def configuration_of(settings: TrainSettings, categories: int) -> dict[str, Any]:
    """What ``build_method`` needs, as it is stored in the manifest."""
    codec: dict[str, Any] = {"kind": settings.codec, "image_size": list(settings.image_size)}
    codec |= {"network": settings.vae} if settings.codec == "vae" else _projection(settings)
    has_features = looks_by(settings) is not None
    if has_features:
        codec |= _features(settings)
    return {
        "method": settings.method,
        "codec": codec,
        "denoiser": settings.size,
        "categories": categories,
        "image_size": list(settings.image_size),
        "dropout": settings.dropout,
        "preconditioned": settings.preconditioned,
        "whitened": settings.whitened,
        "bank": {"rows": settings.bank_rows} if has_bank(settings) else None,
        "scorer": settings.scorer and has_features,
        **settings.tiling.configuration(),
        **settings.options,
        "precision": _held(settings),
    }


def _held(settings: TrainSettings) -> dict[str, str]:
    """Graphs that stay in single precision whatever an engine is asked for.

    Distances to a bank decide plans and base maps; bf16 features moved them across thresholds and
    saved a twentieth of the time. Scores are made in finish: in bf16 it erred ten times as much as
    the step before it, and over features it is too small to save anything.
    """
    start = has_bank(settings) or settings.method == "DRDC-style"
    finish = settings.codec == "features"
    return ({"start": "f32"} if start else {}) | ({"finish": "f32"} if finish else {})


def _features(settings: TrainSettings) -> dict[str, Any]:
    return {
        "features": settings.features or {"network": OWN_FEATURES},
        "strides": list(settings.strides),
        "patch_stride": settings.patch_stride,
    }


def _projection(settings: TrainSettings) -> dict[str, Any]:
    return {
        "latent_stride": settings.latent_stride,
        "channels": settings.channels,
        "bank_channels": settings.bank_channels,
    }


def _stack(items: Sequence[Item], settings: TrainSettings) -> UInt8:
    return np.stack([load_model_input(item, settings.tiling.frame_size) for item in items])


def load_recipe(path: Path | None, changes: dict[str, Any]) -> TrainSettings:
    """Settings from a YAML file, single values changed by the command line.

    Where either names a preset, its values stand for what neither says. Raises BadConfig, in one
    sentence, for unknown keys and impossible values.
    """
    raw = {} if path is None else read_settings(path)
    if name := changes.get("preset") or raw.get("preset"):
        raw = {**read_settings(preset_path(str(name))), **raw}
    if "method" in changes:
        changes = changes | {"method": _method_name(changes["method"])}
    try:
        return TrainSettings.model_validate({**raw, **changes})
    except ValidationError as error:
        raise BadConfig(f"training settings: {_first_of(error)}") from error


def _first_of(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    close = difflib.get_close_matches(where, TrainSettings.model_fields, 1)
    if first["type"] == "extra_forbidden" and close:
        return f"there is no {where}; did you mean {close[0]}?"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


def _method_name(given: str) -> str:
    """``decodiff`` as people type it -> ``DeCo-Diff`` as papers print it."""
    plain = {name.lower().replace("-", ""): name for name in METHODS} | {"drdc": "DRDC-style"}
    return plain.get(given.lower().replace("-", ""), given)
