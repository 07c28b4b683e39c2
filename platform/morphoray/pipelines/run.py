"""The main job: import, encode, train and a grid of generated images, skipping what is done."""

from morphoray.config import RunConfig
from morphoray.imaging.channels import bundle_mapping
from morphoray.imaging.png import decode_png, encode_png, grid
from morphoray.pipelines.cluster import connected, generate_resources, preflight
from morphoray.pipelines.encode import EncodeSummary, encode
from morphoray.pipelines.generate import (
    GenerateSummary,
    generate_images,
    known_perturbations,
    read_images,
    read_manifest,
)
from morphoray.pipelines.layout import layout_of, resolve, storage_from
from morphoray.pipelines.overview import write_overview
from morphoray.pipelines.sites import import_sites
from morphoray.pipelines.train import TrainSummary, train

GRID_PERTURBATIONS, GRID_COLUMNS = 8, 8


def save_config(config: RunConfig) -> None:
    """Write the complete configuration beside what it produces."""
    storage_from(config.storage).write_text(layout_of(config).of("config.yaml"), config.to_yaml())


def run_import(config: RunConfig) -> RunConfig:
    """Resolve the configuration and import its dataset; prints what was found and draws an overview."""
    config = resolve(config)
    imported = import_sites(config)
    save_config(config)
    if imported is None:
        print(f"import: SITES are there, {layout_of(config).sites}", flush=True)
    else:
        print(f"{imported.summary}\n  {write_overview(config, imported.sites)}", flush=True)
    return config


def run_encode(config: RunConfig, address: str | None = None) -> EncodeSummary:
    """Import if needed, then encode."""
    config = run_import(config)
    with connected(address):
        summary = encode(config)
    print(
        f"encode: {summary.rows} latents of {summary.sites - summary.quarantined} sites, "
        f"{summary.quarantined} quarantined",
        flush=True,
    )
    return summary


def run_train(config: RunConfig, address: str | None = None) -> TrainSummary:
    """Import if needed, and encode unless training.mode is stream; then train."""
    with connected(address):
        if config.training.mode == "stream":
            run_import(config)
        else:
            run_encode(config)
        summary = train(resolve(config))
    verb = "was finished before, nothing to do" if summary.finished_before else "finished"
    print(
        f"train: {verb}: {summary.steps} steps, bundle {summary.bundle} ({summary.fingerprint})", flush=True
    )
    return summary


def run_everything(config: RunConfig, address: str | None = None) -> str:
    """The whole main job; returns the URI of the grid of generated images."""
    with connected(address):
        summary = run_train(config)
        return sample_grid(resolve(config), summary.bundle)


def sample_grid(config: RunConfig, bundle: str) -> str:
    """A grid of generated images, a row a perturbation, written under samples/; returns its URI."""
    storage, layout = storage_from(config.storage), layout_of(config)
    manifest = read_manifest(storage, bundle)
    chosen = known_perturbations(manifest)[:GRID_PERTURBATIONS]
    out = layout.of("samples", f"final-{manifest['fingerprint']}")
    generation = config.generation.model_copy(update={"n": min(GRID_COLUMNS, config.generation.n)})
    preflight("generate", generate_resources(config))
    generate_images(bundle, chosen, out, generation, config.seed, config.storage)
    table = read_images(storage, out)
    mapping = bundle_mapping(manifest)
    images = [mapping.render(decode_png(data)) for data in table["image"].to_pylist()]
    uri = layout.of("samples", "final.png")
    storage.write_bytes(uri, encode_png(grid(images, generation.n), text={"Channels": mapping.legend}))
    names = ", ".join(item.perturbation_id for item in sorted(chosen, key=lambda item: item.perturbation_id))
    print(f"samples: {uri} (rows: {names}; channels: {mapping.legend})", flush=True)
    return uri


def run_generate(
    config: RunConfig, bundle: str, out: str, perturbations: str | None, address: str | None = None
) -> GenerateSummary:
    """Generate config.generation.n images of every perturbation in a file, or of all the bundle knows."""
    from morphoray.perturbations.base import read_perturbations

    storage = storage_from(config.storage)
    if perturbations is None:
        items = known_perturbations(read_manifest(storage, bundle))
    else:
        items = read_perturbations(perturbations, storage)
    with connected(address):
        preflight("generate", generate_resources(config))
        return generate_images(bundle, items, out, config.generation, config.seed, config.storage)
