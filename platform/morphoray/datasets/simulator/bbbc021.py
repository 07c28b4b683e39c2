"""BBBC021's layout for a simulated tree: names of files, 16-bit TIFF, and the three CSV tables."""

import io
import uuid
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from morphoray.datasets.bbbc021_tables import CONTROL
from morphoray.datasets.simulator.plan import Site
from morphoray.perturbations.base import Perturbation, plain_id
from morphoray.seeds import derive_seed
from morphoray.storage import join

IMAGES = "BBBC021_v1_image.csv"
_WAVELENGTHS = {"Actin": 4, "Tubulin": 2, "DAPI": 1}  # in the order of the simulator's three channels


def channel_uris(root: str, site: Site) -> list[str]:
    """A site's files, in the order of the simulator's channels."""
    return [join(root, _folder(site), _file_name(site, stain)) for stain in _WAVELENGTHS]


def encode_tiff(plane: npt.NDArray[Any]) -> bytes:
    """TIFF bytes of one (H, W) channel, uint16, not compressed."""
    buffer = io.BytesIO()
    Image.fromarray(plane).save(buffer, "TIFF")
    return buffer.getvalue()


def tables(sites: Sequence[Site], perturbations: Sequence[Perturbation]) -> dict[str, pa.Table]:
    """The three tables by their file's name."""
    doses = {_compound(item): item for item in perturbations}
    mechanisms = [
        {"compound": _compound(item), "concentration": _dose(item), "moa": item.moa or _compound(item)}
        for item in perturbations
    ]
    structures = [{"compound": name, "smiles": item.smiles or ""} for name, item in doses.items()]
    images = [_image_row(number, site) for number, site in enumerate(sites, start=1)]
    return {
        IMAGES: pa.Table.from_pylist(images),
        "BBBC021_v1_compound.csv": pa.Table.from_pylist(structures),
        "BBBC021_v1_moa.csv": pa.Table.from_pylist(mechanisms),
    }


def _image_row(number: int, site: Site) -> dict[str, Any]:
    """A row of the image table, in the real one's order of columns."""
    files: dict[str, str] = {}
    for stain in reversed(_WAVELENGTHS):
        files[f"Image_FileName_{stain}"] = _file_name(site, stain)
        files[f"Image_PathName_{stain}"] = _folder(site)
    return {
        "TableNumber": int(site.experiment.removeprefix("Week")),
        "ImageNumber": number,
        **files,
        "Image_Metadata_Plate_DAPI": site.plate,
        "Image_Metadata_Well_DAPI": site.well,
        "Replicate": int(site.replicate),
        "Image_Metadata_Compound": _compound(site.treatment.perturbation),
        "Image_Metadata_Concentration": _dose(site.treatment.perturbation),
    }


def _folder(site: Site) -> str:
    return f"{site.experiment}/{site.plate}"


def _file_name(site: Site, stain: str) -> str:
    """<week>_<date>_<well>_s<site>_w<wavelength><GUID>.tif; Week4 has no prefix, as in the real table."""
    halves = [derive_seed(*site.key, stain, half) for half in (0, 1)]
    guid = str(uuid.UUID(int=halves[0] << 64 | halves[1])).upper()
    prefix = "" if site.experiment == "Week4" else f"{site.experiment}_150607_"
    return f"{prefix}{site.well}_s{site.site}_w{_WAVELENGTHS[stain]}{guid}.tif"


def _compound(item: Perturbation) -> str:
    name = plain_id(item.perturbation_id)
    return name.upper() if name == CONTROL else name


def _dose(item: Perturbation) -> float:
    return item.concentration_um or 0.0
