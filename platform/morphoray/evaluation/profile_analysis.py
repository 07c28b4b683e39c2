"""Profiles of real and generated images to what they say: agreement, clusters, mechanisms, maps, words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from morphoray.errors import DataError
from morphoray.evaluation.distances import FLOOR, Distance, compare, frechet
from morphoray.evaluation.measurements import feature_columns
from morphoray.evaluation.measures import CONTROL
from morphoray.evaluation.moa import MechanismMatch, match_mechanisms, treatment_profiles
from morphoray.evaluation.moved_features import cohens_d, describe, moved_features
from morphoray.evaluation.profile_recognition import LABELS, recognitions
from morphoray.evaluation.profile_results import (
    Cells,
    Estimate,
    Mechanisms,
    MovedFeature,
    ProfileMap,
    ProfileResults,
    SourceProfiles,
)
from morphoray.evaluation.profile_scores import (
    Agreement,
    Clustering,
    agreement,
    clustering,
    principal_components,
    umap_coordinates,
)
from morphoray.evaluation.profiles import (
    REAL,
    fields_of_view,
    matrix,
    normalise,
    real_controls,
    select_features,
    with_cells,
)
from morphoray.evaluation.statistics import bootstrap_interval
from morphoray.seeds import numpy_generator

Float64 = npt.NDArray[np.float64]
T = TypeVar("T")

DRAWS = 10  # of a distance
CLIP = 10.0  # robust deviations of real controls: one cell in the corner moves no cluster
MOVED = 3  # features of a perturbation
MOST_MAPPED = 600  # images of a source on a map


def profile_results(
    images: pd.DataFrame,
    methods: Sequence[str],
    channels: Sequence[str],
    *,
    by: str | None = "Metadata_plate",
    seed: int = 0,
    umap: bool = True,
    made_by: str = "",
    notes: Sequence[str] = (),
) -> ProfileResults:
    """Results of profiles of images: Metadata_source REAL or a method, and the columns that moa.py needs.

    by: the column that real images are normalised in. Images without cells are counted and left out, and so
    are real images of groups with fewer than two controls that have cells. What too few images allow is
    None, or `problem` says why nothing could be told.
    """
    sources = [REAL, *methods]
    counts = {name: _counts(images[images["Metadata_source"] == name]) for name in sources}
    words = "all real controls" if by is None else f"real controls of each {by.removeprefix('Metadata_')}"
    bare = ProfileResults(
        cells={name: _cells(images[images["Metadata_source"] == name], ()) for name in sources},
        counts=counts,
        made_by=made_by,
        normalised=words,
        notes=notes,
    )
    try:
        usable, lost = _with_controls(images, by)
        scaled = normalise(usable, by)
        selected = select_features(scaled)
        known, _ = with_cells(scaled, selected)
        head = known[[name for name in known if name.startswith("Metadata_")]]
        kept = pd.concat([head, known[selected].clip(-CLIP, CLIP)], axis=1)
        found = _Analysis(kept, selected, methods, channels, seed)
        return replace(
            bare,
            cells={name: _cells(images[images["Metadata_source"] == name], selected) for name in sources},
            features=(len(feature_columns(images)), len(selected)),
            sources=found.sources(),
            moved=found.moved(),
            maps=found.maps(umap),
            notes=[*notes, *lost],
        )
    except DataError as error:
        return replace(bare, problem=str(error))


def _with_controls(images: pd.DataFrame, by: str | None) -> tuple[pd.DataFrame, list[str]]:
    """The images without real ones of groups that can't be normalised, and what is to be said of it."""
    if by is None:
        return images, []
    usable = images[real_controls(images) & (images["Metadata_cell_count"] > 0)]
    counts = usable[by].value_counts()
    kept = images[by].isna() | images[by].isin(counts.index[counts >= 2])
    if kept.all():
        return images, []
    what = by.removeprefix("Metadata_")
    lost = sorted(images.loc[~kept, by].unique())
    return images[kept].reset_index(drop=True), [
        f"{int((~kept).sum())} real images of {len(lost)} {what}s without two controls that have cells are "
        f"left out: {', '.join(lost[:5])}{', …' if len(lost) > 5 else ''}."
    ]


def _cells(images: pd.DataFrame, selected: Sequence[str]) -> Cells:
    count = images["Metadata_cell_count"].to_numpy(np.float64)
    known = np.isfinite(images[list(selected)].to_numpy(np.float64)).all(axis=1)
    incomplete = int((~known & (count > 0)).sum()) if len(selected) else 0
    return Cells(
        len(images), int((count == 0).sum()), incomplete, float(count.mean()) if len(count) else np.nan
    )


def _counts(images: pd.DataFrame) -> dict[str, tuple[float, int]]:
    groups = images.groupby("Metadata_perturbation_id")["Metadata_cell_count"]
    return {str(name): (float(values.mean()), len(values)) for name, values in groups}


def _or_none(function: Callable[..., T], *arguments: Any, **options: Any) -> T | None:
    """What the function gives, None where there are too few images or classes for it."""
    try:
        return function(*arguments, **options)
    except DataError:
        return None


@dataclass(frozen=True)
class _Analysis:
    """Normalised profiles of images with cells, and what is made of them."""

    profiles: pd.DataFrame
    features: list[str]
    methods: Sequence[str]
    channels: Sequence[str]
    seed: int

    def _of(self, source: str, perturbation: str | None = None) -> pd.DataFrame:
        rows = self.profiles["Metadata_source"] == source
        if perturbation is not None:
            rows &= self.profiles["Metadata_perturbation_id"] == perturbation
        return self.profiles[rows]

    def _matrix(self, source: str, perturbation: str) -> npt.NDArray[np.float64]:
        return matrix(self._of(source, perturbation), self.features)

    def _fields(self, perturbation: str) -> npt.NDArray[Any] | None:
        return fields_of_view(self._of(REAL, perturbation))

    def _controls(self, apart_from: str) -> pd.DataFrame:
        control = real_controls(self.profiles)
        return self.profiles[control & (self.profiles["Metadata_perturbation_id"] != apart_from)]

    def _names(self) -> list[str]:
        """Perturbations that have real images with cells."""
        return sorted(self._of(REAL)["Metadata_perturbation_id"].unique())

    def sources(self) -> dict[str, SourceProfiles]:
        """Every method's results, the copy control's agreement, and what real images reach."""
        treatments = _or_none(treatment_profiles, self.profiles, normalised=True)
        found: dict[str, SourceProfiles] = {}
        real = SourceProfiles(nmi=self._nmi(REAL))
        for method in self.methods:
            recognised = recognitions(self._of(REAL), self._of(method), self.features, self.seed)
            match = None
            if treatments is not None:
                match = _or_none(match_mechanisms, treatments, self.features, method)
            found[method] = replace(
                self._scores(method, {name: self._matrix(method, name) for name in self._names()}),
                nmi=self._nmi(method),
                recognised={label: each.generated for label, each in recognised.items()},
                mechanisms=_mechanisms(match, generated=True),
            )
            real = replace(
                real,
                recognised=real.recognised or {label: each.ceiling for label, each in recognised.items()},
                mechanisms=real.mechanisms or _mechanisms(match, generated=False),
            )
        controls = {name: matrix(self._controls(apart_from=name), self.features) for name in self._names()}
        control = self._scores(CONTROL, controls)
        found |= {CONTROL: control} if control.agreements else {}
        return {**found, REAL: self._ceiling(real, list(found.values()))}

    def _scores(self, source: str, generated: Mapping[str, Float64]) -> SourceProfiles:
        agreements, distances = {}, {}
        for name, others in generated.items():
            if len(others):
                real = self._matrix(REAL, name)
                generator = numpy_generator("profiles", self.seed, name)
                agreements[name] = agreement(real, others, name, generator, self._fields(name))
                if agreements[name].n >= 2:
                    distances[name] = self._distances(name, agreements[name].n, {source: others})[source]
        halves = {name: found.generated_halves.mean for name, found in agreements.items()}
        return SourceProfiles(agreements, self._estimate(halves), distances)

    def _distances(self, name: str, n: int, sets: Mapping[str, Float64]) -> dict[str, Distance]:
        generator = numpy_generator("profile distances", self.seed, name)
        real, fields = self._matrix(REAL, name), self._fields(name)
        return compare(real, sets, generator, n=n, repeats=DRAWS, metric=frechet, groups=fields)

    def _ceiling(self, real: SourceProfiles, others: Sequence[SourceProfiles]) -> SourceProfiles:
        """Real halves beside each other, at the n of the first source that can be compared."""
        first: dict[str, Agreement] = {}
        for other in others:
            comparable = {name: each for name, each in other.agreements.items() if each.n >= 2}
            first = comparable | first
        floors = {name: self._distances(name, each.n, {})[FLOOR] for name, each in first.items()}
        halves = {name: each.halves.mean for name, each in first.items()}
        return replace(real, agreements=first, distances=floors, correlation=self._estimate(halves))

    def _estimate(self, values: Mapping[str, float]) -> Estimate | None:
        """Over treatments: a control's own profile is noise around zero."""
        controls = set(self._controls(apart_from="")["Metadata_perturbation_id"])
        kept = [value for name, value in values.items() if name not in controls and np.isfinite(value)]
        if not kept:
            return None
        low, high = bootstrap_interval(kept, numpy_generator("profile interval", self.seed))
        return Estimate(float(np.mean(kept)), low, high, len(kept))

    def _nmi(self, source: str) -> dict[str, Clustering]:
        rows = self._of(source)
        rows = rows[~rows["Metadata_is_control"].astype(bool)]
        found = {}
        for label, column in LABELS.items():
            known = rows[rows[column].notna()]
            generator = numpy_generator("profile clusters", self.seed, source, label)
            values = matrix(known, self.features)
            scored = _or_none(clustering, values, list(known[column]), generator)
            if scored is not None:
                found[label] = scored
        return found

    def moved(self) -> list[MovedFeature]:
        """The features of real images that move most from real controls, and how the methods' move."""
        found = []
        for name in self._names():
            controls, treated = self._controls(apart_from=name), self._of(REAL, name)
            if treated["Metadata_is_control"].all():
                continue
            for moved in moved_features(treated, controls, self.features, self.channels, MOVED):
                effects = {
                    method: float(
                        cohens_d(*(side[[moved.feature]].to_numpy() for side in (rows, controls)))[0]
                    )
                    for method in self.methods
                    if len(rows := self._of(method, name)) > 1
                }
                words = describe(moved.feature, self.channels)
                found.append(MovedFeature(name, moved.feature, words, moved.cohens_d, effects))
        return found

    def maps(self, umap: bool) -> list[ProfileMap]:
        """Principal components of real images, and UMAP of all; none where too few images have cells."""
        sets = {}
        for source in (REAL, *self.methods):
            rows = self._of(source)
            generator = numpy_generator("profile map", self.seed, source)
            sets[source] = rows.sample(min(len(rows), MOST_MAPPED), random_state=generator)
        sets = {source: rows for source, rows in sets.items() if len(rows)}
        values = [matrix(rows, self.features) for rows in sets.values()]
        names = {source: rows["Metadata_perturbation_id"].to_numpy(object) for source, rows in sets.items()}
        components = _or_none(principal_components, *values)
        if components is None:
            return []
        shares = [
            f"component {place + 1}, {100 * share:.0f} %" for place, share in enumerate(components.explained)
        ]
        places = dict(zip(sets, components.coordinates, strict=True))
        found = [ProfileMap("Principal components", (shares[0], shares[1]), places, names)]
        if umap:
            generator = numpy_generator("profile umap", self.seed)
            together = _or_none(umap_coordinates, np.concatenate(values), generator)
            if together is not None:
                ends = np.cumsum([len(each) for each in values])[:-1]
                places = dict(zip(sets, np.split(together, ends), strict=True))
                found.append(ProfileMap("UMAP", ("UMAP 1", "UMAP 2"), places, names))
        return found


def _mechanisms(match: MechanismMatch | None, generated: bool) -> Mechanisms | None:
    if match is None:
        return None
    nsc, nscb = (match.nsc, match.nscb) if generated else (match.real_nsc, match.real_nscb)
    return Mechanisms((nsc.accuracy, nsc.answerable), (nscb.accuracy, nscb.answerable))
