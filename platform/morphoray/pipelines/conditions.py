"""The condition stage: an encoder fitted on the training perturbations, and a vector for each of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from morphoray import schema
from morphoray.config import RunConfig
from morphoray.errors import BadFractionError
from morphoray.perturbations import find_encoder
from morphoray.perturbations.base import Encoder, from_rows
from morphoray.perturbations.context import Context, context_state, load_context
from morphoray.pipelines.layout import claim, layout_of, storage_from
from morphoray.pipelines.sites import read_sites
from morphoray.sections import build


@dataclass(frozen=True)
class Conditions:
    """A fitted encoder (name and state, as a bundle stores them) and its vectors by perturbation_id.

    context: what the model is told beside them.
    """

    encoder: str
    state: dict[str, Any]
    vectors: dict[str, np.ndarray]
    context: Context
    width: int  # of the encoder's vectors and the context's features together

    def load(self) -> Encoder:
        """The encoder itself."""
        return find_encoder(self.encoder).load(self.state)

    def without_context(self, perturbation_id: str) -> np.ndarray:
        """The condition vector (width,) float32 of a perturbation in no context."""
        return np.append(self.vectors[perturbation_id], np.zeros(self.context.width, np.float32))


def fit_conditions(config: RunConfig) -> Conditions:
    """Fit the run's encoder on its training perturbations and encode all of SITES; done once a run.

    Perturbations without a vector go to quarantine; BadFractionError past perturbations.max_bad_fraction.
    """
    layout, storage = layout_of(config), storage_from(config.storage)
    unused = ("dropout", "projection", "tokens", "hidden", "context_dropout")
    told = config.perturbations.settings()
    settings = {
        "dataset": config.dataset.model_dump(mode="json"),
        "perturbations": {key: value for key, value in told.items() if key not in unused},
    }
    uri = layout.of("conditions", "conditions.json")
    claim(storage, layout.of("conditions", "settings.json"), settings, "Conditions")
    if not storage.exists(uri):
        storage.write_json(uri, _fit(config))
    stored = storage.read_json(uri)
    vectors = {name: np.array(vector, np.float32) for name, vector in stored["vectors"].items()}
    context = load_context(stored)
    width = int(stored["width"]) + context.width
    return Conditions(stored["encoder"], stored["state"], vectors, context, width)


def _fit(config: RunConfig) -> dict[str, Any]:
    layout, storage = layout_of(config), storage_from(config.storage)
    sites = read_sites(config)
    everything = from_rows(sites)
    seen = sites.filter(pc.equal(sites["split"], "train"))
    training = from_rows(seen)
    context = Context.fit(config.perturbations.context, seen)
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
        **context_state(context),
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
