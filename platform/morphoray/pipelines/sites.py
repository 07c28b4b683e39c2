"""The import stage: a dataset's files to the run's SITES table."""

import pyarrow as pa

from morphoray import schema
from morphoray.config import RunConfig
from morphoray.datasets.base import Imported
from morphoray.pipelines.layout import claim, dataset_of, layout_of, storage_from


def import_sites(config: RunConfig) -> Imported | None:
    """Read the run's dataset; store its quarantine and SITES. None if that is done.

    Raises FingerprintError if SITES under this run_dir come from other dataset settings.
    """
    layout, storage = layout_of(config), storage_from(config.storage)
    settings = {"dataset": config.dataset.model_dump(mode="json")}
    described = layout.of_data("sites", "settings.json")
    if storage.exists(layout.sites):
        claim(storage, described, settings, "SITES")
        return None
    dataset, options, source_storage = dataset_of(config)
    imported = dataset.read(str(config.dataset.source), source_storage, options)
    made_by = config.fingerprint("dataset")
    if len(imported.quarantine):
        quarantine = schema.stamp(imported.quarantine, made_by)
        storage.write_table(layout.of_data("quarantine", "import.parquet"), quarantine)
    storage.write_json(described, settings)
    storage.write_table(layout.sites, schema.stamp(imported.sites, made_by))
    return imported


def read_sites(config: RunConfig) -> pa.Table:
    """The run's SITES. Raises MissingObjectError before the import, DataError for another schema version."""
    layout, storage = layout_of(config), storage_from(config.storage)
    table = storage.read_table(layout.sites)
    schema.check_stamp(table.schema.metadata, config.fingerprint("dataset"), layout.sites)
    return schema.conform(table, schema.SITES, layout.sites)
