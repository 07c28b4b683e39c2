"""Raw pixels of a site, read from its files; what is wrong with one becomes a DataError with the reason."""

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from morphoray.config import ImageConfig
from morphoray.errors import DataError, MissingObjectError
from morphoray.imaging.crops import resample
from morphoray.imaging.intensity import correct_illumination, stretch, to_uint8
from morphoray.imaging.png import decode_image
from morphoray.storage import Storage

# What reading a site needs of its row in SITES.
SITE_COLUMNS = ("site_id", "channel_uris", "illumination_uris", "intensity_ranges", "pixel_size_um")
ILLUMINATIONS = 16  # functions that a process keeps; a plate has one a channel


def read_site(site: Mapping[str, Any], image: ImageConfig, storage: Storage) -> npt.NDArray[np.uint8]:
    """The channels (C, H, W) uint8 of a site, a mapping with SITE_COLUMNS: corrected, in 8 bits, at scale.

    Pixels are divided by the site's illumination functions before its intensity ranges bring them to 8
    bits (image.illumination: stretched does it the other way round), then resampled to image.um_per_pixel.
    Raises DataError with the file and the reason; storage that fails raises StorageError.
    """
    raw = read_raw(site["channel_uris"], storage)
    functions = site["illumination_uris"] if image.illumination != "off" else None
    first, ranges = site["channel_uris"][0], site["intensity_ranges"]
    if functions and image.illumination == "stretched":
        raw, ranges = _correct(stretch(raw), functions, storage), [0.0, 255.0] * len(raw)
    elif functions:
        raw = _correct(raw, functions, storage)
    try:
        pixels = to_uint8(raw, ranges)
    except DataError as error:
        raise DataError(f"{first}: {error}") from None
    if image.um_per_pixel is None:
        return pixels
    if site["pixel_size_um"] is None:
        raise DataError(f"{first}: no pixel size, which image.um_per_pixel needs. Give it to the importer.")
    return resample(pixels, site["pixel_size_um"] / image.um_per_pixel)


def _correct(raw: npt.NDArray[np.generic], uris: Sequence[str], storage: Storage) -> npt.NDArray[np.float32]:
    """Raw pixels (C, H, W) divided by the functions in C files. Raises DataError with the function's file."""
    if len(uris) != len(raw):
        raise DataError(
            f"{uris[0]}: {len(uris)} illumination functions, expected one for each of {len(raw)} channels"
        )
    corrected = np.empty(raw.shape, np.float32)
    for channel, uri in enumerate(uris):
        function = _read_illumination(uri, storage)
        try:
            corrected[channel] = correct_illumination(raw[channel], function)
        except DataError as error:
            raise DataError(f"{uri}: {error}") from None
    return corrected


@lru_cache(ILLUMINATIONS)
def _read_illumination(uri: str, storage: Storage) -> npt.NDArray[np.floating[Any]]:
    """The illumination function (H, W) in a .npy file. Raises DataError with the file and the reason."""
    try:
        data = io.BytesIO(storage.read_bytes(uri))
    except MissingObjectError:
        raise DataError(f"{uri}: missing illumination function") from None
    try:
        function: npt.NDArray[np.floating[Any]] = np.lib.format.read_array(data, allow_pickle=False)
    except Exception as error:  # NumPy's reader raises nearly any class on bytes made to break it.
        raise DataError(f"{uri}: not a .npy array ({error})") from None
    if function.ndim != 2 or function.dtype.kind != "f":
        raise DataError(f"{uri}: {function.dtype} of shape {function.shape}, expected (H, W) of floats")
    return function


def read_raw(uris: Sequence[str], storage: Storage) -> npt.NDArray[np.generic]:
    """Raw pixels (C, H, W), uint8 or uint16: one single-channel file a channel, or one file for all.

    Raises DataError whose message is the file and the reason: missing, zero bytes, truncated, corrupt,
    wrong mode, sizes differ, constant (an all-black image). Storage that fails raises StorageError.
    """
    if not uris:
        raise DataError("no channel files")
    planes = [_read_file(uri, storage) for uri in uris]
    if len(planes) == 1:
        return planes[0]
    for uri, plane in zip(uris, planes, strict=True):
        if plane.shape[0] != 1:
            raise DataError(
                f"{uri}: wrong mode: {plane.shape[0]} channels, expected 1 in each of {len(uris)} files"
            )
        if plane.shape != planes[0].shape or plane.dtype != planes[0].dtype:
            raise DataError(
                f"{uri}: sizes differ: {_describe(plane)}, expected {_describe(planes[0])} as in {uris[0]}"
            )
    return np.concatenate(planes)


def _read_file(uri: str, storage: Storage) -> npt.NDArray[np.generic]:
    try:
        data = storage.read_bytes(uri)
    except MissingObjectError:
        raise DataError(f"{uri}: missing") from None
    try:
        pixels = decode_image(data)
    except DataError as error:
        raise DataError(f"{uri}: {error}") from None
    low, high = pixels.min(), pixels.max()
    if low == high:
        raise DataError(f"{uri}: {'all black' if high == 0 else f'constant: every pixel is {high}'}")
    return pixels


def _describe(plane: npt.NDArray[np.generic]) -> str:
    return f"{plane.shape[1]} x {plane.shape[2]} {plane.dtype}"
