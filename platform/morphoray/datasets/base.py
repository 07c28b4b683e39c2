"""What every importer offers and returns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from morphoray.storage import Storage


@dataclass(frozen=True)
class Imported:
    """An import's result: SITES, QUARANTINE (stage "import"), and counts for people, several lines."""

    sites: pa.Table
    quarantine: pa.Table
    summary: str


@dataclass(frozen=True)
class Dataset:
    """A registry entry.

    `channels` names the files of a site in the order of channel_uris (or the planes of its one file);
    `mapping` is the default channel mapping.
    """

    name: str
    options: type[BaseModel]
    read: Callable[[str, Storage, Any], Imported]
    channels: tuple[str, ...]
    mapping: str
