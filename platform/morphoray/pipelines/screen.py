"""A library of SMILES to ranked HITS: every molecule's images against the control's, in resumable parts.

The noise is shared (SHARED_NOISE in diffusion/generate.py): image i of every molecule and image i of the
control start from, and are led by, the same. What differs is then the model's answer to the molecule.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from morphoray import schema
from morphoray.config import RunConfig, ScreenConfig
from morphoray.errors import ConfigError
from morphoray.imaging.channels import bundle_mapping
from morphoray.perturbations import find_encoder
from morphoray.perturbations.base import CONTEXT_COLUMNS, Perturbation, takes_molecules
from morphoray.perturbations.context import load_context
from morphoray.pipelines.cluster import connected, generate_resources, preflight
from morphoray.pipelines.generate import known_perturbations, read_manifest, vectors_for
from morphoray.pipelines.layout import claim, layout_of, storage_from
from morphoray.pipelines.screen_part import PART, TOP, ScreenPart, part_row
from morphoray.pipelines.stream import Item, Stage, stream, unpack
from morphoray.progress import Progress
from morphoray.screening.libraries import Molecule, library_fingerprint, read_library
from morphoray.screening.scores import ranked
from morphoray.seeds import fingerprint
from morphoray.storage import Storage, absolute, join


@dataclass(frozen=True)
class ScreenSummary:
    """Where the HITS and the picture are (None: nothing to show), and how the lines ended."""

    hits: str
    picture: str | None
    ranked: int
    rejected: int
    finished_before: bool


def run_screen(config: RunConfig, address: str | None = None) -> ScreenSummary:
    """Screen config.screen.library with the run's bundle; the same call again goes on, part by part.

    Writes out/parts/, then out/top.png and, last, out/hits.parquet (HITS: a row an input line). Raises
    ConfigError when the bundle's encoder takes no new molecules, FingerprintError for other settings in out.
    """
    storage, layout, section = storage_from(config.storage), layout_of(config), config.screen
    if section.library is None:
        raise ConfigError("screen.library: missing. Which .smi, .csv or Parquet file is to be screened?")
    manifest = read_manifest(storage, layout.bundle)
    control = find_control(manifest, section)
    molecules = read_library(absolute(section.library), storage)
    out = absolute(section.out) if section.out else layout.of("screen")
    settings = _settings(config, manifest, control, molecules)
    claim(storage, join(out, "settings.json"), settings, "Screen results")
    parts = plan_parts(molecules, section.molecules_per_part)
    done = {uri.rsplit("/", 1)[-1] for uri in storage.list_files(join(out, "parts"), suffix=".parquet")}
    todo = [part for part in parts if f"{part['name']}.parquet" not in done]
    hits = join(out, "hits.parquet")
    finished_before = not todo and storage.exists(hits)
    if todo:
        with connected(address):
            preflight("screen", generate_resources(config))
            _run_parts(config, parts, todo, control, out, storage)
    if finished_before:
        print(f"screen: was finished before, nothing to do: {hits}", flush=True)
    else:
        legend = bundle_mapping(manifest).legend
        _collect(storage, out, parts, molecules, manifest["fingerprint"], fingerprint(settings), legend)
    return _report(storage, out, finished_before)


def find_control(manifest: dict[str, Any], section: ScreenConfig) -> Perturbation:
    """The control the molecules are held against, in the screen's context.

    Raises ConfigError when the bundle can't encode it, new molecules or the context.
    """
    condition = manifest["condition"]
    encoder = find_encoder(condition["encoder"]).load(condition["state"])
    if not takes_molecules(encoder):
        raise ConfigError(
            f"the bundle's encoder is {encoder.name!r} of {', '.join(sorted(encoder.reads)) or 'nothing'}, "
            "which has no vectors of new molecules; a screen needs one of their SMILES. Train a bundle with "
            "perturbations.encoder: rdkit or morgan, or concat of these and dose."
        )
    known = {item.perturbation_id: item for item in known_perturbations(manifest)}
    name = section.control or manifest.get("control")
    if name not in known:
        raise ConfigError(
            f"screen.control: found {name!r}, expected a perturbation the bundle knows: "
            f"{', '.join(sorted(known)[:20])}{', …' if len(known) > 20 else ''}."
        )
    control = replace(known[name], cell_type=section.cell_type, experiment=section.experiment)
    refusal = load_context(manifest["condition"]).refusal(control)
    if refusal is not None:
        raise ConfigError(f"screen.{refusal}.")
    _, (reason,) = vectors_for(manifest, [control])
    if reason is not None:
        raise ConfigError(f"screen.control: {reason}. Choose another control.")
    return control


def _settings(
    config: RunConfig, manifest: dict[str, Any], control: Perturbation, molecules: Sequence[Molecule]
) -> dict[str, Any]:
    """What the scores depend on."""
    section, generation = config.screen, config.generation
    unused = {
        "library",
        "out",
        "control",
        *(name for name in CONTEXT_COLUMNS if getattr(section, name) is None),
    }
    return {
        "bundle": manifest["fingerprint"],
        "library": library_fingerprint(molecules),
        "control": control.perturbation_id,
        "screen": section.model_dump(mode="json", exclude=unused),
        "generation": generation.model_dump(
            mode="json", include={"sampler", "steps", "guidance_scale", "precision"}
        ),
        "seed": config.seed if generation.seed is None else generation.seed,
    }


def plan_parts(molecules: Sequence[Molecule], size: int) -> list[Item]:
    """The lines without a reason against them, `size` a part."""
    good = [item for item in molecules if item.reason is None]
    return [
        {
            "name": f"part-{start // size:06d}",
            "lines": [item.line for item in good[start : start + size]],
            "ids": [item.molecule_id for item in good[start : start + size]],
            "smiles": [item.smiles for item in good[start : start + size]],
            "with_control": start == 0,
        }
        for start in range(0, len(good), size)
    ]


def _run_parts(
    config: RunConfig, parts: list[Item], todo: list[Item], control: Perturbation, out: str, storage: Storage
) -> None:
    total, left = (sum(len(part["lines"]) for part in some) for some in (parts, todo))
    progress = Progress("screen", total, "molecules", before=total - left)
    generation = config.generation
    stages = [
        Stage(
            ScreenPart,
            {"config": config, "control": control},
            num_actors=generation.num_actors,
            cpus=generation.cpus_per_actor,
            gpus=generation.gpus_per_actor,
        ),
        Stage(write_part, {"storage": storage, "out": out}, cpus=0.5),
    ]
    for row in stream(todo, stages):
        progress.add(row["count"])


def write_part(item: Item, storage: Storage, out: str) -> Item:
    """Write a part, which marks it as done."""
    table = unpack(item["table"])
    storage.write_table(join(out, "parts", f"{item['name']}.parquet"), table)
    return {"count": item["count"]}


def _collect(
    storage: Storage,
    out: str,
    parts: list[Item],
    molecules: list[Molecule],
    bundle: str,
    made_by: str,
    legend: str,
) -> None:
    """Rank all parts: top.png, then hits.parquet, which marks the screen as done."""
    from morphoray.imaging.png import decode_png, encode_png, grid

    columns = [name for name in PART.names if name != "images"]
    uris = [join(out, "parts", f"{part['name']}.parquet") for part in parts]
    rows = [row for uri in uris for row in storage.read_table(uri, columns).to_pylist()]
    rejected = [
        part_row(item.line, item.molecule_id, item.smiles, item.reason) for item in molecules if item.reason
    ]
    table = ranked([row for row in [*rows, *rejected] if row["line"] > 0], bundle)
    lines = [0, *(row["line"] for row in table.slice(0, TOP).to_pylist() if row["rank"])]
    if len(lines) > 1:
        pictures: dict[int, list[bytes]] = {}
        for uri in uris:
            part = storage.read_table(uri, ["line", "images"])
            found = part.filter(pc.is_in(part["line"], pa.array(lines, pa.int64())))
            pictures |= {row["line"]: row["images"] for row in found.to_pylist()}
        images = [decode_png(data) for line in lines for data in pictures[line]]
        sheet = grid(images, columns=len(pictures[0]))
        storage.write_bytes(join(out, "top.png"), encode_png(sheet, text={"Channels": legend}))
    storage.write_table(join(out, "hits.parquet"), schema.stamp(table, made_by))


def _report(storage: Storage, out: str, finished_before: bool) -> ScreenSummary:
    hits, picture = join(out, "hits.parquet"), join(out, "top.png")
    rows = storage.read_table(hits).to_pylist()
    good = [row for row in rows if row["rank"] is not None]
    print(f"screen: {len(good)} of {len(rows)} lines ranked, {len(rows) - len(good)} rejected: {hits}")
    for row in good[:TOP]:
        error = "" if row["score_std"] is None else f" ± {row['score_std']:.3g}"
        print(f"  {row['rank']}. {row['molecule_id']}  {row['score']:.4g}{error}  {row['smiles'][:80]}")
    if good:
        print(f"screen: rows of {picture}: the control, then these", flush=True)
    return ScreenSummary(hits, picture if good else None, len(good), len(rows) - len(good), finished_before)
