"""Channel mappings: from a site's raw channels to the image that the model learns, and to a picture of it."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from morphoray.errors import ConfigError, DataError
from morphoray.sections import build

CELL_PAINTING_CHANNELS = ("nuclei", "er", "actin", "rna", "mito", "golgi")  # RxRx1's w1 to w6
IDENTITY = "identity"  # as image.mapping: all channels as they are
MAX_CHANNELS = 64

# What other datasets call the same stain.
_SAME = {
    "nuclei": "dna",
    "dapi": "dna",
    "hoechst": "dna",
    "mitochondria": "mito",
    "f-actin": "actin",
    "b-tubulin": "tubulin",
}

# The RxRx1 authors' rendering: colour (red, green, blue) and [low, high] of each channel's range.
_RXRX1_COLOURS = ((19, 0, 249), (42, 255, 31), (255, 0, 25), (45, 255, 252), (250, 0, 253), (254, 255, 40))
_RXRX1_RANGES = ((0, 51), (0, 107), (0, 64), (0, 191), (0, 89), (0, 191))

# What a channel is shown in when its mapping says nothing: RxRx1's colours, and two of our own.
_SHOWN = {
    "dna": (19, 0, 249),
    "er": (42, 255, 31),
    "actin": (255, 0, 25),
    "rna": (45, 255, 252),
    "mito": (250, 0, 253),
    "golgi": (254, 255, 40),
    "agp": (255, 128, 0),
    "tubulin": (0, 255, 120),
}

_LANES = 4  # uint16 sums carried side by side in one uint64


class ChannelColour(BaseModel):
    """What one channel adds to each output: `colour` at the level `levels[1]` and above."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    colour: tuple[int, ...]
    levels: tuple[int, int] = (0, 255)

    @model_validator(mode="after")
    def _bytes(self) -> "ChannelColour":
        low, high = self.levels
        if not (self.colour and all(0 <= value <= 255 for value in self.colour) and 0 <= low < high <= 255):
            raise ValueError(
                f"colour {list(self.colour)}, levels [{low}, {high}]: expected values in 0..255, the "
                "first level below the second"
            )
        return self


class ChannelMapping(BaseModel):
    """Named inputs to named outputs: a selection of the inputs, or a sum of a colour for each of them.

    Without `colours` the outputs are inputs, by name and in the order wanted. With `colours`, one an input
    and each with a value for every output, an image is their sum, as `colour_table` tells.
    `shown`: one RGB colour an output, for pictures of images that have neither one output nor three.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    inputs: tuple[str, ...] = Field(min_length=1, max_length=MAX_CHANNELS)
    outputs: tuple[str, ...] = Field(min_length=1, max_length=MAX_CHANNELS)
    colours: tuple[ChannelColour, ...] | None = None
    shown: tuple[ChannelColour, ...] | None = None

    @model_validator(mode="after")
    def _fits(self) -> "ChannelMapping":
        for names in (self.inputs, self.outputs):
            if len(set(names)) != len(names) or not all(names):
                raise ValueError(f"channels {list(names)}: expected distinct names")
        if self.colours is None and not set(self.outputs) <= set(self.inputs):
            raise ValueError(
                f"outputs {list(self.outputs)}: expected some of the inputs {list(self.inputs)}, or colours"
            )
        for what, colours, count, width in (
            ("colours", self.colours, len(self.inputs), len(self.outputs)),
            ("shown", self.shown, len(self.outputs), 3),
        ):
            if colours is not None and [len(item.colour) for item in colours] != [width] * count:
                raise ValueError(f"{what}: expected {count} colours of {width} values")
        return self

    @cached_property
    def _table(self) -> npt.NDArray[np.uint8]:
        return colour_table(self.colours or ())

    @cached_property
    def _shown_table(self) -> npt.NDArray[np.uint8]:
        return colour_table(self.shown or default_colours(self.outputs))

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
        if self.colours is not None:
            return _sum_tables(pixels, self._table)
        if self.outputs == self.inputs:
            return pixels
        return pixels[[self.inputs.index(name) for name in self.outputs]]

    def render(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """An image (K, H, W) as RGB (3, H, W): three channels as they are, one in grey, others in colours."""
        if image.ndim != 3 or len(image) != len(self.outputs):
            raise DataError(
                f"channel mapping {self.name!r} gives {len(self.outputs)} channels {self.outputs}, "
                f"found an image of shape {image.shape}"
            )
        if len(image) in (1, 3):
            return np.repeat(image, 3 // len(image), axis=0)
        return _sum_tables(image, self._shown_table)

    @property
    def legend(self) -> str:
        """Which channel is which in a rendered image, for one 'dna #1300f9, er #2aff1f'."""
        if self.colours is not None and len(self.outputs) == 3:
            return ", ".join(_named(*pair) for pair in zip(self.inputs, self.colours, strict=True))
        if len(self.outputs) == 1:
            return f"{self.outputs[0]} in grey"
        if len(self.outputs) == 3:
            return ", ".join(
                name if name == colour else f"{name} in {colour}"
                for name, colour in zip(self.outputs, _RGB, strict=True)
            )
        colours = self.shown or default_colours(self.outputs)
        return ", ".join(_named(*pair) for pair in zip(self.outputs, colours, strict=True))


def _named(channel: str, shown: ChannelColour) -> str:
    return f"{channel} #{bytes(shown.colour).hex()}"


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


def colour_table(colours: Sequence[ChannelColour]) -> npt.NDArray[np.uint8]:
    """The (C, 256, K) table of x = (t/255) / ((high - low)/255) + low/255, at most 1, times the colour.

    The cast to integer truncates. Formula: RxRx1's own rendering code, as the MorphoDiff paper uses it.
    """
    level = np.arange(256, dtype=np.uint8)
    rows = []
    for item in colours:
        low, high = item.levels
        x = (level / 255) / ((high - low) / 255) + low / 255
        x = np.where(x > 1.0, 1.0, x)
        rows.append(np.outer(x, item.colour).astype(np.uint8))
    return np.stack(rows)


def default_colours(channels: Sequence[str]) -> tuple[ChannelColour, ...]:
    """A colour for each channel, by what it stains; channels of other names share the hues that are left."""
    known = [_SHOWN.get(same_name(name)) for name in channels]
    left = [colour for colour in _SHOWN.values() if colour not in known]
    found = []
    for place, colour in enumerate(known):
        unknown_before = known[:place].count(None)
        found.append(ChannelColour(colour=colour or left[unknown_before % len(left)]))
    return tuple(found)


def same_name(channel: str) -> str:
    """A channel's name without regard to case, and 'dna' for what some call nuclei or DAPI."""
    name = channel.strip().lower()
    return _SAME.get(name, name)


_RGB = ("red", "green", "blue")

MAPPINGS: dict[str, ChannelMapping] = {
    mapping.name: mapping
    for mapping in (
        ChannelMapping(
            name="rxrx1_rgb",
            inputs=CELL_PAINTING_CHANNELS,
            outputs=_RGB,
            colours=tuple(
                ChannelColour(colour=colour, levels=levels)
                for colour, levels in zip(_RXRX1_COLOURS, _RXRX1_RANGES, strict=True)
            ),
        ),
        # RxRx1's files use a fifth to three quarters of a byte: each stretched to the whole of it.
        ChannelMapping(
            name="rxrx1_channels",
            inputs=CELL_PAINTING_CHANNELS,
            outputs=CELL_PAINTING_CHANNELS,
            colours=tuple(
                ChannelColour(colour=tuple(255 * (i == place) for i in range(6)), levels=levels)
                for place, levels in enumerate(_RXRX1_RANGES)
            ),
        ),
        # Shown, and seen by a network, as red, green and blue in the order of the outputs.
        ChannelMapping(
            name="bbbc021_rgb", inputs=("dapi", "tubulin", "actin"), outputs=("actin", "tubulin", "dapi")
        ),
        ChannelMapping(
            name="rohban_rgb", inputs=("dna", "er", "rna", "agp", "mito"), outputs=("rna", "mito", "dna")
        ),
        ChannelMapping(name="rgb", inputs=_RGB, outputs=_RGB),
    )
}
"""The mappings that have a name; `find_mapping` makes the others."""


def takes(mapping: ChannelMapping, channels: Sequence[str]) -> bool:
    """Whether the mapping's inputs are these channels, in this order, whatever each is called."""
    return [same_name(name) for name in mapping.inputs] == [same_name(name) for name in channels]


def find_mapping(
    wanted: str | Sequence[str] | Mapping[str, Any] | None,
    channels: Sequence[str],
    usual: str,
    key: str = "image.mapping",
) -> ChannelMapping:
    """The mapping that `key` asks for, of a dataset with these channels and that usual mapping.

    wanted: a name of MAPPINGS; `identity`, all channels as they are; a list of channels in the order wanted;
    a mapping written out; None: the usual one where it takes these channels, else identity. Selections are
    shown in the colours of the usual mapping. Raises ConfigError for what doesn't fit the channels.
    """
    own = MAPPINGS.get(usual)
    if own is not None and not takes(own, channels):
        own = None
    if wanted is None:
        wanted = own.name if own else IDENTITY
    if wanted == IDENTITY:
        wanted = tuple(channels)
    elif isinstance(wanted, str | Mapping):
        return _whole(wanted, channels, key)
    return _selection(wanted, channels, own, key)


def _whole(wanted: str | Mapping[str, Any], channels: Sequence[str], key: str) -> ChannelMapping:
    if isinstance(wanted, str) and wanted not in MAPPINGS:
        raise ConfigError(
            f"{key}: {wanted!r} is unknown; known: {', '.join(MAPPINGS)}, {IDENTITY}, or a list "
            f"of channels out of {', '.join(channels)}."
        )
    mapping = MAPPINGS[wanted] if isinstance(wanted, str) else build(ChannelMapping, wanted, key)
    if not takes(mapping, channels):
        raise ConfigError(
            f"{key}: {mapping.name!r} takes the channels {', '.join(mapping.inputs)}, the dataset "
            f"has {', '.join(channels)}. Use {IDENTITY}, or list the channels wanted, in their order."
        )
    return mapping


def _selection(
    wanted: Sequence[str], channels: Sequence[str], own: ChannelMapping | None, key: str
) -> ChannelMapping:
    known = {same_name(name): place for place, name in enumerate(channels)}
    unknown = [name for name in wanted if same_name(name) not in known]
    places = [known[same_name(name)] for name in wanted if same_name(name) in known]
    if unknown or len(set(places)) != len(places) or not places:
        raise ConfigError(
            f"{key}: found {list(wanted)}, expected one or more of the channels "
            f"{', '.join(channels)}, each at most once."
        )
    outputs = tuple(channels[place] for place in places)
    colours = own.colours if own else None
    return ChannelMapping(
        name=IDENTITY if outputs == tuple(channels) else ",".join(outputs),
        inputs=tuple(channels),
        outputs=outputs,
        shown=tuple(colours[place] for place in places) if colours else None,
    )


def bundle_mapping(manifest: Mapping[str, Any]) -> ChannelMapping:
    """The mapping in a bundle's morphoray.json: whole, or by its name alone as earlier versions wrote it.

    A folder that another program wrote says nothing: `rgb`. Raises DataError for what is no mapping.
    """
    stored = manifest.get("mapping", "rgb")
    if isinstance(stored, str):
        if stored not in MAPPINGS:
            raise DataError(
                f"morphoray.json: mapping {stored!r} is unknown, expected one of {', '.join(MAPPINGS)}, or "
                "a mapping written out."
            )
        return MAPPINGS[stored]
    try:
        return ChannelMapping.model_validate(stored)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"morphoray.json: mapping {where}: {first['msg']}") from None
