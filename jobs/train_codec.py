"""Train an autoencoder on simulated fields, or train or fine-tune one on your own images, from one config."""

import sys
from pathlib import Path

# A cluster has only what we depend on.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from morphoray.pipelines.codec import parse_codec_run, run_codec
from morphoray.pipelines.entry import run_job

if __name__ == "__main__":
    sys.exit(run_job(str(__doc__), parse_codec_run, run_codec))
