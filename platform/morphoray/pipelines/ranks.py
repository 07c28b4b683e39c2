"""All pairs of Fréchet distances in blocks of rows, spread over the cluster where there are many."""

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import ray

from morphoray.config import EvaluationConfig
from morphoray.evaluation.cohorts import Moments, frechet_matrix
from morphoray.pipelines.cluster import use_threads

ROWS = 8  # of a block
FEW_PAIRS = 1024  # computed where the caller is: 32 sets against 32, which take less than a minute on a core


def pairwise(
    first: Sequence[Moments], second: Sequence[Moments], settings: EvaluationConfig
) -> npt.NDArray[np.float64]:
    """`cohorts.frechet_matrix`, the same numbers, on the connected cluster from FEW_PAIRS pairs on.

    A block of rows is a task with an actor's share of the evaluation's CPUs and GPUs; with a GPU it computes
    there. A block that is lost with its machine is computed again.
    """
    device = "cuda" if settings.gpus_per_actor else "cpu"
    if len(first) * len(second) < FEW_PAIRS or not ray.is_initialized():
        return frechet_matrix(first, second)
    work = ray.remote(num_cpus=settings.cpus_per_actor, num_gpus=settings.gpus_per_actor)(_rows)
    columns = ray.put(list(second))
    blocks = [
        work.remote(list(first[start : start + ROWS]), columns, device, settings.cpus_per_actor)
        for start in range(0, len(first), ROWS)
    ]
    return np.concatenate(ray.get(blocks))


def _rows(first: list[Moments], second: list[Moments], device: str, cpus: float) -> npt.NDArray[np.float64]:
    use_threads(cpus)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # Ray's shared memory, only read here
        return frechet_matrix(first, second, device)
