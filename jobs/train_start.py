"""Train the tiny preset's shipped denoiser on simulated crops, from one config."""

import sys
from pathlib import Path

# A cluster has only what we depend on.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from morphoray.pipelines.entry import run_job
from morphoray.pipelines.start import parse_start_run, run_start

if __name__ == "__main__":
    sys.exit(run_job(str(__doc__), parse_start_run, run_start))
