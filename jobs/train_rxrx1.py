"""The main job: import, encode, train and a grid of generated images, from one config, skipping what is done.

    ray job submit --working-dir . --runtime-env-json '{"env_vars": {"PYTHONPATH": "platform"}}' \
        -- python jobs/train_rxrx1.py --config jobs/configs/rxrx1_single_batch.yaml --set run_dir=s3://bucket/run

The cluster's machines need the dependencies (requirements.lock), not the package: it travels as working_dir.
"""

import sys

from morphoray.cli import main


def command(arguments: list[str]) -> list[str]:
    """`--config FILE …` as the arguments of `morphoray run FILE …`."""
    if "--config" not in arguments:
        return ["run", *arguments]
    at = arguments.index("--config")
    return ["run", *arguments[at + 1 : at + 2], *arguments[:at], *arguments[at + 2 :]]


if __name__ == "__main__":
    sys.exit(main(command(sys.argv[1:])))
