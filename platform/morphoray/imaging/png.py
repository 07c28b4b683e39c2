"""Image files to arrays and back: hostile bytes become a DataError with a short reason."""

import io
import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import TiffImageFile

from morphoray.errors import DataError

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 89_478_485  # of a file; Pillow's own bound, where it warns and goes on
_TOO_LARGE = f"too large: more than {MAX_PIXELS} pixels"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FORMATS = ("PNG", "JPEG", "TIFF")
_DEPTHS = {"L": np.uint8, "RGB": np.uint8, "I;16": np.uint16, "I;16B": np.uint16}
_STACK = "morphoray:channels"  # the keyword of a stack's channel names
_MAX_PLANES = 64
_SAMPLE_FORMAT, _UNSIGNED = 339, 1  # of TIFF


def encode_image(image: Pixels, channels: Sequence[str], compress_level: int = 6) -> bytes:
    """PNG bytes of an image (K, H, W) uint8 with any number of channels; decode_png reads it back.

    One or three channels are a plain PNG. Others are a stack: a grey PNG (K x H rows, W columns) with the
    planes one below the other, and the channels' names as a JSON list in its text `morphoray:channels`.
    """
    if len(image) in (1, 3):
        return encode_png(image, compress_level)
    if image.ndim != 3 or len(image) != len(channels) or not 1 < len(image) <= _MAX_PLANES:
        raise DataError(
            f"a stack takes an array (K, H, W) and K names, K at most {_MAX_PLANES}; found {image.shape} and "
            f"{list(channels)}"
        )
    stacked = image.reshape(1, -1, image.shape[2])
    return encode_png(stacked, compress_level, {_STACK: json.dumps(list(channels))})


def encode_png(image: Pixels, compress_level: int = 6, text: Mapping[str, str] | None = None) -> bytes:
    """PNG bytes of an image (3, H, W) or (1, H, W) uint8, with `text` as its metadata."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise DataError(
            f"a PNG takes an array (3, H, W) or (1, H, W) of uint8, found {image.shape} {image.dtype}"
        )
    pixels = image[0] if image.shape[0] == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
    buffer, info = io.BytesIO(), PngInfo()
    for keyword, value in (text or {}).items():
        info.add_itxt(keyword, value)
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=compress_level, pnginfo=info)
    return buffer.getvalue()


def decode_png(data: bytes) -> Pixels:
    """The 8-bit image (K, H, W) in PNG bytes, of a stack all planes. Raises DataError with the reason."""
    return decode_channels(data)[0]


def decode_channels(data: bytes) -> tuple[Pixels, tuple[str, ...]]:
    """What decode_png gives, and the names of a stack's channels; none for a plain PNG of 1 or 3."""
    found, text = _decode(data, ("PNG",))
    if found.dtype != np.uint8:
        raise DataError("wrong mode: 16 bits a channel, expected 8")
    pixels = found.astype(np.uint8, copy=False)
    if text is None:
        return pixels, ()
    channels = _names(text)
    _, height, width = pixels.shape
    if len(pixels) != 1 or height % len(channels):
        raise DataError(f"corrupt: {pixels.shape} is no stack of {len(channels)} planes")
    return pixels.reshape(len(channels), -1, width), channels


def _names(text: str) -> tuple[str, ...]:
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if (
        not isinstance(names, list)
        or not 1 < len(names) <= _MAX_PLANES
        or not all(isinstance(name, str) for name in names)
    ):
        raise DataError(f"corrupt: {_STACK} is no list of 2 to {_MAX_PLANES} names")
    return tuple(names)


def decode_image(data: bytes, formats: Sequence[str] = _FORMATS) -> npt.NDArray[np.generic]:
    """Pixels (K, H, W) of a PNG, JPEG or TIFF of one page: K 1 or 3 of uint8, or K 1 of uint16.

    12-bit and big-endian TIFFs are uint16 too. Raises DataError with a short reason: zero bytes, truncated,
    corrupt, not an image, wrong mode, several pages, too large. A file's ending says nothing of its format.
    """
    return _decode(data, formats)[0]


def _decode(data: bytes, formats: Sequence[str]) -> tuple[npt.NDArray[np.generic], str | None]:
    """The pixels, and the text that names a stack's channels."""
    if not data:
        raise DataError("zero bytes")
    chunks = list(_chunks(data)) if data.startswith(_SIGNATURE) else []
    try:
        with Image.open(io.BytesIO(data), formats=list(formats)) as image:
            text, problem = image.info.get(_STACK), _problem(image)
            pixels = np.zeros((0, 0)) if problem else np.asarray(image, dtype=_DEPTHS[image.mode])
    except UnidentifiedImageError:
        raise DataError(f"not an image: expected one of {', '.join(formats)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(_TOO_LARGE) from None
    except Exception as error:  # Pillow's decoders raise nearly any class on bytes made to break them.
        raise DataError(f"corrupt: {error}") from None
    if problem:
        raise DataError(problem)
    if chunks and not pixels[-1].any():  # seldom so; inflating once more costs as much as decoding
        _check_rows(chunks)
    planes = pixels[np.newaxis] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return planes, text


def _problem(image: Image.Image) -> str:
    """Why an opened image isn't decoded, or nothing."""
    if image.width * image.height > MAX_PIXELS:
        return _TOO_LARGE
    if (pages := getattr(image, "n_frames", 1)) > 1:
        return f"{pages} pages, expected 1. Store each plane as a file of its own."
    if image.mode not in _DEPTHS:
        return f"wrong mode: {image.mode}, expected one of {', '.join(_DEPTHS)}"
    tiles = image.tile if isinstance(image, ImageFile) else ()
    if image.mode == "RGB" and any("16" in str(tile.args) for tile in tiles):  # Pillow halves them
        return "wrong mode: 16 bits a channel of three, expected 8. Store each channel as a file of its own."
    if isinstance(image, TiffImageFile):
        kinds = image.tag_v2.get(_SAMPLE_FORMAT, _UNSIGNED)
        if set(np.atleast_1d(kinds)) != {_UNSIGNED}:
            return f"wrong mode: TIFF sample format {kinds}, expected {_UNSIGNED} (unsigned integers)"
    return ""


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and body of a PNG's chunks up to IEND, each one's CRC checked, since Pillow skips the pixels'.

    Costs about 0.1 ms for the 200 kB of a 512 x 512 channel.
    """
    view, at, end = memoryview(data), len(_SIGNATURE), len(data)
    kind = b""
    while kind != b"IEND":
        if at + 12 > end:
            raise DataError(f"truncated: {end} bytes, no end marker")
        length = int.from_bytes(view[at : at + 4], "big")
        stop = at + 8 + length
        if stop + 4 > end:
            raise DataError(f"truncated: {end} bytes, a chunk reaches to {stop + 4}")
        if zlib.crc32(view[at + 4 : stop]) != int.from_bytes(view[stop : stop + 4], "big"):
            raise DataError(f"corrupt: wrong checksum at byte {stop}")
        kind = data[at + 4 : at + 8]
        yield kind, view[at + 8 : stop]
        at = stop + 4


def _check_rows(chunks: Sequence[tuple[bytes, memoryview]]) -> None:
    """Check that the stream of a PNG without interlacing has all rows: Pillow leaves absent ones zero."""
    header = next(body for kind, body in chunks if kind == b"IHDR")
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header[:13])
    expected = height * (1 + (width * bits * (3 if colour == 2 else 1) + 7) // 8)
    stream = b"".join(body for kind, body in chunks if kind == b"IDAT")
    try:
        found = len(zlib.decompressobj().decompress(stream, expected))
    except zlib.error as error:
        raise DataError(f"corrupt: {error}") from None
    if found < expected and not interlaced:
        raise DataError(f"truncated: {found} bytes of pixels, expected {expected}")


def grid(images: Sequence[Pixels], columns: int, gap: int = 2) -> Pixels:
    """A contact sheet (3, rows, columns) of images (3, H, W) or (1, H, W) of one size, row by row.

    White lines of `gap` pixels lie between them; unused places stay white.
    """
    if not images or columns < 1:
        raise DataError(f"a grid takes at least one image and one column, found {len(images)} and {columns}")
    _, height, width = images[0].shape
    rows = -(-len(images) // columns)
    shape = (3, rows * (height + gap) - gap, columns * (width + gap) - gap)
    sheet = np.full(shape, 255, dtype=np.uint8)
    for index, image in enumerate(images):
        if image.shape[1:] != (height, width):
            raise DataError(f"a grid takes images of one size, found {image.shape[1:]} and {(height, width)}")
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet
