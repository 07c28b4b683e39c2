"""Crops and views: squares of one resolution cut from images, and their flips and turns."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from morphoray.errors import DataError
from morphoray.seeds import numpy_generator

Pixels = npt.NDArray[np.uint8]


def resize_square(image: Pixels, resolution: int) -> Pixels:
    """The largest centred square of an image (K, H, W), resized to (K, resolution, resolution).

    Bicubic with the kernel widened when shrinking (antialiased), as clean-fid resizes; an image that
    already has the resolution is returned unchanged.
    """
    _, height, width = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[:, top : top + side, left : left + side]
    return _resized(square, resolution, resolution)


def resample(image: Pixels, factor: float) -> Pixels:
    """An image (K, H, W) at `factor` times its scale, sides rounded; the same kernel as `resize_square`."""
    height, width = (max(1, round(side * factor)) for side in image.shape[1:])
    return _resized(image, height, width)


def _resized(image: Pixels, height: int, width: int) -> Pixels:
    if image.shape[1:] == (height, width):
        return np.ascontiguousarray(image)
    planes = [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in image]
    return np.stack([np.asarray(plane) for plane in planes])


def crop(image: Pixels, position: tuple[int, int], size: int) -> Pixels:
    """The square of `size` pixels whose upper left corner is at position (y, x) of an image (K, H, W)."""
    y, x = position
    return np.ascontiguousarray(image[:, y : y + size, x : x + size])


def crop_positions(height: int, width: int, size: int, count: int, *key: str | int) -> list[tuple[int, int]]:
    """`count` upper left corners (y, x) of crops of `size` pixels, uniform, a pure function of `key`.

    The first k positions of a key are the same whatever the count. Raises DataError when a crop of this
    size doesn't fit.
    """
    if size > height or size > width:
        raise DataError(f"a crop of {size} x {size} pixels doesn't fit an image of {height} x {width}")
    generator = numpy_generator("crop", *key)
    corners = generator.integers(0, [height - size + 1, width - size + 1], size=(count, 2))
    return [(int(y), int(x)) for y, x in corners]


def _view(function: Callable[[Pixels], Pixels]) -> Callable[[Pixels], Pixels]:
    """A contiguous result, since torch and Arrow take no negative strides."""
    return lambda image: np.ascontiguousarray(function(image))


# On arrays (..., H, W). Turns are counter-clockwise.
VIEWS: dict[str, Callable[[Pixels], Pixels]] = {
    "identity": _view(lambda image: image),
    "hflip": _view(lambda image: image[..., ::-1]),
    "vflip": _view(lambda image: image[..., ::-1, :]),
    "rot90": _view(lambda image: np.rot90(image, 1, axes=(-2, -1))),
    "rot180": _view(lambda image: np.rot90(image, 2, axes=(-2, -1))),
    "rot270": _view(lambda image: np.rot90(image, 3, axes=(-2, -1))),
}
