"""Raw pixels of a site, read from its files; what is wrong with one becomes a DataError with the reason."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from morphoray.errors import DataError, MissingObjectError
from morphoray.imaging.png import decode_image
from morphoray.storage import Storage


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
        pixels = decode_image(storage.read_bytes(uri))
    except MissingObjectError:
        raise DataError(f"{uri}: missing") from None
    except DataError as error:
        raise DataError(f"{uri}: {error}") from None
    low, high = pixels.min(), pixels.max()
    if low == high:
        raise DataError(f"{uri}: {'all black' if high == 0 else f'constant: every pixel is {high}'}")
    return pixels


def _describe(plane: npt.NDArray[np.generic]) -> str:
    return f"{plane.shape[1]} x {plane.shape[2]} {plane.dtype}"
