"""Nuclei, cells and cytoplasm of a field, with scikit-image: thresholds and watersheds, no random numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from morphoray.errors import DataError, MissingExtraError

Labels = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Plane = npt.NDArray[np.float32]

# In nucleus diameters, so that one set serves every magnification.
SMOOTHING = 0.05  # deviation of the Gaussian over the nuclei's channel
PEAK_SMOOTHING = 0.03  # over the distance transform: bumps of the outline make no nucleus
PEAK_DISTANCE = 0.25  # between the centres of two nuclei that touch, at least
LOCAL_WINDOW = 10.0  # side of the square that is averaged over, twice, for a pixel's surroundings
DIAMETERS = (0.4, 3.0)  # of a disc of a nucleus's area: smaller is debris, larger is out of focus or a clump
LOCAL_BOUNDS = (0.7, 3.0)  # of the global threshold's height above the background
NOISE_KERNEL = ((1, -2, 1), (-2, 4, -2), (1, -2, 1))  # blind to planes: what it leaves is noise


class SegmentationOptions(BaseModel):
    """Which channels show nuclei and cell bodies, and how large a nucleus is; one of the two diameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nuclei: str = Field(description="the channel of the nuclei")
    cell_body: tuple[str, ...] = Field(min_length=1, description="channels that fill the cell; their mean")
    nucleus_diameter_px: float | None = Field(None, ge=4, description="a typical nucleus")
    nucleus_diameter_um: float | None = Field(None, gt=0, description="needs the image's pixel size")
    threshold: Literal["local", "otsu"] = Field("local", description="of nuclei: by surroundings, or one")
    minimum_contrast: float = Field(
        4.0, ge=0, description="of nuclei to background, in deviations of a pixel's noise; noise alone has 1"
    )
    cell_reach: float = Field(3.0, gt=0, description="of a cell beyond its nucleus, in nucleus diameters")

    @model_validator(mode="after")
    def _one_diameter(self) -> "SegmentationOptions":
        if (self.nucleus_diameter_px is None) == (self.nucleus_diameter_um is None):
            raise ValueError("expected either nucleus_diameter_px or nucleus_diameter_um")
        return self

    def diameter_px(self, pixel_size_um: float | None) -> float:
        """The diameter in pixels. Raises DataError below 4 pixels, or for µm without a pixel size."""
        if self.nucleus_diameter_px is not None:
            return self.nucleus_diameter_px
        if not pixel_size_um:
            raise DataError(
                "segmentation: nucleus_diameter_um needs the image's pixel size, which is unknown. "
                "Give nucleus_diameter_px instead."
            )
        diameter = (self.nucleus_diameter_um or 0) / pixel_size_um
        if diameter < 4:
            raise DataError(
                f"segmentation: a nucleus of {self.nucleus_diameter_um} µm is {diameter:.1f} pixels, "
                "expected 4 or more"
            )
        return diameter


@dataclass(frozen=True)
class Segmentation:
    """Label images (H, W) int32, 0 outside; label k, 1 … n, is one cell in all three.

    Cells whose nucleus the border cuts are in none of them. cytoplasm: the cell without its nucleus, which
    may be empty. nucleus_count: all nuclei, those at the border included.
    """

    nuclei: Labels
    cells: Labels
    cytoplasm: Labels
    nucleus_count: int

    @property
    def count(self) -> int:
        """n, the number of whole cells."""
        return int(self.nuclei.max(initial=0))


def segment(
    image: npt.NDArray[np.generic],
    channels: Sequence[str],
    options: SegmentationOptions,
    pixel_size_um: float | None = None,
) -> Segmentation:
    """Nuclei by threshold and distance-transform watershed, cells by watershed from them over the body.

    image: (K, H, W) uint8 or uint16 whose channels are named in `channels`. An image without anything that
    stands out (black, constant, noise) has no cells; that is a result, not an error. Raises DataError for
    another shape or an unknown channel.
    """
    planes = _named(image, channels, options)
    diameter = options.diameter_px(pixel_size_um)
    nuclei = find_nuclei(planes[options.nuclei], diameter, options)
    body = np.stack([_standardised(planes[name]) for name in options.cell_body]).mean(axis=0)
    cells = _spread(nuclei, body, diameter, options.cell_reach)
    inside = np.setdiff1d(np.arange(1, int(nuclei.max(initial=0)) + 1), _at_border(nuclei))
    new = np.zeros(int(nuclei.max(initial=0)) + 1, np.int32)
    new[inside] = np.arange(1, len(inside) + 1)
    whole, cells = new[nuclei], new[cells]
    return Segmentation(whole, cells, np.where(whole > 0, 0, cells), len(new) - 1)


def _named(
    image: npt.NDArray[np.generic], channels: Sequence[str], options: SegmentationOptions
) -> dict[str, Plane]:
    if image.ndim != 3 or image.dtype not in (np.uint8, np.uint16) or len(image) != len(channels):
        raise DataError(
            f"segmentation: found {image.dtype} of shape {image.shape} for channels {list(channels)}, "
            "expected (K, H, W) of uint8 or uint16 with a name for each of K"
        )
    unknown = [name for name in (options.nuclei, *options.cell_body) if name not in channels]
    if unknown:
        raise DataError(f"segmentation: no channels {unknown}, expected some of {list(channels)}")
    wanted = {options.nuclei, *options.cell_body}
    return {name: image[channels.index(name)].astype(np.float32) for name in wanted}


def find_nuclei(plane: Plane, diameter: float, options: SegmentationOptions) -> Labels:
    """Labels 1 … n of all nuclei in the plane (H, W), those that the border cuts included."""
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(plane, SMOOTHING * diameter)
    return _split(_foreground(np.sqrt(smooth), _noise(np.sqrt(plane)), diameter, options), diameter)


def _noise(plane: Plane) -> float:
    """The deviation of a pixel's noise (Immerkær 1996)."""
    from scipy import ndimage

    return float(
        np.sqrt(np.pi / 2) / 6 * np.abs(ndimage.convolve(plane, np.array(NOISE_KERNEL, np.float32))).mean()
    )


def _foreground(root: Plane, noise: float, diameter: float, options: SegmentationOptions) -> Mask:
    """Pixels of nuclei; none where what Otsu's threshold cuts off doesn't stand out from the rest.

    root: the root of the counts, whose noise is the same for dim and for bright nuclei.
    """
    from scipy import ndimage

    nothing: Mask = np.zeros(root.shape, np.bool_)
    if root.size == 0 or root.max() == root.min():
        return nothing
    threshold = _skimage().filters.threshold_otsu(root)
    centre = np.median(root[root <= threshold])
    if np.median(root[root > threshold]) - centre < options.minimum_contrast * noise:
        return nothing
    if options.threshold == "otsu":
        return np.asarray(root > threshold)
    # relative to the background, so that the bounds mean the same on any camera's offset
    side = round(LOCAL_WINDOW * diameter)
    around = ndimage.uniform_filter(ndimage.uniform_filter(root, side), side) - centre
    level = threshold - centre
    local = np.clip(around + 0.5 * level, LOCAL_BOUNDS[0] * level, LOCAL_BOUNDS[1] * level)
    return np.asarray(root - centre > local)


def _split(mask: Mask, diameter: float) -> Labels:
    """A label for each nucleus: clumps are cut where the distance to the outline is least."""
    from scipy import ndimage

    skimage = _skimage()
    area = np.pi / 4 * diameter**2
    mask = ndimage.binary_fill_holes(mask)
    distance = ndimage.distance_transform_edt(mask).astype(np.float32)
    distance = ndimage.gaussian_filter(distance, PEAK_SMOOTHING * diameter)
    regions = ndimage.label(mask)[0]
    peaks = skimage.feature.peak_local_max(
        distance, min_distance=max(1, round(PEAK_DISTANCE * diameter)), labels=regions, exclude_border=False
    )
    seeds = np.zeros(mask.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = skimage.segmentation.watershed(-distance, seeds, mask=mask)
    areas = np.bincount(labels.ravel(), minlength=1)
    keep = (areas >= DIAMETERS[0] ** 2 * area) & (areas <= DIAMETERS[1] ** 2 * area)
    keep[0] = False
    new = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    return np.asarray(new[labels])


def _spread(nuclei: Labels, body: Plane, diameter: float, reach: float) -> Labels:
    """Each nucleus's cell: the body around it up to the dim valleys between cells."""
    from scipy import ndimage

    skimage = _skimage()
    if not nuclei.any():
        return nuclei.copy()
    smooth = ndimage.gaussian_filter(body, SMOOTHING * diameter)
    near = ndimage.distance_transform_edt(nuclei == 0) <= reach * diameter
    mask = (nuclei > 0) | near
    if smooth.min() < smooth.max():
        mask &= (nuclei > 0) | (smooth > skimage.filters.threshold_li(smooth))
    cells = skimage.segmentation.watershed(-smooth, nuclei, mask=mask)
    return np.asarray(cells, np.int32)


def _standardised(plane: Plane) -> Plane:
    """The root of a plane from its 1st percentile, 0, to its 99th, 1, so that channels weigh the same."""
    low, high = np.percentile(plane, [1, 99]) if plane.size else (0.0, 1.0)
    scaled = np.clip((plane - low) / max(high - low, 1e-6), 0, None)
    return np.asarray(np.sqrt(scaled), np.float32)


def _at_border(labels: Labels) -> npt.NDArray[np.int32]:
    """The labels on the first and last rows and columns."""
    edges = [labels[:1].ravel(), labels[-1:].ravel(), labels[:, :1].ravel(), labels[:, -1:].ravel()]
    return np.unique(np.concatenate(edges))


def _skimage() -> Any:
    try:
        import skimage.feature
        import skimage.filters
        import skimage.segmentation
    except ModuleNotFoundError:
        raise MissingExtraError("scikit-image", "eval") from None
    return skimage
