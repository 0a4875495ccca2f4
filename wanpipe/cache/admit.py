"""Admits an entry that comes from elsewhere: its documents must be such as wanpipe writes.

Digests alone are no defense, since whoever changes an entry can write them anew. The declaration of
the stage decides what a record and its arrays may be; here is what only a stranger's entry needs.
"""

import math
from pathlib import Path

from wanpipe.errors import StoreError
from wanpipe.store.arrays import METADATA, read_document, read_metadata
from wanpipe.store.entry import Entry, read_entry
from wanpipe.store.schema import STAGES

LONGEST = 100_000  # rows of an array; a video of an hour has fewer frames


class AdmitError(StoreError):
    """Raise for an entry from elsewhere that is not as wanpipe writes them."""


def admit(path: Path) -> Entry:
    """Return the entry at stage/key `path`, fully checked. Raises AdmitError or DamageError."""
    entry = read_entry(path)  # key, seal, and every field of the record
    if entry.stage != path.parent.name or entry.files:
        raise AdmitError("the record is of another stage, or has plain files")
    if not is_plain_group(path, "wanpipe"):
        raise AdmitError(f"{path.name[:8]} is not a plain group")
    expected = {path / METADATA}
    for name in entry.names:
        expected |= check_array(entry, name)
        if "/" in name:  # the group between, as in solver/sample
            between = path / name.rpartition("/")[0]
            if not is_plain_group(between):
                raise AdmitError(f"{between.name} is not an empty group")
            expected.add(between / METADATA)
    if {file for file in path.rglob("*") if not file.is_dir()} != expected:
        raise AdmitError(f"{path.name[:8]} has other files than its arrays need")
    check_numbers(entry)
    return entry


def is_plain_group(path: Path, *attributes: str) -> bool:
    """Whether a document is a Zarr v3 group with these attributes and nothing else."""
    document = read_document(path)
    found = set(document.pop("attributes", {}))
    return document == {"zarr_format": 3, "node_type": "group"} and found == set(attributes)


def check_array(entry: Entry, name: str) -> set[Path]:
    """Return the files of an array. Raises AdmitError unless it is as its stage declares it."""
    path = entry.path / name
    document = read_metadata(path)
    if not document.fits(STAGES[entry.stage].array(name)):
        raise AdmitError(f"{name} has other axes, chunks or another type than wanpipe writes")
    if document.shape[0] > LONGEST:
        raise AdmitError(f"{name} has {document.shape[0]} rows, more than {LONGEST}")
    return {path / METADATA, *(path / file for file in document.files)}


def check_numbers(entry: Entry) -> None:
    """Raise DamageError for a digest that does not fit, AdmitError for numbers that wanpipe would
    not have kept.
    """
    import numpy as np

    for name in entry.names:
        lowest, highest, count = math.inf, -math.inf, 0
        for block in entry.blocks(name):
            if not np.isfinite(block).all():
                raise AdmitError(f"{name} has NaN or infinite values")
            lowest, highest = min(lowest, block.min()), max(highest, block.max())
            count += block.size
        if count > 1 and lowest == highest:
            raise AdmitError(f"{name} is constant")
