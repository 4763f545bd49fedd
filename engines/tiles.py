"""A large image as tiles: rows of one frame, each a model input, and their maps as one map.

A frame is cut into rows x columns tiles that overlap by a share of a tile, so that a defect smaller
than the overlap lies whole in at least one of them. Their maps are averaged where they overlap, by
weights that fall linearly to a tile's inner edge: where its surroundings end a tile sees least
well, and weights that add up to 1 everywhere draw no seam.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from engines.contracts import BadBundle, BadConfig, BadFrame, Float32, UInt8

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

ALIGN = 4  # pixels; overlaps are multiples of it, so that maps of a quarter of the size align
OVERLAP_MAX = 0.5  # of a tile: beyond it three tiles would lie over one another
FRAME_BYTES_MAX = 64_000_000  # what an entry of the stream carries
KEY = "tiles"  # of a manifest's configuration; absent = frames are not cut

Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How frames of a bundle are cut; 1 x 1 where they are not."""

    size: Size  # of a tile, in pixels: the model input
    rows: int = 1
    columns: int = 1
    overlap: float = 0.0  # of neighbours, as a share of a tile

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 1 or not 0 <= self.overlap <= OVERLAP_MAX:
            raise BadConfig(
                f"{self.rows} x {self.columns} tiles cannot overlap by {self.overlap:g}: "
                f"give at least 1 x 1, and an overlap between 0 and {OVERLAP_MAX}"
            )
        height, width = self.frame_size
        if height * width * 3 > FRAME_BYTES_MAX:
            raise BadConfig(
                f"{self.rows} x {self.columns} tiles make a frame of {width} x {height} pixels, "
                f"over {FRAME_BYTES_MAX // 1_000_000} MB: give fewer or smaller tiles"
            )

    @classmethod
    def parse(cls, text: str, overlap: float, size: Size) -> Self:
        """As people write it, ``2x3``: rows, then columns."""
        if not (found := re.fullmatch(r"(\d{1,3})x(\d{1,3})", text)):
            raise BadConfig(f"{text!r} is no grid of tiles: give ROWSxCOLUMNS, such as 2x3")
        rows, columns = map(int, found.groups())
        return cls(size, rows, columns, overlap if rows * columns > 1 else 0.0)

    @classmethod
    def of(cls, configuration: Mapping[str, Any], size: Size) -> Self:
        """What a manifest's configuration says; raises BadBundle where it makes no sense."""
        told = configuration.get(KEY)
        if told is None:
            return cls(size)
        try:
            return cls(size, int(told["rows"]), int(told["columns"]), float(told["overlap"]))
        except (KeyError, TypeError, ValueError, BadConfig) as error:
            raise BadBundle(
                f"the manifest's tiles are {told!r}, which makes no sense; export the bundle again"
            ) from error

    def configuration(self) -> dict[str, Any]:
        """What ``of`` reads; empty where frames are not cut."""
        if self.count == 1:
            return {}
        return {KEY: {"rows": self.rows, "columns": self.columns, "overlap": self.overlap}}

    @property
    def count(self) -> int:
        """Tiles of a frame."""
        return self.rows * self.columns

    @property
    def frame_size(self) -> Size:
        """(H, W) of a frame, in pixels."""
        return self._extent(self.size, self._overlap_px())

    def cut(self, image: UInt8) -> list[UInt8]:
        """The tiles [h, w, 3] of a frame [H, W, 3], row by row; views, nothing is copied."""
        if image.shape[:2] != self.frame_size:
            raise BadFrame(
                f"a frame of {image.shape[0]} x {image.shape[1]} pixels was to be cut, "
                f"but {self.rows} x {self.columns} tiles need {self.frame_size}"
            )
        return [image[place] for place in self._places(self.size, self._overlap_px())]

    def cut_all(self, images: UInt8) -> UInt8:
        """Tiles [N * count, h, w, 3] of frames [N, H, W, 3], those of a frame together."""
        if self.count == 1:
            return images
        return np.stack([tile for image in images for tile in self.cut(image)])

    def merge(self, maps: Sequence[Float32 | None]) -> Float32:
        """The map of a frame from those of its tiles [h', w'] (None = nothing was seen there).

        What no tile saw has the least value of the rest; where none saw anything it is one NaN.
        """
        seen = [found for found in maps if found is not None]
        if not seen:
            return np.full((1, 1), np.nan, np.float32)
        cells: Size = (seen[0].shape[0], seen[0].shape[1])
        overlap = self._overlap_in(cells)
        total, weight = np.zeros((2, *self._extent(cells, overlap)))
        down = [_ramp(cells[0], overlap[0], i, self.rows) for i in range(self.rows)]
        across = [_ramp(cells[1], overlap[1], i, self.columns) for i in range(self.columns)]
        shares = (np.outer(row, column) for row in down for column in across)
        for place, share, found in zip(self._places(cells, overlap), shares, maps, strict=True):
            if found is not None:
                total[place] += share * found
                weight[place] += share
        merged = np.divide(total, weight, out=np.full_like(total, np.inf), where=weight > 0)
        return np.where(weight > 0, merged, merged.min()).astype(np.float32)

    def _overlap_px(self) -> Size:
        if not self.overlap:
            return 0, 0
        down, across = (max(ALIGN, ALIGN * int(self.overlap * s / ALIGN)) for s in self.size)
        return down, across

    def _overlap_in(self, cells: Size) -> Size:
        """The overlap in cells of a map; BadBundle where its edges would fall between cells."""
        scaled = [o * c / s for o, c, s in zip(self._overlap_px(), cells, self.size, strict=True)]
        if any(value % 1 for value in scaled):
            raise BadBundle(
                f"maps of {cells} cells do not fit tiles of {self.size} pixels that overlap by "
                f"{self._overlap_px()}; train with another overlap"
            )
        return int(scaled[0]), int(scaled[1])

    def _extent(self, side: Size, overlap: Size) -> Size:
        """Size of a frame whose tiles have these sides, in the same unit."""
        height = self.rows * side[0] - (self.rows - 1) * overlap[0]
        return height, self.columns * side[1] - (self.columns - 1) * overlap[1]

    def _places(self, side: Size, overlap: Size) -> list[tuple[slice, slice]]:
        """Where each tile lies in its frame, row by row."""
        tops = [row * (side[0] - overlap[0]) for row in range(self.rows)]
        lefts = [column * (side[1] - overlap[1]) for column in range(self.columns)]
        return [
            (slice(top, top + side[0]), slice(left, left + side[1]))
            for top in tops
            for left in lefts
        ]


def _ramp(side: int, overlap: int, number: int, of: int) -> NDArray[np.float64]:
    """Weights [side] of tile ``number`` along one axis; with its neighbours' they add up to 1."""
    rising = (np.arange(overlap) + 0.5) / max(overlap, 1)
    weights = np.ones(side)
    if number > 0:
        weights[:overlap] = rising
    if number < of - 1 and overlap:
        weights[-overlap:] = rising[::-1]
    return weights
