"""Mechanisms of action: nearest treatments' profiles, and a classifier, each beside the real ceiling."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from morphoray.errors import DataError
from morphoray.evaluation.classifier import fit_classifier
from morphoray.evaluation.measurements import feature_columns
from morphoray.evaluation.profiles import REAL, aggregate, matrix, normalise

TREATMENT = ("Metadata_compound", "Metadata_concentration_um")
WELL = ("Metadata_source", "Metadata_plate", "Metadata_well")


def treatment_profiles(images: pd.DataFrame, normalised: bool = False) -> pd.DataFrame:
    """BBBC021's protocol (Ljosa et al. 2013): by-plate normalisation, well means, medians over replicates.

    images: one row an image, with Metadata_source, is_control, plate, well, batch, moa and TREATMENT. The
    result has one row a source and treatment; Metadata_batches are the batches that it occurs in, a sorted
    tuple. Generated images without a plate are normalised by all controls; each is a well of its own.
    """
    needed = [*WELL, *TREATMENT, "Metadata_batch", "Metadata_moa", "Metadata_is_control"]
    missing = [name for name in needed if name not in images.columns]
    if missing:
        raise DataError(f"moa: no columns {missing} in the profiles of images, expected {needed}")
    table = images if normalised else normalise(images)
    features = feature_columns(table)
    # an image without a well is its own
    well = table["Metadata_well"].astype(object)
    own = [f"image {index}" for index in range(len(table))]
    table = table.assign(Metadata_well=np.where(well.notna(), well, own))
    meta = [*WELL, *TREATMENT, "Metadata_batch", "Metadata_moa", "Metadata_is_control"]
    wells = table.groupby(meta, dropna=False, sort=True)[features].mean().reset_index()
    by = ["Metadata_source", *TREATMENT, "Metadata_moa", "Metadata_is_control"]
    profiles = aggregate(wells, by)
    batches = wells.groupby(by, dropna=False, sort=True)["Metadata_batch"].agg(
        lambda values: tuple(sorted({str(value) for value in values.dropna()}))
    )
    return profiles.assign(Metadata_batches=batches.to_numpy())


@dataclass(frozen=True)
class Neighbours:
    """What the nearest treatment says of each query's mechanism.

    table: treatment, moa, neighbour, neighbour_moa, similarity, correct, answerable, one row a query in
    their order; neighbour is null where no candidate is left. answerable: a candidate has the right
    mechanism. accuracy: the share correct of those that are answerable, NaN without any.
    """

    table: pd.DataFrame
    accuracy: float
    answerable: int


def nearest_mechanism(
    queries: npt.NDArray[np.float64],
    references: npt.NDArray[np.float64],
    compounds: tuple[Sequence[str], Sequence[str]],
    mechanisms: tuple[Sequence[str], Sequence[str]],
    batches: tuple[Sequence[Collection[str]], Sequence[Collection[str]]] | None = None,
) -> Neighbours:
    """1-nearest-neighbour by cosine of queries (N, d) among references (M, d); pairs are one for each side.

    NSC, not the same compound; with `batches`, those in which each treatment occurs, NSCB: nor one that
    shares a batch (Ando et al. 2017, who leave out mechanisms of one batch as not answerable). Strict: of
    BBBC021's 103 treatments it can answer 91, and not 92, as taxol at 0.3 µM is in every week. Ties go to
    the first reference; a profile of zeros is at similarity 0 from all. Raises DataError for lengths that
    differ.
    """
    sizes = [len(queries), len(references)]
    for pair in (compounds, mechanisms, *((batches,) if batches else ())):
        if [len(side) for side in pair] != sizes:
            raise DataError(f"moa: found {[len(side) for side in pair]} labels for {sizes} profiles")
    similarity = _unit(queries) @ _unit(references).T
    allowed = np.array([[a != b for b in compounds[1]] for a in compounds[0]], bool).reshape(sizes)
    if batches:
        known = [set(batch) for batch in batches[1]]
        allowed &= np.array([[not known_ & set(a) for known_ in known] for a in batches[0]]).reshape(sizes)
    rows = []
    for index, (compound, moa) in enumerate(zip(compounds[0], mechanisms[0], strict=True)):
        candidates = np.flatnonzero(allowed[index])
        row = {
            "treatment": compound,
            "moa": moa,
            "neighbour": None,
            "neighbour_moa": None,
            "similarity": np.nan,
        }
        if len(candidates):
            nearest = int(candidates[similarity[index, candidates].argmax()])
            row |= {
                "neighbour": compounds[1][nearest],
                "neighbour_moa": mechanisms[1][nearest],
                "similarity": float(similarity[index, nearest]),
            }
        answerable = moa in {mechanisms[1][int(candidate)] for candidate in candidates}
        rows.append({**row, "correct": row["neighbour_moa"] == moa, "answerable": answerable})
    names = ["treatment", "moa", "neighbour", "neighbour_moa", "similarity", "correct", "answerable"]
    table = pd.DataFrame(rows, columns=names)
    asked = table[table["answerable"].astype(bool)]
    accuracy = float(asked["correct"].astype(float).mean()) if len(asked) else float("nan")
    return Neighbours(table, accuracy, len(asked))


@dataclass(frozen=True)
class MechanismMatch:
    """NSC and NSCB of a source's treatments among the real ones, and of the real ones: the ceiling."""

    source: str
    nsc: Neighbours
    nscb: Neighbours
    real_nsc: Neighbours
    real_nscb: Neighbours


def match_mechanisms(profiles: pd.DataFrame, features: Sequence[str], source: str) -> MechanismMatch:
    """`nearest_mechanism` on a table of treatment_profiles, controls and treatments without a moa left out.

    The ceiling is taken over those real treatments that the source has too. A generated treatment counts
    as of the batches that the same real treatment occurs in; without a real one, of its own.
    """
    treated = profiles[profiles["Metadata_moa"].notna() & ~profiles["Metadata_is_control"].astype(bool)]
    real, asked = (treated[treated["Metadata_source"] == name] for name in (REAL, source))
    if real.empty or asked.empty:
        raise DataError(
            f"moa: found {len(real)} real treatments and {len(asked)} of {source!r} with a mechanism, "
            "expected some of both"
        )
    home = dict(zip(_treatments(real), real["Metadata_batches"], strict=True))
    both = real[[treatment in set(_treatments(asked)) for treatment in _treatments(real)]]

    def neighbours(queries: pd.DataFrame, with_batch: bool) -> Neighbours:
        sides = (queries, real)
        batches = [
            [home.get(*pair) for pair in zip(_treatments(side), side["Metadata_batches"], strict=True)]
            for side in sides
        ]
        return nearest_mechanism(
            matrix(queries, features),
            matrix(real, features),
            (list(queries["Metadata_compound"]), list(real["Metadata_compound"])),
            (list(queries["Metadata_moa"]), list(real["Metadata_moa"])),
            (batches[0], batches[1]) if with_batch else None,
        )

    found = [neighbours(side, with_batch) for side in (asked, both) for with_batch in (False, True)]
    return MechanismMatch(source, *found)


@dataclass(frozen=True)
class Recognition:
    """Recall of every class, 0 to 1, by a classifier that was fitted on other real images.

    generated: of generated images; ceiling: of held-out real ones, over the same classes.
    """

    generated: Mapping[str, float]
    ceiling: Mapping[str, float]

    @property
    def balanced_accuracy(self) -> tuple[float, float]:
        """The means over classes: of generated images, and of real ones."""
        return float(np.mean([*self.generated.values()])), float(np.mean([*self.ceiling.values()]))


def recognise(
    train: pd.DataFrame,
    held_out: pd.DataFrame,
    generated: pd.DataFrame,
    features: Sequence[str],
    label: str = "Metadata_moa",
    apart: str = "Metadata_plate",
) -> Recognition:
    """Fit to real `train`, then ask for real `held_out` and for `generated`, by the column `label`.

    Scored are the classes that all three have. Raises DataError when train and held_out share a value of
    `apart`, or when fewer than two classes are left.
    """
    shared = sorted(set(train[apart].dropna()) & set(held_out[apart].dropna()), key=str)
    if shared:
        raise DataError(
            f"moa: real images of {apart} {shared[:5]} are in both parts. "
            "Split by plate or batch, not by image."
        )
    sets = [_by_class(table, features, label) for table in (train, held_out, generated)]
    classes = sorted(set(sets[0]) & set(sets[1]) & set(sets[2]))
    if len(classes) < 2:
        raise DataError(
            f"moa: found classes {classes} in training, held-out and generated images alike, "
            "expected two or more"
        )
    classifier = fit_classifier({name: sets[0][name] for name in classes})
    held, made = ({name: side[name] for name in classes} for side in sets[1:])
    return Recognition(generated=classifier.recall(made), ceiling=classifier.recall(held))


def _by_class(table: pd.DataFrame, features: Sequence[str], label: str) -> dict[str, npt.NDArray[np.float64]]:
    return {str(name): matrix(rows, features) for name, rows in table.groupby(label, sort=True)}


def _treatments(profiles: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(*(profiles[name].astype(str) for name in TREATMENT), strict=True))


def _unit(profiles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    length = np.linalg.norm(profiles, axis=1, keepdims=True)
    return profiles / np.where(length > 0, length, 1)
