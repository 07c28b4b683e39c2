"""`morphoray genes embed`: a list of genes and a scGPT checkpoint to a table of gene vectors."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from morphoray import schema
from morphoray.datasets.genes import GeneList, read_genes
from morphoray.errors import BadFractionError, ConfigError
from morphoray.perturbations.symbols import MATCHES, Match, match_symbols, read_aliases
from morphoray.pipelines.scgpt_checkpoint import direct_vectors, read_vocabulary
from morphoray.seeds import fingerprint
from morphoray.storage import Storage, absolute

Engine = Literal["direct", "scgpt"]
Vectors = npt.NDArray[np.float32]
_SHOWN = 10  # substitutions and unknown genes on the screen; the tables hold all


@dataclass(frozen=True)
class EmbedSummary:
    """What was written where."""

    out: str
    quarantine: str
    genes: int
    unknown: int


def embed_genes(
    checkpoint: str,
    genes: str,
    out: str,
    *,
    aliases: str | None = None,
    max_unknown: float = 0.1,
    engine: Engine = "direct",
    address: str | None = None,
    storage: Storage | None = None,
) -> EmbedSummary:
    """Write a Parquet table perturbation_id (the symbol as written), token, match, vector; print a report.

    Genes without a vector go to OUT's name with .quarantine.parquet, which is always written; raises
    BadFractionError past the share `max_unknown`, before OUT is written. Raises ConfigError for an OUT that
    isn't Parquet or a share outside 0 to 1.
    """
    stem, dot, ending = out.rpartition(".")
    if not dot or ending.lower() not in ("parquet", "pq"):
        raise ConfigError(f"OUT is {out}, expected a name that ends in .parquet")
    if not 0 <= max_unknown <= 1:
        raise ConfigError(f"--max-unknown is {max_unknown:g}, expected a share from 0 to 1")
    storage = storage or Storage()
    listed = read_genes(genes, storage)
    known = read_aliases(aliases, storage) if aliases else {}
    matches = match_symbols(listed.symbols, read_vocabulary(checkpoint, storage), known)
    found, vectors, bad = _vectors(checkpoint, matches, engine, address, storage)
    made_by = _made_by(checkpoint, engine, found, vectors)
    where = f"{stem}.quarantine.parquet"
    rows = [{"stage": "embed", "item": item.symbol, "uri": genes, "reason": item.how} for item in bad]
    storage.write_table(where, schema.stamp(pa.Table.from_pylist(rows, schema=schema.QUARANTINE), made_by))
    print(_report(listed, found, bad, where), flush=True)
    if not found or len(bad) > max_unknown * len(matches):
        raise BadFractionError(
            f"{len(bad)} of {len(matches)} genes have no vector, more than --max-unknown {max_unknown:g}; "
            f"{where} lists them. Correct the symbols, give --aliases, or raise --max-unknown."
        )
    storage.write_table(out, schema.stamp(_table(found, vectors), made_by))
    return EmbedSummary(out, where, len(found), len(bad))


def _vectors(
    checkpoint: str, matches: Sequence[Match], engine: Engine, address: str | None, storage: Storage
) -> tuple[list[Match], Vectors, list[Match]]:
    """The matches with a vector, their vectors, and the others with the reason as `how`."""
    found = [item for item in matches if item.token is not None]
    bad = [item for item in matches if item.token is None]
    read = direct_vectors if engine == "direct" else partial(_by_package, address=address)
    vectors = read(checkpoint, [str(item.token) for item in found], storage)
    finite = np.asarray(np.isfinite(vectors).all(axis=1))
    for item in (item for item, good in zip(found, finite, strict=True) if not good):
        bad.append(Match(item.symbol, None, f"gene {item.symbol!r}: the checkpoint's vector is not finite"))
    return [item for item, good in zip(found, finite, strict=True) if good], vectors[finite], bad


def _by_package(checkpoint: str, tokens: Sequence[str], storage: Storage, address: str | None) -> Vectors:
    from morphoray.pipelines.scgpt_package import package_vectors

    return package_vectors(checkpoint, tokens, storage, address)


def _table(found: Sequence[Match], vectors: Vectors) -> pa.Table:
    """The shape that the `table` encoder reads: one list column, and the id."""
    width = int(vectors.shape[1])
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1), pa.float32())
    return pa.table(
        {
            "perturbation_id": pa.array([item.symbol for item in found], pa.string()),
            "token": pa.array([item.token for item in found], pa.string()),
            "match": pa.array([item.how for item in found], pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(flat, width),
        }
    )


def _made_by(checkpoint: str, engine: Engine, found: Sequence[Match], vectors: Vectors) -> str:
    digest = hashlib.sha256(vectors.astype("<f4").tobytes()).hexdigest()
    return fingerprint([absolute(checkpoint), engine, [(item.symbol, item.token) for item in found], digest])


def _report(listed: GeneList, found: Sequence[Match], bad: Sequence[Match], where: str) -> str:
    """Counts, every kind of substitution and what is unknown, for people."""
    counts = Counter(item.how for item in found)
    kinds = ", ".join(
        f"{counts[how]} by {how}" if how != "exact" else f"{counts[how]} exact" for how in MATCHES
    )
    lines = [f"genes: {len(found)} of {len(listed.symbols)} have a vector ({kinds}), {len(bad)} have none"]
    if listed.empty or listed.repeated:
        lines.append(f"  left out: {listed.empty} empty entries, {listed.repeated} repeated")
    for how in MATCHES[1:]:
        pairs = [f"{item.symbol} -> {item.token}" for item in found if item.how == how]
        lines += [f"  by {how}: {_shortened(pairs, ', ', 'in the column token')}"] if pairs else []
    if bad:
        lines.append(f"  {_shortened([item.how for item in bad], f'{chr(10)}  ', f'in {where}')}")
    return "\n".join(lines)


def _shortened(parts: Sequence[str], between: str, rest: str) -> str:
    more = f"{between}… and {len(parts) - _SHOWN} more, {rest}" if len(parts) > _SHOWN else ""
    return between.join(parts[:_SHOWN]) + more
