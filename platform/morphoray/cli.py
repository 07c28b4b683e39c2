"""The command `morphoray`: parses arguments, and imports what a subcommand needs only when it runs."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from morphoray import __version__
from morphoray.errors import ConfigError, MorphorayError

if TYPE_CHECKING:
    from morphoray.config import RunConfig

EPILOG = """a run is one YAML file, and everything it makes lies under its run_dir (a path or s3:// URI):

  morphoray train jobs/configs/bbbc021_crops.yaml --set run_dir=runs/first
  morphoray generate runs/first/bundle --n 16 --out runs/first/images
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status. User errors print one message and give 1."""
    arguments = _parser().parse_args(argv)
    try:
        work: Callable[[argparse.Namespace], None] = arguments.work
        work(arguments)
    except MorphorayError as error:
        print(f"morphoray: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("morphoray: stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="morphoray",
        description="Train MorphoDiff, and generate Cell Painting images with it, on Ray.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"morphoray {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_data(commands)
    _add_genes(commands)
    for name, work, text in (
        ("encode", _encode, "images to latents (imports the dataset first if that isn't done)"),
        (
            "train",
            _train,
            "latents (or with training.mode: stream images) to a bundle; the same command resumes",
        ),
        ("run", _run, "import, encode, train and a grid of generated images, skipping what is done"),
        (
            "evaluate",
            _evaluate,
            "a finished run and evaluation.methods against real images: METRICS and a report",
        ),
        ("screen", _screen, "a library of SMILES to ranked HITS; the same command resumes"),
    ):
        _configured(commands.add_parser(name, help=text, description=text), work)
    _add_generate(commands)
    _add_serve(commands)
    _add_demo(commands)
    return parser


def _configured(parser: argparse.ArgumentParser, work: Callable[[argparse.Namespace], None]) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the run's YAML file, a path or s3:// URI")
    _common(parser, work)


def _common(parser: argparse.ArgumentParser, work: Callable[[argparse.Namespace], None]) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="override a field; may be repeated"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the complete configuration and stop")
    parser.add_argument("--address", metavar="RAY", help="the Ray cluster (default: a local one)")
    parser.set_defaults(work=work)


def _add_data(commands: Any) -> None:
    data = commands.add_parser("data", help="datasets", description="Work with datasets.")
    kinds = data.add_subparsers(title="commands", required=True, metavar="COMMAND")
    text = "read a dataset's own layout into a SITES table"
    importer = kinds.add_parser("import", help=text, description=text)
    names = "rxrx1, bbbc021, rohban, jump, imagefolder or simulated"
    importer.add_argument("name", metavar="DATASET", help=names)
    importer.add_argument("source", metavar="SOURCE", help="where it lies; simulated: where to write it")
    importer.add_argument("dest", metavar="DEST", help="the run_dir that gets sites/sites.parquet")
    importer.add_argument(
        "--limit", type=int, metavar="N", help="at most N sites, evenly spaced over what the filter keeps"
    )
    importer.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="COLUMN=VALUE[,VALUE]",
        help="keep the sites with one of these values; may be repeated",
    )
    _common(importer, _import)


def _add_genes(commands: Any) -> None:
    genes = commands.add_parser("genes", help="vectors of genes", description="Work with vectors of genes.")
    kinds = genes.add_subparsers(title="commands", required=True, metavar="COMMAND")
    text = "a scGPT checkpoint's vectors of your genes, as a table for perturbations: {encoder: table}"
    parser = kinds.add_parser("embed", help=text, description=text)
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="folder with vocab.json, args.json, best_model.pt"
    )
    parser.add_argument(
        "genes",
        metavar="GENES",
        help="text with a symbol a line; CSV or Parquet with a column gene or 'Gene Symbol'; a run's SITES",
    )
    parser.add_argument("out", metavar="OUT", help="the .parquet to write; unknown genes go beside it")
    parser.add_argument("--aliases", metavar="FILE", help="CSV with columns alias,symbol")
    parser.add_argument(
        "--max-unknown", type=float, default=0.1, metavar="SHARE", help="fail past it (default: 0.1)"
    )
    parser.add_argument(
        "--engine",
        choices=("direct", "scgpt"),
        default="direct",
        help="direct reads the weights; scgpt installs and runs the real package on Ray (default: direct)",
    )
    parser.add_argument("--address", metavar="RAY", help="with --engine scgpt: the Ray cluster")
    parser.set_defaults(work=_embed_genes)


def _add_generate(commands: Any) -> None:
    text = "a bundle to images of perturbations; the same command resumes"
    parser = commands.add_parser("generate", help=text, description=text)
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder, a path or s3:// URI")
    parser.add_argument("out", metavar="OUT", help="where the images go, a path or s3:// URI")
    parser.add_argument(
        "--perturbations",
        metavar="FILE",
        help="CSV, Parquet or text file of perturbations (default: those the bundle knows)",
    )
    parser.add_argument("--n", type=int, help="images a perturbation (default: 500)")
    parser.add_argument("--seed", type=int, help="the seed of the images' noise (default: 0)")
    _common(parser, _generate)


def _add_serve(commands: Any) -> None:
    text = "HTTP endpoint for one or more bundles"
    parser = commands.add_parser("serve", help=text, description=text)
    parser.add_argument(
        "bundles", metavar="BUNDLE", nargs="+", help="NAME=URI, or a URI (named by its folder)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--address", metavar="RAY", help="the Ray cluster (default: a local one)")
    parser.set_defaults(work=_serve)


def _add_demo(commands: Any) -> None:
    text = "the main job on simulated cells, and a report of what came out"
    parser = commands.add_parser("demo", help=text, description=text)
    parser.add_argument("--out", default="demo", metavar="DIR", help="default: ./demo")
    parser.add_argument("--minutes", type=float, default=10, help="about how long it may take (default: 10)")
    parser.add_argument("--address", metavar="RAY", help="the Ray cluster (default: a local one)")
    parser.set_defaults(work=_demo)


def load_config(arguments: argparse.Namespace) -> "RunConfig":
    """The run that CONFIG and --set describe. Raises ConfigError or MissingObjectError."""
    from morphoray.config import load
    from morphoray.storage import Storage

    return load(arguments.config, Storage(), arguments.set)


def _dry_run(config: "RunConfig") -> None:
    from morphoray.pipelines import cluster
    from morphoray.pipelines.layout import resolve

    complete = resolve(config)
    print(complete.to_yaml(), end="")
    print("# resources, each stage at once:")
    streams = complete.training.mode == "stream"
    for stage in ("train", "generate") if streams else ("encode", "train", "generate"):
        beside = ", encoding included (training.mode: stream)" if streams and stage == "train" else ""
        print(f"#   {stage}: {getattr(cluster, f'{stage}_resources')(complete)}{beside}")


def _with_config(arguments: argparse.Namespace, work: Callable[["RunConfig"], Any]) -> None:
    config = load_config(arguments)
    if arguments.dry_run:
        _dry_run(config)
    else:
        work(config)


def _import(arguments: argparse.Namespace) -> None:
    import yaml

    from morphoray.config import parse

    dataset: dict[str, Any] = {"name": arguments.name, "source": arguments.source}
    if arguments.limit is not None:
        dataset["limit"] = arguments.limit
    if arguments.filter:
        dataset["filter"] = _filter(arguments.filter)
    values = {"run_dir": arguments.dest, "dataset": dataset}
    config = parse(yaml.safe_dump(values), "data import", arguments.set)
    if arguments.dry_run:
        _dry_run(config)
        return
    from morphoray.pipelines.run import run_import

    run_import(config)


def _filter(conditions: Sequence[str]) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {}
    for condition in conditions:
        column, separator, values = condition.partition("=")
        if not separator or not column or not values:
            raise ConfigError(f"--filter {condition}: expected column=value[,value], for one plate=P1,P2")
        wanted.setdefault(column, []).extend(values.split(","))
    return wanted


def _embed_genes(arguments: argparse.Namespace) -> None:
    from morphoray.pipelines.genes import embed_genes

    summary = embed_genes(
        arguments.checkpoint,
        arguments.genes,
        arguments.out,
        aliases=arguments.aliases,
        max_unknown=arguments.max_unknown,
        engine=arguments.engine,
        address=arguments.address,
    )
    print(f"genes: {summary.genes} vectors in {summary.out}; {summary.unknown} rows in {summary.quarantine}")


def _encode(arguments: argparse.Namespace) -> None:
    def work(config: "RunConfig") -> None:
        from morphoray.pipelines.run import run_encode

        run_encode(config, arguments.address)

    _with_config(arguments, work)


def _train(arguments: argparse.Namespace) -> None:
    def work(config: "RunConfig") -> None:
        from morphoray.pipelines.run import run_train

        run_train(config, arguments.address)

    _with_config(arguments, work)


def _run(arguments: argparse.Namespace) -> None:
    def work(config: "RunConfig") -> None:
        from morphoray.pipelines.run import run_everything

        run_everything(config, arguments.address)

    _with_config(arguments, work)


def _evaluate(arguments: argparse.Namespace) -> None:
    def work(config: "RunConfig") -> None:
        from morphoray.pipelines.evaluate import run_evaluate

        run_evaluate(config, arguments.address)

    _with_config(arguments, work)


def _screen(arguments: argparse.Namespace) -> None:
    def work(config: "RunConfig") -> None:
        from morphoray.pipelines.screen import run_screen

        run_screen(config, arguments.address)

    _with_config(arguments, work)


def _generate(arguments: argparse.Namespace) -> None:
    import yaml

    from morphoray.config import parse

    overrides = list(arguments.set)
    if arguments.n is not None:
        overrides.append(f"generation.n={arguments.n}")
    if arguments.seed is not None:
        overrides.append(f"generation.seed={arguments.seed}")
    values = {"run_dir": arguments.out}
    config = parse(yaml.safe_dump(values), "generate", overrides)
    if arguments.dry_run:
        print(config.to_yaml(), end="")
        return
    from morphoray.pipelines.run import run_generate

    summary = run_generate(
        config, arguments.bundle, arguments.out, arguments.perturbations, arguments.address
    )
    print(f"generate: {summary.images} images under {summary.out}, {summary.quarantined} quarantined")


def _serve(arguments: argparse.Namespace) -> None:
    from morphoray.pipelines.serving import run_serve

    run_serve(arguments.bundles, arguments.host, arguments.port, arguments.address)


def _demo(arguments: argparse.Namespace) -> None:
    from morphoray.pipelines.demo import run_demo

    run_demo(arguments.out, arguments.minutes, arguments.address)


if __name__ == "__main__":
    sys.exit(main())
