"""Train the tiny preset's shipped denoiser on simulated crops, from one config."""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1] / "platform")
)  # a cluster has only what we depend on

from morphoray.errors import MorphorayError


def main() -> int:
    """Read --config, train or resume, print where the start folder is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file, for one jobs/configs/start_tiny.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override a field")
    parser.add_argument("--dry-run", action="store_true", help="print the complete configuration and stop")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    from morphoray.pipelines.start import parse_start_run, run_start

    try:
        config = parse_start_run(Path(arguments.config).read_text(), arguments.config, arguments.set)
        print(config.model_dump_json(indent=2) if arguments.dry_run else run_start(config))
    except (MorphorayError, FileNotFoundError) as error:
        print(f"train_start: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
