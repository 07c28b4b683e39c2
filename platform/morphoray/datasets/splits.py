"""Which sites are held out of training: by batch or by perturbation, never by image.

A batch is an experiment or a plate of one. The four values are the cells of seen and unseen perturbations in
seen and held-out batches, so that an evaluation can tell them apart.
"""

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from morphoray.datasets.options import ImportOptions
from morphoray.datasets.selection import unknown
from morphoray.errors import ConfigError, DataError
from morphoray.perturbations.base import parse_bool, plain_id, read_csv
from morphoray.perturbations.rdkit import scaffolds
from morphoray.perturbations.table import normalise_id
from morphoray.seeds import derive_seed
from morphoray.storage import Storage

TRAIN, HELD_OUT_BATCH = "train", "held_out_batch"
HELD_OUT_PERTURBATION, HELD_OUT_BOTH = "held_out_perturbation", "held_out_both"
UNSEEN = (HELD_OUT_PERTURBATION, HELD_OUT_BOTH)
SEEN_BATCH = (TRAIN, HELD_OUT_PERTURBATION)


def assign(sites: pa.Table, options: ImportOptions, listed: set[str]) -> tuple[pa.ChunkedArray, list[str]]:
    """The split of each site, and notes for the import's summary.

    `listed` are the perturbations that held_out_perturbations names (`held_out`). What is drawn at random is
    a function of the seed and of the names alone. Raises ConfigError for a share that can't be.
    """
    fraction, seed = options.held_out_fraction, options.held_out_seed or 0
    batches = set(options.held_out_experiments)
    known = sites["experiment"].unique().to_pylist()
    batches |= _draw({name: {name} for name in known}, fraction.experiments, seed, "experiments")
    treated = _treated(sites)
    groups: dict[str, set[str]] = {}
    for name, smiles, gene in treated:
        groups.setdefault(smiles or gene or plain_id(name), set()).add(name)
    unseen = listed | _draw(groups, fraction.perturbations, seed, "perturbations")
    by_scaffold, notes = _by_scaffold(treated, options.held_out_scaffolds, seed)
    unseen |= by_scaffold
    plate = pc.binary_join_element_wise(sites["experiment"], sites["plate"], "/")
    held = pc.or_(
        pc.is_in(sites["experiment"], pa.array(sorted(batches), pa.string())),
        pc.or_(*(pc.is_in(column, _strings(options.held_out_plates)) for column in (plate, sites["plate"]))),
    )
    missed = pc.is_in(sites["perturbation_id"], _strings(unseen))
    split = pc.if_else(
        missed,
        pc.if_else(held, HELD_OUT_BOTH, HELD_OUT_PERTURBATION),
        pc.if_else(held, HELD_OUT_BATCH, TRAIN),
    )
    return split, notes


def settle(sites: pa.Table) -> tuple[pa.Table, list[str]]:
    """The sites with held_out_both for perturbations that live in held-out batches alone; and a note of them.

    Such a perturbation is unseen, whatever named it: no site of it is trained on.
    """
    split = sites["split"]
    trained = sites["perturbation_id"].filter(pc.equal(split, TRAIN)).unique()
    only = pc.and_(pc.equal(split, HELD_OUT_BATCH), pc.invert(pc.is_in(sites["perturbation_id"], trained)))
    names = sorted(sites["perturbation_id"].filter(only).unique().to_pylist())
    if not names:
        return sites, []
    column = pc.if_else(only, HELD_OUT_BOTH, split)
    settled = sites.set_column(sites.schema.get_field_index("split"), "split", column)
    return settled, [f"unseen, since only in held-out batches: {shorten(names)}"]


def check_names(sites: pa.Table, options: ImportOptions) -> None:
    """Raise ConfigError for held-out experiments and plates that the data don't have."""
    pairs = sites.select(["experiment", "plate"]).group_by(["experiment", "plate"]).aggregate([])
    experiments, plates = pairs["experiment"].to_pylist(), pairs["plate"].to_pylist()
    both = {f"{experiment}/{plate}" for experiment, plate in zip(experiments, plates, strict=True)}
    for key, known in (("held_out_experiments", set(experiments)), ("held_out_plates", {*plates, *both})):
        absent = [name for name in getattr(options, key) if name not in known]
        if absent:
            raise ConfigError(unknown(key, absent, known))


def held_out(
    option: Sequence[str] | str,
    known: Iterable[str],
    storage: Storage,
    genes: Mapping[str, set[str]] | None = None,
) -> tuple[set[str], list[str]]:
    """The known perturbation ids that an option holds out, and notes for the import's summary.

    The option is a list of ids or `genes` (ids by symbol), of which each must be known, or the URI of a CSV
    `perturbation,ood`, which may name more perturbations than these sites show. Ids match exactly, else by
    the original's spelling; a compound's name stands for the ids of all its doses.
    """
    exact = set(known)
    spelled: dict[str, set[str]] = {}
    for name in exact:
        for spelling in {normalise_id(name), normalise_id(plain_id(name))}:
            spelled.setdefault(spelling, set()).add(name)
    from_file = isinstance(option, str)
    wanted = _read_list(option, storage) if isinstance(option, str) else list(option)
    found: set[str] = set()
    absent: list[str] = []
    for name in wanted:
        matches = {name} if name in exact else spelled.get(normalise_id(name), set())
        matches = matches or (genes or {}).get(name, set())
        found |= matches
        if not matches:
            absent.append(name)
    if absent and not from_file:
        raise ConfigError(unknown("held_out_perturbations", absent, exact))
    notes = [f"held out by {option}: {len(found)} perturbations; {len(absent)} more are not here"]
    return found, notes if from_file else []


def ids_by_gene(sites: pa.Table) -> dict[str, set[str]]:
    """The perturbations of each gene."""
    found: dict[str, set[str]] = {}
    for name, _, gene in _treated(sites):
        if gene:
            found.setdefault(gene, set()).add(name)
    return found


def shorten(names: Sequence[str], most: int = 5) -> str:
    """The number of names and the first few of them."""
    first = ", ".join(names[:most])
    return f"{len(names)} ({first}{', ...' if len(names) > most else ''})"


def _read_list(uri: str, storage: Storage) -> list[str]:
    rows = read_csv(uri, storage)
    missing = [name for name in ("perturbation", "ood") if name not in rows[0]]
    if missing:
        raise DataError(f"{uri}: found columns {sorted(rows[0])}, expected perturbation and ood")
    return [
        row["perturbation"]
        for number, row in enumerate(rows, start=1)
        if parse_bool(row["ood"], f"{uri} row {number}, ood")
    ]


def _strings(names: Iterable[str]) -> pa.Array:
    return pa.array(sorted(names), pa.string())


def _treated(sites: pa.Table) -> list[tuple[str, str | None, str | None]]:
    """Id, SMILES and gene of every perturbation that is no control."""
    columns = ["perturbation_id", "smiles", "gene"]
    rows = sites.filter(pc.invert(sites["is_control"])).select(columns).group_by(columns).aggregate([])
    return sorted(zip(*(rows[name].to_pylist() for name in columns), strict=True), key=lambda row: row[0])


def _draw(groups: Mapping[str, set[str]], share: float, seed: int, what: str) -> set[str]:
    """The members of a share of the groups: those whose name gives the lowest numbers with the seed."""
    if share == 0:
        return set()
    count = max(1, round(share * len(groups)))
    if count >= len(groups):
        raise ConfigError(
            f"dataset.held_out_fraction.{what}: {share:g} of {len(groups)} is {count}, which leaves none to "
            "train on. Lower it."
        )
    drawn = sorted(groups, key=lambda name: derive_seed("held-out", what, seed, name))[:count]
    return set().union(*(groups[name] for name in drawn))


def _by_scaffold(
    treated: Sequence[tuple[str, str | None, str | None]], option: Sequence[str] | float, seed: int
) -> tuple[set[str], list[str]]:
    """The compounds of held-out scaffolds, whole scaffolds at a time, and a note of them."""
    if not option:
        return set(), []
    smiles = sorted({text for _, text, _ in treated if text})
    found = dict(zip(smiles, scaffolds(smiles), strict=True))
    compounds: dict[str, set[str]] = {}
    for text, scaffold in found.items():
        if scaffold is not None:
            compounds.setdefault(scaffold, set()).add(text)
    if isinstance(option, float):
        chosen = _draw_scaffolds(compounds, option, seed)
    else:
        chosen = _named_scaffolds(compounds, option)
    held = set().union(*(compounds[scaffold] for scaffold in chosen))
    names = {name for name, text, _ in treated if text in held}
    lost = [name for name, text, _ in treated if text is None or found[text] is None]
    notes = [
        f"scaffolds: {len(chosen)} of {len(compounds)} held out, {len(held)} of {len(smiles)} compounds; "
        f"the first: {', '.join(sorted(chosen)[:2]) or 'none'}"
    ]
    return names, [*notes, f"scaffolds: no valid SMILES, so seen: {shorten(lost)}"] if lost else notes


def _draw_scaffolds(compounds: Mapping[str, set[str]], share: float, seed: int) -> set[str]:
    """Scaffolds in the seed's order, taken while they have no more than the share of the compounds."""
    room = round(share * sum(map(len, compounds.values())))
    chosen: set[str] = set()
    for scaffold in sorted(compounds, key=lambda name: derive_seed("held-out", "scaffolds", seed, name)):
        if len(compounds[scaffold]) <= room:
            chosen.add(scaffold)
            room -= len(compounds[scaffold])
    if share and not chosen:
        sizes = sorted(map(len, compounds.values()))
        raise ConfigError(
            f"dataset.held_out_scaffolds: {share:g} of {sum(sizes)} compounds with SMILES holds no whole "
            f"scaffold; the smallest of {len(sizes)} has {sizes[0]}. Raise it, or list scaffolds."
        )
    return chosen


def _named_scaffolds(compounds: Mapping[str, set[str]], wanted: Sequence[str]) -> set[str]:
    chosen = dict(zip(wanted, scaffolds(wanted), strict=True))
    absent = [name for name, scaffold in chosen.items() if scaffold not in compounds]
    if absent:
        raise ConfigError(unknown("held_out_scaffolds", absent, compounds))
    return {scaffold for scaffold in chosen.values() if scaffold is not None}
