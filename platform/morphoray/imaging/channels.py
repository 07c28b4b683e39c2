"""Channel mappings: from a site's raw channels to the image that the model learns."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from morphoray.errors import DataError

CELL_PAINTING_CHANNELS = ("nuclei", "er", "actin", "rna", "mito", "golgi")  # RxRx1's w1 to w6

GALLERY_CHANNELS = ("dna", "er", "rna", "agp", "mito")  # of JUMP's and Rohban's load_data tables

# The RxRx1 authors' rendering: colour (red, green, blue) and [low, high] of each channel's range.
_RXRX1_COLOURS = ((19, 0, 249), (42, 255, 31), (255, 0, 25), (45, 255, 252), (250, 0, 253), (254, 255, 40))
_RXRX1_RANGES = ((0, 51), (0, 107), (0, 64), (0, 191), (0, 89), (0, 191))

_LANES = 4  # uint16 sums carried side by side in one uint64


@dataclass(frozen=True)
class ChannelMapping:
    """Named inputs to named outputs, as a sum of one lookup table per input channel.

    `table` is uint8 of shape (C, 256, K): what a byte of input c adds to output k. None means identity.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    table: npt.NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)

    def apply(self, raw: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
        """Map raw pixels (C, H, W) uint8 to an image (K, H, W) uint8; sums saturate at 255.

        Raises DataError when the number of channels or the bit depth is not what the mapping takes.
        """
        if raw.ndim != 3 or raw.shape[0] != len(self.inputs):
            raise DataError(
                f"channel mapping {self.name!r} takes {len(self.inputs)} channels {self.inputs}, "
                f"found an array of shape {raw.shape}"
            )
        if raw.dtype != np.uint8:
            raise DataError(f"channel mapping {self.name!r} takes 8-bit pixels, found {raw.dtype}")
        pixels = raw.astype(np.uint8, copy=False)
        if self.table is None:
            return pixels
        return _sum_tables(pixels, self.table)


def _sum_tables(raw: npt.NDArray[np.uint8], table: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Sum table[c, raw[c]] over c, up to four outputs at once.

    The outputs ride as 16-bit lanes of one uint64, so a pixel costs C look-ups instead of C x K;
    257 channels of 255 would be needed to overflow a lane.
    """
    channels, height, width = raw.shape
    outputs = table.shape[2]
    image = np.empty((outputs, height, width), dtype=np.uint8)
    for first in range(0, outputs, _LANES):
        lanes = np.zeros((channels, 256, _LANES), dtype=np.uint16)
        part = table[:, :, first : first + _LANES]
        lanes[:, :, : part.shape[2]] = part
        packed = lanes.view(np.uint64)[:, :, 0]
        total = packed[0].take(raw[0])
        for channel in range(1, channels):
            total += packed[channel].take(raw[channel])
        sums = np.minimum(total.view(np.uint16), 255).reshape(height, width, _LANES)
        for lane in range(part.shape[2]):
            image[first + lane] = sums[:, :, lane]
    return image


def colour_table(
    colours: tuple[tuple[int, int, int], ...], ranges: tuple[tuple[int, int], ...]
) -> npt.NDArray[np.uint8]:
    """The (C, 256, 3) table of x = (t/255) / ((high - low)/255) + low/255, at most 1, times the colour.

    The cast to integer truncates. Formula: RxRx1's own rendering code, as the MorphoDiff paper uses it.
    """
    level = np.arange(256, dtype=np.uint8)
    rows = []
    for colour, (low, high) in zip(colours, ranges, strict=True):
        x = (level / 255) / ((high - low) / 255) + low / 255
        x = np.where(x > 1.0, 1.0, x)
        rows.append(np.outer(x, colour).astype(np.uint8))
    return np.stack(rows)


def selection_table(inputs: tuple[str, ...], chosen: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    """The (C, 256, K) table that gives each output the input that is `chosen` for it, as it is."""
    table = np.zeros((len(inputs), 256, len(chosen)), dtype=np.uint8)
    for place, name in enumerate(chosen):
        table[inputs.index(name), :, place] = np.arange(256)
    return table


def identity(name: str, channels: tuple[str, ...]) -> ChannelMapping:
    """A mapping that leaves the channels as they are."""
    return ChannelMapping(name, channels, channels)


_RGB = ("red", "green", "blue")

_RXRX1_TABLE = colour_table(_RXRX1_COLOURS, _RXRX1_RANGES)

MAPPINGS: dict[str, ChannelMapping] = {
    mapping.name: mapping
    for mapping in (
        ChannelMapping("rxrx1_rgb", CELL_PAINTING_CHANNELS, _RGB, _RXRX1_TABLE),
        ChannelMapping(
            "rohban_rgb", GALLERY_CHANNELS, _RGB, selection_table(GALLERY_CHANNELS, ("rna", "mito", "dna"))
        ),
        identity("rgb", _RGB),
        identity("cell_painting", CELL_PAINTING_CHANNELS),
    )
}
