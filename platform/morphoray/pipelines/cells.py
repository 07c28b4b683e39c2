"""Where the cells of an evaluation's images are: its segmentation options, and crops of single cells."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from morphoray.config import RunConfig
from morphoray.errors import ConfigError
from morphoray.evaluation.cell_crops import cell_crops
from morphoray.evaluation.segmentation import SegmentationOptions, segment
from morphoray.pipelines.layout import mapping_of
from morphoray.sections import build
from morphoray.seeds import fingerprint


def segmentation_options(config: RunConfig, sites: pa.Table) -> SegmentationOptions:
    """evaluation.segmentation for the run's images, its nucleus diameter in pixels of them.

    Raises ConfigError for wrong keys, for channels that the images don't have, and for a diameter in µm
    where the images' pixel size is unknown.
    """
    options = build(SegmentationOptions, config.evaluation.segmentation or {}, "evaluation.segmentation")
    channels = mapping_of(config).outputs
    unknown = [name for name in (options.nuclei, *options.cell_body) if name not in channels]
    if unknown:
        raise ConfigError(
            f"evaluation.segmentation: no channels {unknown}, the run's images have {', '.join(channels)}."
        )
    if options.nucleus_diameter_px is not None:
        return options
    diameter = options.diameter_px(_pixel_size_um(config, sites))
    return options.model_copy(update={"nucleus_diameter_px": diameter, "nucleus_diameter_um": None})


def _pixel_size_um(config: RunConfig, sites: pa.Table) -> float:
    """Of the run's images: what they are resampled to, or the sites' own where nothing resizes them."""
    image = config.image
    if image.um_per_pixel is not None:
        return image.um_per_pixel
    sizes = sites["pixel_size_um"].unique().to_pylist()
    if image.fit == "crop" and image.scale_to is None and len(sizes) == 1 and sizes[0]:
        return float(sizes[0])
    raise ConfigError(
        "evaluation.segmentation.nucleus_diameter_um: the pixel size of the run's images is unknown: found "
        f"image.fit {image.fit}, scale_to {image.scale_to}, and sites of {sizes[:5]} µm a pixel. Give "
        "nucleus_diameter_px in pixels of the images, or set image.um_per_pixel with image.fit: crop."
    )


@dataclass(frozen=True)
class CellFinder:
    """Finds the cells of images (K, H, W) whose channels these are, and cuts `size` pixels around each."""

    options: SegmentationOptions
    channels: tuple[str, ...]
    size: int

    def places(self, image: np.ndarray) -> np.ndarray:
        """Upper left corners (n, 2) of the crops that lie whole within the image."""
        nuclei = segment(image, self.channels, self.options).nuclei
        return cell_crops(image, nuclei, self.size).positions

    def cut(self, image: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The crops (n, K, size, size) at these corners."""
        crops = [image[:, y : y + self.size, x : x + self.size] for y, x in places]
        return np.stack(crops) if crops else np.empty((0, len(image), self.size, self.size), image.dtype)

    def settings(self) -> dict[str, Any]:
        """What the crops depend on, as JSON values."""
        return {"options": self.options.model_dump(mode="json"), "size": self.size}

    @property
    def mode(self) -> str:
        """What METRICS says of it, with the segmentation's fingerprint: cells-48px-1a2b3c4d."""
        return f"cells-{self.size}px-{fingerprint(self.settings())[:8]}"


def cell_finder(config: RunConfig, sites: pa.Table) -> CellFinder | None:
    """The finder that evaluation.cells asks for, None if it doesn't."""
    cells = config.evaluation.cells
    if cells is None:
        return None
    if cells.size > config.image.resolution:
        raise ConfigError(
            f"evaluation.cells.size: found {cells.size} pixels, the run's images have "
            f"{config.image.resolution}."
        )
    return CellFinder(segmentation_options(config, sites), mapping_of(config).outputs, cells.size)
