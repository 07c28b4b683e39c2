"""Compare a conditional and an unconditional run of the same data, and write the report.

    python jobs/compare.py runs/conditional/config.yaml runs/unconditional/config.yaml OUT [EXPERIMENT …]

Generates generation.n images of every perturbation with both (what is there already is not made again). Real
images come from the experiments named, by default from those trained on.
"""

import sys

from morphoray.config import RunConfig, parse
from morphoray.errors import MorphorayError
from morphoray.evaluation.results import CONDITIONAL, UNCONDITIONAL, RunFacts
from morphoray.pipelines.cluster import connected
from morphoray.pipelines.compare import report_runs, run_details
from morphoray.pipelines.generate import generate_images, known_perturbations, read_manifest
from morphoray.pipelines.layout import layout_of, storage_from
from morphoray.storage import Storage


def compare(paths: dict[str, str], out: str, experiments: list[str]) -> str:
    """Generate with both runs and write the report; returns its URI."""
    configs: dict[str, RunConfig] = {
        method: parse(Storage().read_text(path), path) for method, path in paths.items()
    }
    images = {}
    with connected():
        for method, config in configs.items():
            bundle, images[method] = layout_of(config).bundle, layout_of(config).of("images")
            items = known_perturbations(read_manifest(storage_from(config.storage), bundle))
            generate_images(bundle, items, images[method], config.generation, config.seed, config.storage)
    first = configs[CONDITIONAL]
    training = read_manifest(storage_from(first.storage), layout_of(first).bundle)["training"]
    facts = RunFacts(steps=training["steps"], images_seen=training["images_seen"], details=run_details(first))
    where = ", ".join(experiments) if experiments else "the experiments trained on"
    statement = f"Real images: {first.dataset.name} from {first.dataset.source}, {where}."
    return report_runs(
        configs,
        images,
        facts,
        "Conditional and unconditional",
        first.dataset.name,
        statement,
        out,
        experiments or None,
    )


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(str(__doc__))
    try:
        print(compare({CONDITIONAL: sys.argv[1], UNCONDITIONAL: sys.argv[2]}, sys.argv[3], sys.argv[4:]))
    except MorphorayError as error:
        sys.exit(f"compare: {error}")
