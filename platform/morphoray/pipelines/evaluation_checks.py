"""What an evaluation can refuse at once: before Ray starts, and before anything is generated or measured."""

from collections.abc import Mapping

from morphoray.config import MethodConfig, RunConfig
from morphoray.errors import ConfigError
from morphoray.evaluation.features import kind_of
from morphoray.perturbations.base import from_rows
from morphoray.pipelines.cells import cell_finder
from morphoray.pipelines.method_images import (
    bundle_of,
    check_channels,
    method_images,
    with_the_datas_names,
)
from morphoray.pipelines.reference import evaluated_sites
from morphoray.pipelines.sites import read_sites


def check_evaluation(config: RunConfig, methods: Mapping[str, MethodConfig]) -> None:
    """Raise ConfigError, DataError or MissingObjectError for what the evaluation would refuse later.

    Its extractor's name, experiments and segmentation; each method's bundle, or its images, of which folders
    are listed and a few are read.
    """
    try:
        kind_of(config.evaluation.extractor)
    except ConfigError as error:
        raise ConfigError(f"evaluation.{error}") from None
    sites = read_sites(config)
    evaluated_sites(config, sites)
    cell_finder(config, sites)
    perturbations = from_rows(sites)
    for name, method in methods.items():
        if method.images is None:
            bundle_of(config, name, method)
        else:
            made = method_images(config, name, method, "")
            check_channels(config, made)
            with_the_datas_names(made, perturbations)
