"""The command line of a job script: --config, --set and --dry-run; a user's error is one message."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from pydantic import BaseModel

from morphoray.errors import MorphorayError
from morphoray.storage import Storage

Config = TypeVar("Config", bound=BaseModel)


def run_job(
    description: str,
    parse: Callable[[str, str, list[str]], Config],
    run: Callable[[Config], str],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the configuration, run, and print what `run` returns; the exit status.

    parse: (YAML text, its name in errors, overrides `a.b=c`) to the configuration.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, metavar="FILE", help="the run's YAML file (jobs/configs)")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override a field")
    parser.add_argument("--dry-run", action="store_true", help="print the complete configuration and stop")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        config = parse(Storage().read_text(arguments.config), arguments.config, arguments.set)
        print(config.model_dump_json(indent=2) if arguments.dry_run else run(config))
    except MorphorayError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0
