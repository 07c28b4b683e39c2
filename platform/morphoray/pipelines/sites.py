"""The import stage: a dataset's files to the run's SITES table."""

from typing import Any

import pyarrow as pa

from morphoray import schema
from morphoray.config import RunConfig
from morphoray.datasets.base import Imported
from morphoray.errors import FingerprintError, MissingObjectError
from morphoray.pipelines.layout import claim, dataset_of, layout_of, storage_from
from morphoray.storage import Storage


def import_sites(config: RunConfig) -> Imported | None:
    """Read the run's dataset; store its quarantine and SITES. None if that is done.

    Raises FingerprintError if SITES under this run_dir come from other dataset settings.
    """
    layout, storage = layout_of(config), storage_from(config.storage)
    if storage.exists(layout.sites):
        _claim_sites(config, storage)
        return None
    dataset, options, source_storage = dataset_of(config)
    imported = dataset.read(str(config.dataset.source), source_storage, options)
    made_by = config.fingerprint("dataset")
    if len(imported.quarantine):
        quarantine = schema.stamp(imported.quarantine, made_by)
        storage.write_table(layout.of_data("quarantine", "import.parquet"), quarantine)
    storage.write_json(_described(config), _settings(config))
    storage.write_table(layout.sites, schema.stamp(imported.sites, made_by))
    return imported


def read_sites(config: RunConfig) -> pa.Table:
    """The run's SITES.

    Raises MissingObjectError before the import, DataError for another schema version, FingerprintError
    naming the settings that differ from those of the import.
    """
    layout, storage = layout_of(config), storage_from(config.storage)
    try:
        table = storage.read_table(layout.sites)
    except MissingObjectError:
        raise MissingObjectError(
            f"{layout.sites}: this run has no SITES yet, the table of its images. Make them, and what else "
            "is missing, with `morphoray run CONFIG`; or check run_dir and data_dir."
        ) from None
    try:
        schema.check_stamp(table.schema.metadata, config.fingerprint("dataset"), layout.sites)
    except FingerprintError:
        if storage.exists(_described(config)):
            _claim_sites(config, storage, named=True)
        raise
    return schema.conform(table, schema.SITES, layout.sites)


def _described(config: RunConfig) -> str:
    return layout_of(config).of_data("sites", "settings.json")


def _settings(config: RunConfig) -> dict[str, Any]:
    """What SITES are stamped with, as it is written beside them."""
    return {"dataset": config.dataset.model_dump(mode="json"), "seed": config.seed}


def _claim_sites(config: RunConfig, storage: Storage, named: bool = False) -> None:
    """Raise FingerprintError naming each setting that differs from the stored ones.

    Older runs stored no seed: it is compared only where the caller knows (`named`) that something differs.
    """
    settings, described = _settings(config), _described(config)
    if storage.exists(described) and "seed" not in storage.read_json(described) and not named:
        del settings["seed"]
    claim(storage, described, settings, "SITES")
