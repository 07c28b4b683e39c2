"""Evaluate a finished run and other methods against real images, from one config."""

import sys
from pathlib import Path

# A cluster has only what we depend on.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from morphoray.config import parse
from morphoray.pipelines.entry import run_job
from morphoray.pipelines.evaluate import run_evaluate

if __name__ == "__main__":
    sys.exit(run_job(str(__doc__), parse, run_evaluate))
