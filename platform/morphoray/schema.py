"""The data contracts: one Arrow schema per stored table, each with a version and a fingerprint."""

import pyarrow as pa

from morphoray.errors import DataError, FingerprintError

VERSION = "2"

PERTURBATION_FIELDS: list[pa.Field] = [
    pa.field("perturbation_id", pa.string(), nullable=False),
    pa.field("perturbation_kind", pa.string(), nullable=False),  # compound | gene | control
    pa.field("smiles", pa.string()),
    pa.field("gene", pa.string()),
    pa.field("concentration_um", pa.float64()),
    pa.field("moa", pa.string()),
    pa.field("is_control", pa.bool_(), nullable=False),
]

SITES = pa.schema(
    [
        pa.field("site_id", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("experiment", pa.string(), nullable=False),
        pa.field("plate", pa.string(), nullable=False),
        pa.field("well", pa.string(), nullable=False),
        pa.field("site", pa.string(), nullable=False),
        pa.field("cell_type", pa.string()),
        pa.field("replicate", pa.string()),
        *PERTURBATION_FIELDS,
        pa.field("channel_uris", pa.list_(pa.string()), nullable=False),
        pa.field("illumination_uris", pa.list_(pa.string())),  # .npy files, one a channel
        pa.field("intensity_ranges", pa.list_(pa.float64())),  # low, high a channel; null: imaging.intensity
        pa.field("pixel_size_um", pa.float64()),
        pa.field("split", pa.string(), nullable=False),  # one of datasets.splits
    ]
)

QUARANTINE = pa.schema(
    [
        pa.field("stage", pa.string(), nullable=False),  # import | encode | condition | generate | …
        pa.field("item", pa.string(), nullable=False),  # a site_id, perturbation_id or input line
        pa.field("uri", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
    ]
)

IMAGES = pa.schema(
    [
        pa.field("perturbation_id", pa.string(), nullable=False),
        pa.field("cell_type", pa.string()),  # the context asked for, like experiment; null: none
        pa.field("experiment", pa.string()),
        pa.field("index", pa.int32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("sampler", pa.string(), nullable=False),
        pa.field("steps", pa.int32(), nullable=False),
        pa.field("guidance_scale", pa.float32(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),  # PNG, as imaging.png.encode_image writes it
        pa.field("bundle_fingerprint", pa.string(), nullable=False),
    ]
)

HITS = pa.schema(
    [
        pa.field("rank", pa.int32()),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("molecule_id", pa.string(), nullable=False),
        pa.field("smiles", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("score_std", pa.float64()),
        pa.field("n_generated", pa.int32(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("bundle_fingerprint", pa.string(), nullable=False),
    ]
)

METRICS = pa.schema(
    [
        pa.field("experiment", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("perturbation_id", pa.string(), nullable=False),
        pa.field("unseen", pa.bool_()),  # held out of training; null: not known
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("n_real", pa.int32(), nullable=False),
        pa.field("n_generated", pa.int32(), nullable=False),
        pa.field("extractor", pa.string(), nullable=False),
        pa.field("mode", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
    ]
)


def latents(channels: int, height: int, width: int) -> pa.Schema:
    """LATENTS for posteriors of shape (channels, height, width), float16, before any scaling factor."""
    tensor = pa.fixed_shape_tensor(pa.float16(), (channels, height, width))
    return pa.schema(
        [
            pa.field("site_id", pa.string(), nullable=False),
            pa.field("experiment", pa.string(), nullable=False),
            pa.field("cell_type", pa.string()),
            pa.field("view", pa.string(), nullable=False),
            pa.field("crop", pa.int32(), nullable=False),
            pa.field("latent_mean", tensor, nullable=False),
            pa.field("latent_std", tensor, nullable=False),
            *PERTURBATION_FIELDS,
            pa.field("split", pa.string(), nullable=False),
        ]
    )


def features_schema(width: int) -> pa.Schema:
    """FEATURES: what an extractor of this width sees of an image; `origin` is real, or a method's name."""
    return pa.schema(
        [
            pa.field("origin", pa.string(), nullable=False),
            pa.field("perturbation_id", pa.string(), nullable=False),
            pa.field("experiment", pa.string(), nullable=False),
            pa.field("item", pa.string(), nullable=False),
            pa.field("features", pa.list_(pa.float32(), width), nullable=False),
        ]
    )


def measurements_schema(width: int) -> pa.Schema:
    """MEASUREMENTS: means over an image's cells of this many measurements, NaN where none is known."""
    return pa.schema(
        [
            pa.field("origin", pa.string(), nullable=False),
            pa.field("perturbation_id", pa.string(), nullable=False),
            pa.field("experiment", pa.string(), nullable=False),
            pa.field("item", pa.string(), nullable=False),
            pa.field("cell_count", pa.int32(), nullable=False),
            pa.field("nucleus_count", pa.int32(), nullable=False),
            pa.field("measurements", pa.list_(pa.float64(), width), nullable=False),
        ]
    )


def stamp(table: pa.Table, made_by: str) -> pa.Table:
    """The table with its schema version and the fingerprint of what made it in its metadata."""
    return table.replace_schema_metadata({"morphoray_version": VERSION, "morphoray_fingerprint": made_by})


def conform(table: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    """The table's columns in the schema's order and types.

    Raises DataError naming the column that is missing, of another type, or null where it may not be.
    """
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            raise DataError(
                f"{what}: no column {field.name!r} among {table.column_names}; expected {schema.names}. "
                "Import the data again with this version of morphoray."
            )
        column = table.column(field.name)
        try:
            column = column.cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"{what}: column {field.name!r} is {column.type}, expected {field.type} ({error})"
            ) from None
        if not field.nullable and column.null_count:
            raise DataError(f"{what}: column {field.name!r} has {column.null_count} nulls, expected none")
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def check_stamp(metadata: dict[bytes, bytes] | None, made_by: str | None, what: str) -> None:
    """Raise unless the metadata carry this schema version and, when given, the fingerprint `made_by`."""
    found = metadata or {}
    version = found.get(b"morphoray_version", b"none").decode()
    if version != VERSION:
        raise DataError(f"{what}: schema version {version}, expected {VERSION}. Make the table again.")
    maker = found.get(b"morphoray_fingerprint", b"none").decode()
    if made_by is not None and maker != made_by:
        raise FingerprintError(
            f"{what} was made by {maker}, but the current settings are {made_by}. "
            "Use the settings it was made with, or another run_dir."
        )
