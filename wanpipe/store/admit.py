"""Admits an entry that comes from elsewhere: its documents must be exactly what wanpipe writes.

Digests alone are no defence, since whoever changes an entry can write them anew. What is admitted
has the arrays of its stage, in our codecs, of finite numbers, and a record whose fields have the
types that readers rely on.
"""

import json
import math
from pathlib import Path
from typing import Any

from wanpipe.errors import StoreError
from wanpipe.store.entry import Entry, read_entry
from wanpipe.store.keys import SCHEMA, canonical, is_key
from wanpipe.store.layout import GROUP, METADATA, Form, LayoutError

LARGEST_DOCUMENT = 1 << 20  # bytes; the tokens of two prompts take 10 kB
LONGEST = 100_000  # rows of an array; a film of an hour has fewer frames
ARRAYS: dict[str, tuple[str, str]] = {  # axes and type
    "encode-text": ("LD", "float32"),
    "encode-image": ("CFHW", "float32"),
    "denoise": ("CFHW", "float32"),
    "decode": ("TYXC", "uint8"),
}
NAMES: dict[str, tuple[set[str], set[str]]] = {  # must be there, may be there
    "encode-text": ({"prompt", "negative"}, set()),
    "encode-image": (set(), {"condition", "clip", "latent"}),
    "denoise": ({"latent", "x0"}, set()),
    "decode": ({"frames"}, set()),
}
NUMBER = (int, float)
MADE: dict[str, Any] = {
    "time": str,
    "seconds": NUMBER,
    "wanpipe": str,
    "mlx": str,
    "device": str,
    "peak_bytes": int,
    "model": str,
    "statistics": dict,
}
MADE_BY_STAGE: dict[str, dict[str, Any]] = {
    "encode-text": {"prompt": str, "negative_prompt": str},
    "encode-image": {"image": str, "fit": str},
    "denoise": {"settings": dict, "seed": (int, type(None)), "vae": str},
    "decode": {"fps": NUMBER, "lineage": dict},
}
SETTINGS: dict[str, Any] = {
    "width": int,
    "height": int,
    "num_frames": int,
    "steps": int,
    "trim_first_frames": int,
    "guide_scale": list,
    "shift": NUMBER,
    "scheduler": str,
}
MATERIAL: dict[str, dict[str, Any]] = {
    "encode-text": {"t5": str, "prompt": list, "negative": list},
    "encode-image": {"vae": str, "width": int, "height": int, "num_frames": int, "mode": str},
    "denoise": {"text": str, "guide_scale": NUMBER, "timestep": NUMBER},
    "decode": {"vae": str, "step": str},
}


class AdmitError(StoreError):
    """Raise for an entry from elsewhere that is not as wanpipe writes them."""


def admit(path: Path) -> Entry:
    """Return the entry at stage/key `path`, fully checked. Raises AdmitError or DamageError."""
    documents = {file.parent: read_document(file) for file in sorted(path.rglob(METADATA))}
    group = documents.pop(path, None)
    if group is None:
        raise AdmitError(f"{path.name[:8]} has no {METADATA}")
    if not same({**group, "attributes": {}}, GROUP):
        raise AdmitError(f"{path.name[:8]} is not a plain group")
    entry = read_entry(path)  # key and seal
    check_record(entry, path.parent.name)
    expected = {path / METADATA}
    for name in entry.names:
        document = documents.pop(path / name, None)
        if document is None:
            raise AdmitError(f"{name} has no {METADATA}")
        form = check_array(entry.stage, name, document)
        expected |= {path / name / METADATA, *(path / name / file for file in form.files)}
    for folder, document in documents.items():  # the group between, as in solver/sample
        if not same(document, GROUP):
            raise AdmitError(f"{folder.name} is neither an array nor an empty group")
        expected.add(folder / METADATA)
    if {file for file in path.rglob("*") if file.is_file()} != expected:
        raise AdmitError(f"{path.name[:8]} has other files than its arrays need")
    check_numbers(entry)
    return entry


def read_document(file: Path) -> dict[str, Any]:
    """Read a JSON object of bounded size."""
    if file.stat().st_size > LARGEST_DOCUMENT:
        raise AdmitError(f"{file.name} is larger than any that wanpipe writes")
    try:
        document = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise AdmitError(f"{file.name} is not JSON") from error
    if not isinstance(document, dict):
        raise AdmitError(f"{file.name} is not an object")
    return document


def same(document: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether two JSON documents are the same, 3 and 3.0 being two numbers."""
    return canonical(document) == canonical(expected)


def check_record(entry: Entry, stage: str) -> None:
    """Raise AdmitError unless every field that readers rely on is there, in its type."""
    record = entry.record
    fields = {"schema": int, "stage": str, "inputs": dict, "digest": dict, "files": dict}
    check_fields("the record", record, {**fields, "material": dict, "made": dict})
    if (record["schema"], record["stage"], record["files"]) != (SCHEMA, stage, {}):
        raise AdmitError("the record is of another schema or stage, or has plain files")
    if record["material"].get("stage") != stage:
        raise AdmitError("the material is of another stage")
    check_fields("the material", record["material"], MATERIAL[stage])
    check_fields("made", record["made"], MADE | MADE_BY_STAGE[stage])
    if not all(map(is_input, record["inputs"].items())):
        raise AdmitError("inputs are not keys by role")
    for name, numbers in record["made"]["statistics"].items():
        if not isinstance(numbers, dict) or not all(map(is_number, numbers.values())):
            raise AdmitError(f"statistics of {name} are not numbers")
    must, may = NAMES[stage]
    names = {
        name for name in entry.names if not (stage == "denoise" and name.startswith("solver/"))
    }
    if not must <= names <= must | may or not entry.names:
        raise AdmitError(f"{stage} has no arrays named {', '.join(sorted(names))}")
    if stage == "denoise":
        check_step(record)


def check_step(record: dict[str, Any]) -> None:
    """Raise AdmitError unless a step's number, parent and settings fit together."""
    check_fields("the record", record, {"step": int, "parent": (str, type(None))})
    settings = record["made"]["settings"]
    check_fields("settings", settings, SETTINGS)
    parent = record["parent"]
    if (parent is not None and not is_key(parent)) or not 0 <= record["step"] < settings["steps"]:
        raise AdmitError("the step is not one of its run")
    if parent != record["material"].get("parent"):
        raise AdmitError("the step's parent is not the one in its material")


def is_input(item: tuple[str, Any]) -> bool:
    """Whether a role and a key are those of an input."""
    return item[0] in ("text", "image", "step") and isinstance(item[1], str) and is_key(item[1])


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, NUMBER) and not isinstance(value, bool) and math.isfinite(value)


def check_fields(what: str, record: dict[str, Any], fields: dict[str, Any]) -> None:
    """Raise AdmitError for a field that is missing or of another type."""
    for name, kind in fields.items():
        value = record.get(name)
        fine = is_number(value) if kind is NUMBER else isinstance(value, kind)
        if name not in record or not fine or isinstance(value, bool):
            raise AdmitError(f"{what} has no proper {name}")


def check_array(stage: str, name: str, document: dict[str, Any]) -> Form:
    """Return the form of an array. Raises AdmitError unless it is one that wanpipe writes for the
    stage.
    """
    try:
        form = Form.from_json(document)
    except LayoutError as error:
        raise AdmitError(f"{name}: {error}") from error
    axes, dtype = ARRAYS["encode-text"] if name == "clip" else ARRAYS[stage]
    if (form.axes, form.dtype) != (tuple(axes), dtype) or len(form.shape) != len(axes):
        raise AdmitError(f"{name} has other axes or another type than wanpipe writes")
    if form.shape[0] > LONGEST or (stage != "decode" and form.rows != form.shape[0]):
        raise AdmitError(f"{name} is in other chunks than wanpipe writes")
    return form


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
