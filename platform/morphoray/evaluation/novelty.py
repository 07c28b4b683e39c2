"""How far an unseen perturbation lies from the nearest one trained on: by structure, else by condition."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from morphoray.perturbations.base import Perturbation
from morphoray.perturbations.rdkit import morgan_fingerprints, standardised

RADIUS, BITS = 2, 2048  # of Morgan fingerprints
TANIMOTO, COSINE = "1 − Tanimoto", "1 − cosine"


@dataclass(frozen=True)
class Novelty:
    """The nearest training perturbation and the distance to it, 0 (the same) to 1 (cosine: to 2).

    kind: TANIMOTO of Morgan fingerprints, or COSINE of condition vectors.
    """

    nearest: str
    distance: float
    kind: str


def novelties(
    unseen: Sequence[Perturbation],
    training: Sequence[Perturbation],
    vectors: Mapping[str, npt.NDArray[np.float32]],
) -> dict[str, Novelty]:
    """Novelty by perturbation_id of those that have one. Controls are no training perturbations here.

    Compounds are compared by the structure of their neutral parents, whatever the dose; all that have no
    valid SMILES, or no training compound to compare with, by condition `vectors` (width,). Raises
    MissingExtraError where there are SMILES and no rdkit.
    """
    trained = [item for item in training if not item.is_control]
    items = [*unseen, *trained]
    prints = _fingerprints(items)
    conditions = {
        item.perturbation_id: vectors[item.perturbation_id].astype(np.float64)
        for item in items
        if item.perturbation_id in vectors
    }
    found = {}
    for item in unseen:
        nearest = _nearest(item, trained, prints, TANIMOTO) or _nearest(item, trained, conditions, COSINE)
        if nearest is not None:
            found[item.perturbation_id] = nearest
    return found


def _fingerprints(items: Sequence[Perturbation]) -> dict[str, npt.NDArray[np.float64]]:
    """By perturbation_id, of the perturbations with a valid SMILES."""
    known = [item for item in items if item.smiles]
    if not known:
        return {}
    smiles = standardised([item.smiles or "" for item in known])
    values, reasons = morgan_fingerprints(smiles, RADIUS, BITS, counts=False)
    return {
        item.perturbation_id: row.astype(np.float64)
        for item, row, reason in zip(known, values, reasons, strict=True)
        if reason is None
    }


def _nearest(
    item: Perturbation,
    trained: Sequence[Perturbation],
    rows: Mapping[str, npt.NDArray[np.float64]],
    kind: str,
) -> Novelty | None:
    """None where the perturbation, or every training one, has no row or one of zeros."""
    names = [each.perturbation_id for each in trained if each.perturbation_id in rows]
    own = rows.get(item.perturbation_id)
    if own is None or not names:
        return None
    others = np.stack([rows[name] for name in names])
    products = others @ own
    squares = (others**2).sum(1), float(own @ own)
    scale = squares[0] + squares[1] - products if kind == TANIMOTO else np.sqrt(squares[0] * squares[1])
    similarity = np.divide(products, scale, out=np.full(len(names), -np.inf), where=scale > 0)
    best = int(similarity.argmax())
    if not np.isfinite(similarity[best]):
        return None
    return Novelty(names[best], max(0.0, float(1 - similarity[best])), kind)
