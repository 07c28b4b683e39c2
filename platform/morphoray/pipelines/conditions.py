"""The condition stage: an encoder fitted on the training perturbations, and a vector for each of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from morphoray import schema
from morphoray.config import RunConfig, build
from morphoray.errors import BadFractionError
from morphoray.perturbations import find_encoder
from morphoray.perturbations.base import Encoder, from_rows
from morphoray.pipelines.layout import claim, layout_of, storage_from
from morphoray.pipelines.sites import read_sites


@dataclass(frozen=True)
class Conditions:
    """A fitted encoder (name and state, as a bundle stores them) and vectors (width,) by perturbation_id."""

    encoder: str
    state: dict[str, Any]
    vectors: dict[str, np.ndarray]
    width: int

    def load(self) -> Encoder:
        """The encoder itself."""
        return find_encoder(self.encoder).load(self.state)


def fit_conditions(config: RunConfig) -> Conditions:
    """Fit the run's encoder on its training perturbations and encode all of SITES; done once a run.

    Perturbations without a vector go to quarantine; BadFractionError past perturbations.max_bad_fraction.
    """
    layout, storage = layout_of(config), storage_from(config.storage)
    settings = {
        "dataset": config.dataset.model_dump(mode="json"),
        "perturbations": config.perturbations.model_dump(
            mode="json", exclude={"dropout", "projection", "tokens", "hidden"}
        ),
    }
    uri = layout.of("conditions", "conditions.json")
    claim(storage, layout.of("conditions", "settings.json"), settings, "Conditions")
    if not storage.exists(uri):
        storage.write_json(uri, _fit(config))
    stored = storage.read_json(uri)
    vectors = {name: np.array(vector, np.float32) for name, vector in stored["vectors"].items()}
    return Conditions(stored["encoder"], stored["state"], vectors, int(stored["width"]))


def _fit(config: RunConfig) -> dict[str, Any]:
    layout, storage = layout_of(config), storage_from(config.storage)
    sites = read_sites(config)
    everything = from_rows(sites)
    training = from_rows(sites.filter(pc.equal(sites["split"], "train")))
    kind = find_encoder(config.perturbations.encoder)
    options = build(kind.options, config.perturbations.options, "perturbations")
    encoder = kind.fit(options, training, storage)
    encoded = encoder.encode(everything)
    bad = [
        {"stage": "condition", "item": item.perturbation_id, "uri": None, "reason": reason}
        for item, reason in zip(everything, encoded.reasons, strict=True)
        if reason is not None
    ]
    if bad:
        table = pa.Table.from_pylist(bad, schema=schema.QUARANTINE)
        made_by = config.fingerprint("dataset", "perturbations")
        where = layout.of("quarantine", "condition.parquet")
        storage.write_table(where, schema.stamp(table, made_by))
        _complain(config, bad, len(everything), where)
    return {
        "encoder": config.perturbations.encoder,
        "state": encoder.state(),
        "width": encoder.width,
        "vectors": {
            item.perturbation_id: vector.tolist()
            for item, vector, reason in zip(everything, encoded.vectors, encoded.reasons, strict=True)
            if reason is None
        },
    }


def _complain(config: RunConfig, bad: list[dict[str, Any]], total: int, where: str) -> None:
    first = "\n".join(f"  {row['item']}: {row['reason']}" for row in bad[:5])
    message = f"{len(bad)} of {total} perturbations have no condition vector:\n{first}\nAll are in {where}."
    if len(bad) > config.perturbations.max_bad_fraction * total:
        raise BadFractionError(
            f"{message} That is more than perturbations.max_bad_fraction = "
            f"{config.perturbations.max_bad_fraction:g}. Complete the table or the SMILES, or raise it."
        )
    print(f"{message} Their images are left out of training.", flush=True)
