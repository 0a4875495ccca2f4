"""Validates imported entries: their documents must be such as wanpipe writes.

Digests alone are no defense, since whoever changes an entry can compute them again. The declaration
of the stage defines the record and its arrays; here are the checks that only imports need.
"""

import math
from pathlib import Path

from wanpipe.errors import StoreError
from wanpipe.store.arrays import METADATA, read_document, read_metadata
from wanpipe.store.entry import Entry, read_entry
from wanpipe.store.schema import STAGES

MAX_ROWS = 100_000  # rows of an array; a video of an hour has fewer frames


class InvalidEntryError(StoreError):
    """Raise for an imported entry that is not such as wanpipe writes."""


def validate(path: Path) -> Entry:
    """Return the entry at stage/key `path`, checked. Raises InvalidEntryError or DamageError."""
    entry = read_entry(path)  # key, seal, and every field of the record
    if entry.stage != path.parent.name or entry.files:
        raise InvalidEntryError("the record is of another stage, or has plain files")
    if not is_group(path, "wanpipe"):
        raise InvalidEntryError(f"{path.name[:8]} is not a plain group")
    for name in entry.names:
        check_array(entry, name)
        if "/" in name and not is_group(path / name.rpartition("/")[0]):
            raise InvalidEntryError(f"{name} is not in an empty group")
    if {file for file in path.rglob("*") if not file.is_dir()} != set(files_of(entry)):
        raise InvalidEntryError(f"{path.name[:8]} has other files than its arrays need")
    check_numbers(entry)
    return entry


def files_of(entry: Entry) -> list[Path]:
    """Return the files of an entry in order: documents and chunks, without foreign files."""
    found = {entry.path / METADATA}
    for name in entry.names:
        folder = entry.path / name
        # solver/sample is in a group of its own
        found |= {parent / METADATA for parent in folder.parents if entry.path in parent.parents}
        found |= {folder / file for file in (METADATA, *read_metadata(folder).files)}
    return sorted(found)


def is_group(path: Path, *attributes: str) -> bool:
    """Return whether a document is a Zarr v3 group with these attributes and nothing else."""
    document = read_document(path)
    found = document.pop("attributes", {})
    plain = document == {"zarr_format": 3, "node_type": "group"} and isinstance(found, dict)
    return plain and set(found) == set(attributes)


def check_array(entry: Entry, name: str) -> None:
    """Raise InvalidEntryError if an array is not as declared."""
    path = entry.path / name
    document = read_metadata(path)
    if not document.fits(STAGES[entry.stage].array(name)):
        raise InvalidEntryError(
            f"{name} has other axes, chunks or another type than wanpipe writes"
        )
    if document.shape[0] > MAX_ROWS:
        raise InvalidEntryError(f"{name} has {document.shape[0]} rows, more than {MAX_ROWS}")


def check_numbers(entry: Entry) -> None:
    """Check digests and values. Raises DamageError, or InvalidEntryError if an array is constant or
    not finite.
    """
    import numpy as np

    for name in entry.names:
        lowest, highest, count = math.inf, -math.inf, 0
        for block in entry.blocks(name):
            if not np.isfinite(block).all():
                raise InvalidEntryError(f"{name} has NaN or infinite values")
            lowest, highest = min(lowest, block.min()), max(highest, block.max())
            count += block.size
        if count > 1 and lowest == highest:
            raise InvalidEntryError(f"{name} is constant")
