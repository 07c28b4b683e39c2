"""A report in words: the verdicts, and what else was found."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from morphoray.evaluation.comparisons import Comparison, Verdict, apart, comparisons, verdict
from morphoray.evaluation.profile_section import profile_words
from morphoray.evaluation.results import (
    BATCHES,
    CODEC,
    CONTROL,
    FLOOR,
    FRECHET,
    HELD_OUT,
    KID,
    MODELS,
    OTHER,
    RECOGNISED,
    SEEN,
    SHARE,
    Cell,
    ReportData,
    candidates,
    figure,
    image_counts,
    mean,
    measured,
    percent,
)
from morphoray.evaluation.statistics import LEAST_PAIRS, SIGNIFICANT

SHORT = {FRECHET: "Fréchet", KID: "kernel"}
DIVERSITY = ("recall", "coverage")
LITTLE = 0.5  # of what real images reach
FEWER = 0.9  # of what another model reaches
COPIED = 0.05  # share of likely copies that is worth a sentence; 0.01 is that of real images
COPIED_ONE = 0.25  # the same of a single perturbation, of whose few images more are likely copies by chance
NEARER = 0.9  # of the distance between two sets of real images, below which a model's images are suspect
VERDICTS: dict[Verdict, tuple[str, str]] = {  # as a table's cell says it, and as a sentence does
    "closer": ("closer", "{ours} lie closer to the real ones than {theirs}"),
    "further": ("further", "{ours} lie further from the real ones than {theirs}"),
    "disagree": (
        "distances disagree",
        "the two distances disagree on whether {ours} or {theirs} lie closer to the real ones",
    ),
    "unclear": ("no clear difference", "there is no clear difference between {ours} and {theirs}"),
    "few": (
        "too few to tell",
        f"too few {{groups}} for a verdict on {{ours}} against {{theirs}}: it takes {LEAST_PAIRS}",
    ),
}
ONE_RUN = "Verdicts are on the models at hand, one training run each: another run may give another."
FITTED = "In seen batches, seen perturbations tell how well training images are fitted: no test on new ones."
SAME_IMAGES = "Held-out batches: the same generated images against other real ones, no second experiment."
RULE = (
    "Closer and further: by the Fréchet and the kernel distance both, each with an adjusted p below "
    f"{SIGNIFICANT}, over {LEAST_PAIRS} pairs or more. The tests stand below, under “Is the difference real?”"
)


@dataclass(frozen=True)
class Judgement:
    """A cell of the table of verdicts: what was found, in words, and the figures it rests on."""

    found: Verdict
    figures: Sequence[str]

    @property
    def words(self) -> str:
        """The verdict in a word or three."""
        return VERDICTS[self.found][0]


@dataclass(frozen=True)
class Summary:
    """What a report says first.

    lead: a sentence or two a rival model. head, verdicts: a table of the first model against each rival,
    by its key in ReportData.methods, a column a cell; None where both have nothing in common. notes: what
    else was found, a sentence or two each.
    """

    lead: Sequence[str]
    head: Sequence[str]
    verdicts: Mapping[str, Sequence[Judgement | None]]
    notes: Sequence[str]


def summary(data: ReportData) -> Summary:
    """The result in few words, taken from the measurements only."""
    grouped: dict[str, dict[Cell, list[Comparison]]] = {}
    for row in comparisons(data):
        grouped.setdefault(row.rival, {}).setdefault(row.cell, []).append(row)
    cells = [cell for cell in apart(data) if any(cell in found for found in grouped.values())]
    verdicts = {
        rival: [_judgement(found[cell]) if cell in found else None for cell in cells]
        for rival, found in grouped.items()
    }
    led = [rival for rival in grouped if rival in data.models] or [*grouped][:1]
    ours = f"{_whose(data, data.models[0])} images"
    nothing = f"No verdict: no treatment was measured of which there are {ours} and a rival's."
    return Summary(
        _lead(data, {rival: grouped[rival] for rival in led}) or [nothing],
        [f"{_sentence(ours)}, against", *(_sentence(_where(data, [cell])) for cell in cells)],
        verdicts,
        _notes(data, bool(grouped)),
    )


def _judgement(rows: Sequence[Comparison]) -> Judgement:
    """The verdict of one cell with both sides' means over the groups that both have, and how often closer."""
    told = [
        f"{SHORT[row.metric]} {figure(row.paired.first)} against {figure(row.paired.second)}" for row in rows
    ]
    counts = {SHORT[row.metric]: row.paired.first_smaller for row in rows}
    closer = " and ".join(f"{count} ({name})" for name, count in counts.items())
    row = rows[0]
    if len({*counts.values()}) == 1:
        closer = str(row.paired.first_smaller)
    counted = row.counted
    if row.paired.n != row.treatments:
        counted += f" ({row.treatments} perturbations)"
    return Judgement(verdict(rows), [*told, f"closer on {closer} of {counted}"])


def _lead(data: ReportData, found: Mapping[str, Mapping[Cell, Sequence[Comparison]]]) -> list[str]:
    """A sentence for each verdict, with the cells where it was reached and the rivals that it is on."""
    ours = f"{_whose(data, data.models[0])} images"
    reached: dict[tuple[Verdict, tuple[Cell, ...], str], list[str]] = {}
    for rival, by_cell in found.items():
        verdicts = {cell: verdict(rows) for cell, rows in by_cell.items()}
        for each in dict.fromkeys(verdicts.values()):
            cells = tuple(cell for cell in by_cell if verdicts[cell] == each)
            groups = _groups(by_cell[cell] for cell in cells)
            reached.setdefault((each, cells, groups), []).append(_whose(data, rival))
    told = []
    for (each, cells, groups), whose in reached.items():
        theirs = whose[0] if len(whose) == 1 else f"any of {', '.join(whose[:-1])} and {whose[-1]}"
        text = VERDICTS[each][1].format(ours=ours, theirs=theirs, groups=groups)
        told.append(f"{_sentence(_where(data, cells))}: {text}.")
    return told


def _groups(found: Iterable[Sequence[Comparison]]) -> str:
    """What is counted in several cells: 'mechanisms', or 'mechanisms or perturbations'."""
    return " or ".join(dict.fromkeys(rows[0].groups for rows in found))


def _where(data: ReportData, cells: Sequence[Cell]) -> str:
    """The cells' perturbations and batches: 'seen and unseen perturbations in held-out batches'."""
    places: dict[str, list[str]] = {}
    for cell in cells:
        unseen = next(result.unseen for result in data.perturbations if cell.has(result))
        places.setdefault("unseen" if unseen else "seen", []).append(BATCHES[cell.batches or ""])
    kinds: dict[str, list[str]] = {}
    for kind, batches in places.items():
        kinds.setdefault(" and ".join(batches), []).append(kind)
    return ", ".join(
        f"{' and '.join(found)} perturbations" + (f" in {batches}" if batches else "")
        for batches, found in kinds.items()
    )


def _notes(data: ReportData, judged: bool) -> list[str]:
    """What else was found, and what the verdicts are of."""
    several = len(data.batches) > 1
    notes = []
    for batches in data.batches:
        found = [*_recognised(data.of(batches)), *_diversity(data.of(batches))]
        where = f"{BATCHES[batches]}: " if several else ""
        notes += [_sentence(f"{where}{text}") for text in found]
    notes += [*_copies(data), *_too_near(data), *_reference_points(data)]
    if data.profiles and not data.profiles.problem:
        notes.append(" ".join(profile_words(data, data.profiles)))
    if data.excluded:
        notes.append(_excluded(data))
    if judged and any(each.batches == SEEN and not each.unseen for each in data.perturbations):
        notes.append(FITTED)
    if judged and several and HELD_OUT in data.batches:
        notes.append(SAME_IMAGES)
    return [*notes, ONE_RUN] if judged else notes


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _whose(data: ReportData, method: str) -> str:
    """Whose images are meant, as a sentence says it."""
    if method == CONTROL:
        return "real controls"
    if method == OTHER:
        return "real images of another perturbation"
    label = data.methods[method].label
    if method in MODELS:
        return f"the {label.lower()}'s"
    return f"{label}'" if label.endswith("s") else f"{label}'s"


def _recognised(data: ReportData) -> list[str]:
    """How many images a classifier takes for the right perturbation: the mean that chance is 1 / K of."""
    shares = {method: mean(measured(data, RECOGNISED, method)) for method in (*data.models, FLOOR)}
    first, *others = data.models
    share = shares[first]
    if share is None:
        return []
    beside = {
        **{_whose(data, other): shares[other] for other in others},
        "other real images": shares[FLOOR],
        "chance": 1 / candidates(data, RECOGNISED),
    }
    told = ", ".join(f"{name} {percent(value)}" for name, value in beside.items() if value is not None)
    seen, unseen = (mean(measured(data, RECOGNISED, first, Cell(unseen=each))) for each in (False, True))
    new = "" if seen is None or unseen is None else f", {percent(unseen)} of those of unseen perturbations,"
    return [
        f"a linear classifier taught on real images takes {percent(share)} of {_whose(data, first)} images"
        f"{new} for the right perturbation ({told})."
    ]


def _diversity(data: ReportData) -> list[str]:
    """A sentence where the first model's recall or coverage is far below real images', or below a rival's."""
    found = [short for metric in DIVERSITY if (short := _short_of(data, metric))]
    if not found:
        return []
    what = "fewer of the real ones than another model's"
    if any(little for _, little in found):
        what = "few of the real ones (little diversity, or images that lie elsewhere)"
    told = "; ".join(text for text, _ in found)
    return [f"{_whose(data, data.models[0])} images cover {what}: {told}."]


def _short_of(data: ReportData, metric: str) -> tuple[str, bool] | None:
    """What the first model falls short of, and whether it is less than LITTLE of what real images reach."""
    first, *others = data.models
    value, floor = (mean(measured(data, metric, method)) for method in (first, FLOOR))
    if value is None or floor is None:
        return None
    beside = [f"real images {figure(floor)}"]
    for other in others:
        theirs = mean(measured(data, metric, other))
        if theirs is not None and value < FEWER * theirs:
            beside.append(f"{_whose(data, other)} {figure(theirs)}")
    little = value < LITTLE * floor
    if not little and len(beside) == 1:
        return None
    return f"{metric} {figure(value)} ({', '.join(beside)})", little


def _copies(data: ReportData) -> list[str]:
    """A sentence for each model of whose images more are likely copies than COPIED, or COPIED_ONE."""
    told = []
    for model in data.models:
        found = {
            result.perturbation_id: result.distances[SHARE][model].value
            for result in data.perturbations
            if model in result.distances.get(SHARE, {})
        }
        share = mean(measured(data, SHARE, model))
        if share is None:
            continue
        worst = max(found, key=found.__getitem__)
        if share > COPIED or found[worst] > COPIED_ONE:
            told.append(
                f"{percent(share)} of {_whose(data, model)} images are likely copies of training images "
                f"({percent(found[worst])} of those of {worst}); 1 % would be as real images are."
            )
    return [*map(_sentence, told)]


def _too_near(data: ReportData) -> list[str]:
    """A sentence for each model and group of batches with images nearer to real ones than these to others."""
    told = []
    for batches in data.batches:
        where = f" in {BATCHES[batches]}" if len(data.batches) > 1 else ""
        floor = mean(measured(data.of(batches), FRECHET, FLOOR))
        for model in data.models:
            value = mean(measured(data.of(batches), FRECHET, model))
            if value is not None and floor is not None and value < NEARER * floor:
                told.append(
                    f"{_whose(data, model)} images lie closer to the real ones{where} (Fréchet "
                    f"{figure(value)}) than other real images do ({figure(floor)}): are they the real ones "
                    "themselves, or crops of the same fields?"
                )
    return [*map(_sentence, told)]


def _reference_points(data: ReportData) -> list[str]:
    floor, codec = (_by_batches(data, method) for method in (FLOOR, CODEC))
    if not floor:
        return []
    text = f"By Fréchet distance two disjoint sets of {image_counts(data)} real images lie {floor} apart"
    if codec:
        text += f", and real images through the codec alone {codec} from other real ones"
    return [f"{text}: reference points, no bounds."]


def _by_batches(data: ReportData, method: str) -> str:
    """Mean Fréchet distances of the groups of batches: '15.0 (seen batches) and 16.1 (held-out batches)'."""
    found = {batches: mean(measured(data.of(batches), FRECHET, method)) for batches in data.batches}
    named = len(data.batches) > 1
    return " and ".join(
        f"{figure(value)} ({BATCHES[batches]})" if named else figure(value)
        for batches, value in found.items()
        if value is not None
    )


def _excluded(data: ReportData) -> str:
    shown = [f"{name} ({reason})" for name, reason in list(data.excluded.items())[:3]]
    more = ", …" if len(data.excluded) > 3 else ""
    count = "1 perturbation" if len(data.excluded) == 1 else f"{len(data.excluded)} perturbations"
    return f"{count} could not be measured: {'; '.join(shown)}{more}."
