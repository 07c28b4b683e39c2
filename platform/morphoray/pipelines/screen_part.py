"""A part of a screen: molecules to vectors, images, features and scores, in an actor that stays."""

from typing import Any

import numpy as np
import pyarrow as pa

from morphoray import schema
from morphoray.config import RunConfig, ScreenConfig
from morphoray.perturbations.base import Perturbation
from morphoray.pipelines.generate import load, vectors_for
from morphoray.pipelines.layout import layout_of, storage_from
from morphoray.pipelines.stream import Item, pack
from morphoray.screening.scores import paired_effect

TOP, COLUMNS = 5, 8  # molecules in the final picture, and images of each

PART = pa.schema(
    [
        *(field for field in schema.HITS if field.name not in ("rank", "bundle_fingerprint")),
        # PNG in RGB, of the part's best only, since the best of all are among these; line 0 is the control.
        pa.field("images", pa.list_(pa.binary())),
    ]
)


class ScreenPart:
    """An actor that holds the bundle, the extractor and the control's images, and scores molecules."""

    def __init__(self, config: RunConfig, control: Perturbation) -> None:
        from morphoray.diffusion.generate import SamplerSettings
        from morphoray.evaluation.features import load_extractor

        generation, storage = config.generation, storage_from(config.storage)
        self._section: ScreenConfig = config.screen
        self._bundle = load(storage, layout_of(config).bundle, use_gpu=generation.gpus_per_actor > 0)
        device = next(self._bundle.denoiser.parameters()).device.type
        channels = self._bundle.mapping.outputs
        self._features = load_extractor(config.screen.extractor, device, storage, channels)
        self._sampling = SamplerSettings(
            sampler=generation.sampler,
            steps=generation.steps,
            guidance_scale=generation.guidance_scale,
            seed=config.seed if generation.seed is None else generation.seed,
            resolution=int(self._bundle.manifest["resolution"]),
            batch_size=generation.batch_size,
            precision=generation.precision,
        )
        vectors, _ = vectors_for(self._bundle.manifest, [control])
        self._control_id = control.perturbation_id
        self._control_images = self._images(vectors)
        self._control = self._features(self._control_images)

    def _images(self, vectors: np.ndarray) -> np.ndarray:
        """n images of each of the vectors (N, width), as uint8 (N x n, K, H, W)."""
        from morphoray.diffusion.generate import SHARED_NOISE, ImageRequest, generate

        n = self._section.n
        requests = [ImageRequest(SHARED_NOISE, vector, index) for vector in vectors for index in range(n)]
        return np.stack(list(generate(self._bundle, requests, self._sampling)))

    def __call__(self, item: Item) -> Item:
        """The part's rows of PART."""
        n, names = self._section.n, list(item["ids"])
        asked = [
            Perturbation(
                name,
                "compound",
                str(smiles),
                concentration_um=self._section.concentration_um,
                cell_type=self._section.cell_type,
                experiment=self._section.experiment,
            )
            for name, smiles in zip(names, item["smiles"], strict=True)
        ]
        vectors, reasons = vectors_for(self._bundle.manifest, asked)
        rows = [
            part_row(int(line), molecule.perturbation_id, str(molecule.smiles), reason)
            for line, molecule, reason in zip(item["lines"], asked, reasons, strict=True)
        ]
        good = [index for index, reason in enumerate(reasons) if reason is None]
        if good:
            images = self._images(vectors[good]).reshape(len(good), n, *self._control_images.shape[1:])
            features = self._features(images.reshape(-1, *images.shape[2:])).reshape(len(good), n, -1)
            for place, index in enumerate(good):
                score, error = paired_effect(features[place], self._control)
                rows[index] |= {"score": score, "score_std": error, "n_generated": n}
            order = sorted(range(len(good)), key=lambda place: -rows[good[place]]["score"])
            for place in order[:TOP]:
                rows[good[place]]["images"] = self._pictures(images[place])
        if item["with_control"]:
            control = part_row(0, self._control_id, "", "the control")
            rows.append(control | {"n_generated": n, "images": self._pictures(self._control_images)})
        table = schema.stamp(pa.Table.from_pylist(rows, schema=PART), self._bundle.fingerprint)
        return {"name": item["name"], "table": pack(table), "count": len(names)}

    def _pictures(self, images: np.ndarray) -> list[bytes]:
        from morphoray.imaging.png import encode_png

        return [encode_png(self._bundle.mapping.render(image)) for image in images[:COLUMNS]]


def part_row(line: int, name: str, smiles: str, reason: str | None) -> dict[str, Any]:
    """A row of PART without a score."""
    nothing = {"score": None, "score_std": None, "n_generated": 0, "images": None}
    return {"line": line, "molecule_id": name, "smiles": smiles, "reason": reason, **nothing}
