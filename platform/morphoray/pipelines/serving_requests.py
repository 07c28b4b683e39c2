"""What the endpoint may be asked for, and from a request to the images to make."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from morphoray.imaging.channels import bundle_mapping
from morphoray.perturbations import find_encoder
from morphoray.perturbations.base import Encoder, Perturbation, takes_molecules
from morphoray.perturbations.context import load_context
from morphoray.pipelines.generate import known_perturbations, read_manifest
from morphoray.storage import Storage

MAX_IMAGES = 64


class ServiceError(Exception):
    """A request that can't be answered: an HTTP status and a message for who sent it."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


class ImagesRequest(BaseModel):
    """Images of a perturbation that the bundle knows, or of a molecule."""

    model_config = ConfigDict(extra="forbid")

    bundle: str | None = Field(None, description="may be left out where one bundle is served")
    perturbation_id: str | None = Field(None, min_length=1, max_length=5000)
    smiles: str | None = Field(None, min_length=1, max_length=5000)
    concentration_um: float | None = Field(None, ge=0, allow_inf_nan=False, description="micromolar")
    cell_type: str | None = Field(None, min_length=1, max_length=200, description="default: any of them")
    experiment: str | None = Field(None, min_length=1, max_length=200, description="default: any of them")
    n: int = Field(1, ge=1, le=MAX_IMAGES, description="how many images")
    seed: int = Field(0, ge=0, le=2**53 - 1)
    index_start: int = Field(0, ge=0, le=2**31 - 1 - MAX_IMAGES, description="the first image's index")
    shared_noise: bool = Field(False, description="the same noise, so the same cells, for every perturbation")
    sampler: Literal["ddpm", "ddim", "dpmsolver++"] | None = Field(None, description="default: the bundle's")
    steps: int | None = Field(None, ge=1, le=250, description="default: the bundle's")
    guidance_scale: float | None = Field(None, ge=0, le=30, description="default: the bundle's")
    format: Literal["png", "channels"] = Field(
        "png",
        description="png: to look at, in RGB; channels: the bundle's channels as they are, a grey PNG of "
        "planes one below the other where there are neither one nor three",
    )

    @model_validator(mode="after")
    def _one_perturbation(self) -> "ImagesRequest":
        if (self.perturbation_id is None) == (self.smiles is None):
            found = "both" if self.smiles else "neither"
            raise ValueError(f"expected perturbation_id or smiles, found {found}")
        if self.concentration_um is not None and self.smiles is None:
            raise ValueError("concentration_um belongs to smiles; a perturbation_id has its own")
        return self


class ImageOut(BaseModel):
    """One image."""

    index: int
    png: str = Field(description="base64")


class ImagesResponse(BaseModel):
    """The images, and all that they are a function of."""

    bundle: str
    bundle_fingerprint: str
    perturbation_id: str
    cell_type: str | None = Field(None, description="absent: none was asked for")
    experiment: str | None = Field(None, description="absent: none was asked for")
    seed: int
    shared_noise: bool
    sampler: str
    steps: int
    guidance_scale: float
    resolution: int
    channels: list[str] = Field(description="of the bundle's images, in order")
    images: list[ImageOut]


@dataclass(frozen=True)
class Sampling:
    """What the images of one sampler run have in common."""

    bundle: str
    sampler: str
    steps: int
    guidance_scale: float


@dataclass(frozen=True)
class Work:
    """One image to make: vector (width,) float32; raw: not in RGB.

    seed, index and, unless it is shared, the perturbation choose the noise.
    """

    sampling: Sampling
    perturbation: Perturbation
    vector: np.ndarray
    index: int
    seed: int
    raw: bool = False
    shared_noise: bool = False


@dataclass(frozen=True)
class Made:
    """One image as PNG bytes, the size of the batch it was made in, and seconds of waiting and of work."""

    png: bytes
    batch_size: int
    waited_s: float
    worked_s: float


class Catalog:
    """The served bundles' manifests and encoders by name: enough to check a request, without weights."""

    def __init__(self, storage: Storage, bundles: Mapping[str, str]) -> None:
        self.manifests = {name: read_manifest(storage, uri) for name, uri in bundles.items()}
        self.mappings = {name: bundle_mapping(manifest) for name, manifest in self.manifests.items()}
        self._known = {
            name: {item.perturbation_id: item for item in known_perturbations(manifest)}
            for name, manifest in self.manifests.items()
        }
        self._encoders: dict[str, Encoder] = {
            name: find_encoder(manifest["condition"]["encoder"]).load(manifest["condition"]["state"])
            for name, manifest in self.manifests.items()
        }

    def takes_smiles(self, name: str) -> bool:
        """Whether a bundle makes images of any molecule."""
        return takes_molecules(self._encoders[name])

    def work(self, request: ImagesRequest) -> list[Work]:
        """One Work an image. An image of a SMILES has the SMILES as its perturbation_id.

        Raises ServiceError: 404 for an unknown bundle or perturbation, 422 for one without a vector or for a
        context that the bundle doesn't know.
        """
        name = self._bundle(request.bundle)
        item = self._perturbation(name, request)
        item = replace(item, cell_type=request.cell_type, experiment=request.experiment)
        encoded = self._encoders[name].encode([item])
        if encoded.reasons[0] is not None:
            unknown = item.perturbation_id not in self._known[name] and request.smiles is None
            raise ServiceError(404 if unknown else 422, f"bundle {name!r}: {encoded.reasons[0]}")
        extended = load_context(self.manifests[name]["condition"]).extended(encoded, [item])
        (vector,), (refusal,) = extended.vectors, extended.reasons
        if refusal is not None:
            raise ServiceError(422, f"bundle {name!r}: {refusal}")
        usual: dict[str, Any] = self.manifests[name].get("sampling", {})
        sampling = Sampling(
            name,
            request.sampler or usual.get("sampler", "ddpm"),
            request.steps or usual.get("steps", 50),
            usual.get("guidance_scale", 1.0) if request.guidance_scale is None else request.guidance_scale,
        )
        indices = range(request.index_start, request.index_start + request.n)
        raw = request.format == "channels"
        shared = request.shared_noise
        return [Work(sampling, item, vector, index, request.seed, raw, shared) for index in indices]

    def _bundle(self, name: str | None) -> str:
        names = list(self.manifests)
        if name is None and len(names) > 1:
            raise ServiceError(422, f"bundle: missing, expected one of {', '.join(names)}")
        if name is not None and name not in names:
            raise ServiceError(404, f"unknown bundle {name!r}, expected one of {', '.join(names)}")
        return name or names[0]

    def _perturbation(self, name: str, request: ImagesRequest) -> Perturbation:
        encoder = self._encoders[name]
        if request.smiles is not None:
            if not takes_molecules(encoder):
                raise ServiceError(
                    422,
                    f"bundle {name!r}: its encoder is {encoder.name!r}, which takes no SMILES; give an id",
                )
            smiles = request.smiles.strip()
            return Perturbation(smiles, "compound", smiles, concentration_um=request.concentration_um)
        wanted, known = str(request.perturbation_id), self._known[name]
        if wanted in known:
            return known[wanted]
        if encoder.name == "table":  # which may have vectors of perturbations that have no images
            return Perturbation(wanted, "compound")
        near = difflib.get_close_matches(wanted[:100], known, n=3)
        hint = f"nearest: {', '.join(near)}" if near else f"GET /v1/bundles lists the {len(known)} known ones"
        raise ServiceError(404, f"bundle {name!r}: unknown perturbation {wanted[:100]!r}; {hint}")
