"""EfficientAD-S (Batzner et al. 2023, arXiv 2303.14535) as one OpenVINO graph, to be timed against.

Layers and sizes are the published ones (the tables of its appendix; the autoencoder's sizes scale
with the image); weights are random, since only time counts. A frame's whole way is in the graph:
uint8 in, ImageNet normalisation, teacher, student with twice the channels, autoencoder, both
squared differences, their map at the size of the image, and its maximum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from engines.openvino_graphs import load_openvino

if TYPE_CHECKING:
    from engines.contracts import Float32

CHANNELS = 384  # of the teacher's descriptors
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of values in 0..1
LOST = 8  # border cells of the map that are not there without padding
SMALLEST = 256  # px; of a smaller image the encoder's last convolution finds nothing left


def efficientad_s(size: tuple[int, int], *, padded: bool = True) -> Any:  # noqa: ANN401 - openvino ships no types
    """The model for images u8[B, H, W, 3]: a map [B, H, W] and a score [B].

    ``padded``: as its tables have it, which gives a map of a quarter of the image. Without padding,
    as common implementations run it, the border is lost and a fifth of the work saved.
    """
    build = _Builder(load_openvino().opset13, np.random.default_rng(0))
    image = build.ops.parameter([-1, *size, 3], np.uint8, name="image")
    values = build.normalised(image)
    teacher = build.descriptors(values, CHANNELS, padded)
    student = build.ops.split(build.descriptors(values, 2 * CHANNELS, padded), 1, 2)
    cells = tuple(side // 4 - (0 if padded else LOST) for side in size)
    rebuilt = build.autoencoder(values, size, cells)
    local = build.difference(build.standardised(teacher), student.output(0))
    remote = build.difference(rebuilt, student.output(1))
    joined = build.resized(build.joined(local, remote), size)
    score = build.ops.reduce_max(joined, np.array([1, 2, 3]))
    return load_openvino().Model([build.ops.squeeze(joined, np.array([1])), score], [image])


class _Builder:
    """The few kinds of layers it is made of, over OpenVINO's operations."""

    def __init__(self, ops: Any, rng: np.random.Generator) -> None:  # noqa: ANN401
        self.ops, self._rng = ops, rng

    def descriptors(self, values: Any, channels: int, padded: bool) -> Any:  # noqa: ANN401
        """The small patch description network."""
        pad = int(padded)
        found = self._pooled(self._relu(self._convolved(values, 3, 128, 4, pad=3 * pad)), pad)
        found = self._pooled(self._relu(self._convolved(found, 128, 256, 4, pad=3 * pad)), pad)
        found = self._relu(self._convolved(found, 256, 256, 3, pad=pad))
        return self._convolved(found, 256, channels, 4)

    def autoencoder(self, values: Any, size: tuple[int, int], cells: tuple[int, ...]) -> Any:  # noqa: ANN401
        """Six convolutions down, then eight up, each but the last after a resizing."""
        found = values
        for given, made in ((3, 32), (32, 32), (32, 64), (64, 64), (64, 64)):
            found = self._relu(self._convolved(found, given, made, 4, stride=2, pad=1))
        found = self._convolved(found, 64, 64, 8)
        for divisor, less in ((64, 1), (32, 0), (16, 1), (8, 0), (4, 1), (2, 1)):
            found = self.resized(found, tuple(side // divisor - less for side in size))
            found = self._relu(self._convolved(found, 64, 64, 4, pad=2))
        found = self.resized(found, cells)
        found = self._relu(self._convolved(found, 64, 64, 3, pad=1))
        return self._convolved(found, 64, CHANNELS, 3, pad=1)

    def normalised(self, image: Any) -> Any:  # noqa: ANN401
        """u8[B, H, W, 3] to f32[B, 3, H, W] in the units of ImageNet."""
        values = self.ops.convert(image, "f32")
        values = self.ops.subtract(values, np.array(MEAN, np.float32) * 255)
        values = self.ops.divide(values, np.array(DEVIATION, np.float32) * 255)
        return self.ops.transpose(values, np.array([0, 3, 1, 2]))

    def standardised(self, descriptors: Any) -> Any:  # noqa: ANN401
        """The teacher's channels, each by its own mean and deviation."""
        shape = (1, CHANNELS, 1, 1)
        centred = self.ops.subtract(descriptors, self._drawn(shape, 0.1))
        return self.ops.divide(centred, 1 + np.abs(self._drawn(shape, 0.1)))

    def difference(self, one: Any, other: Any) -> Any:  # noqa: ANN401
        """Squared difference, averaged over channels: [B, 1, h, w]."""
        squared = self.ops.squared_difference(one, other)
        return self.ops.reduce_mean(squared, np.array([1]), keep_dims=True)

    def joined(self, local: Any, remote: Any) -> Any:  # noqa: ANN401
        """The mean of both maps, each scaled between two quantiles of good parts."""
        scaled = [
            self.ops.multiply(self.ops.subtract(found, np.float32(0.1)), np.float32(0.05))
            for found in (local, remote)
        ]
        return self.ops.add(*scaled)

    def resized(self, values: Any, size: tuple[int, ...]) -> Any:  # noqa: ANN401
        """Bilinear, over height and width."""
        return self.ops.interpolate(
            values,
            np.array(size),
            mode="linear_onnx",
            shape_calculation_mode="sizes",
            coordinate_transformation_mode="half_pixel",
            axes=np.array([2, 3]),
        )

    def _convolved(
        self,
        values: Any,  # noqa: ANN401
        given: int,
        made: int,
        side: int,
        *,
        stride: int = 1,
        pad: int = 0,
    ) -> Any:  # noqa: ANN401
        """A convolution with bias; weights drawn so that what comes out stays near 1."""
        weights = self._drawn((made, given, side, side), (2 / (given * side * side)) ** 0.5)
        pads, strides = [pad, pad], [stride, stride]
        found = self.ops.convolution(values, weights, strides, pads, pads, [1, 1])
        return self.ops.add(found, self._drawn((1, made, 1, 1), 0.1))

    def _pooled(self, values: Any, pad: int) -> Any:  # noqa: ANN401
        return self.ops.avg_pool(values, [2, 2], [pad, pad], [pad, pad], [2, 2], False)

    def _relu(self, values: Any) -> Any:  # noqa: ANN401
        return self.ops.relu(values)

    def _drawn(self, shape: tuple[int, ...], spread: float) -> Float32:
        drawn: Float32 = self._rng.standard_normal(shape, np.float32) * np.float32(spread)
        return drawn
