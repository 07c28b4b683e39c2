"""Which sites are held out of training: by batch or by perturbation, never by image."""

import difflib
from collections.abc import Iterable, Sequence

from morphoray.errors import ConfigError, DataError
from morphoray.perturbations.base import parse_bool, plain_id, read_csv
from morphoray.perturbations.table import normalise_id
from morphoray.storage import Storage

TRAIN, HELD_OUT_BATCH, HELD_OUT_PERTURBATION = "train", "held_out_batch", "held_out_perturbation"


def assign(
    experiments: Sequence[str],
    perturbation_ids: Sequence[str],
    held_out_experiments: Iterable[str],
    held_out_perturbations: Iterable[str],
) -> list[str]:
    """The split of each site. A held-out perturbation is so in every batch: it comes before the batch."""
    batches, unseen = set(held_out_experiments), set(held_out_perturbations)
    return [
        HELD_OUT_PERTURBATION if name in unseen else HELD_OUT_BATCH if experiment in batches else TRAIN
        for experiment, name in zip(experiments, perturbation_ids, strict=True)
    ]


def held_out(
    option: Sequence[str] | str, known: Iterable[str], storage: Storage
) -> tuple[set[str], list[str]]:
    """The known perturbation ids that an option holds out, and notes for the import's summary.

    The option is a list of ids, of which each must be known, or the URI of a CSV `perturbation,ood`, which
    may name more perturbations than these sites show. Ids match exactly, else by the original's spelling; a
    compound's name stands for the ids of all its doses.
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
        found |= matches
        if not matches:
            absent.append(name)
    if absent and not from_file:
        raise ConfigError(unknown("held_out_perturbations", absent, exact))
    notes = [f"held out by {option}: {len(found)} perturbations; {len(absent)} more are not here"]
    return found, notes if from_file else []


def _read_list(uri: str, storage: Storage) -> list[str]:
    rows = read_csv(uri, storage)
    missing = [name for name in ("perturbation", "ood") if rows and name not in rows[0]]
    if missing:
        raise DataError(f"{uri}: found columns {sorted(rows[0])}, expected perturbation and ood")
    return [
        row["perturbation"]
        for number, row in enumerate(rows, start=1)
        if parse_bool(row["ood"], f"{uri} row {number}, ood")
    ]


def unknown(key: str, names: Sequence[str], known: Iterable[str]) -> str:
    """A message for option values that the data don't have: the values, and the known ones or the nearest."""
    choices = sorted(known)
    shown = choices
    if len(choices) > 30:
        shown = difflib.get_close_matches(names[0], choices, 5, 0.3) or choices[:5]
    kind = "known" if len(shown) == len(choices) else f"nearest of {len(choices)} known"
    return f"dataset.{key}: found {list(names[:10])}, which the data don't have; {kind}: {', '.join(shown)}"
