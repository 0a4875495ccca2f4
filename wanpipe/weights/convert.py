"""Turns a recognised checkpoint into a model directory, one component file after another.

Memory holds one block of one tensor at a time, whatever the size of the model. Knows neither the
cache nor the command line.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from wanpipe.config import SCHEMA, Component, ModelConfig, read_model_config
from wanpipe.errors import CheckpointError, StoreError, UsageError
from wanpipe.weights.components import Job, plan_components
from wanpipe.weights.detect import Checkpoint
from wanpipe.weights.dimensions import read_json
from wanpipe.weights.dtypes import NAMES, Array, recast
from wanpipe.weights.read import TensorFile, open_tensors
from wanpipe.weights.rename import apply_transform
from wanpipe.weights.sources import Progress
from wanpipe.weights.tensors import shown
from wanpipe.weights.write import Slot, replace_file, write_tensors

ALGORITHM = 1  # raised when the same checkpoint and options give other files
TOKENIZER = "tokenizer.json"
TOKENIZER_LIMIT = 1 << 26  # bytes; the official one has 17 MB
MARGIN = 1 << 20  # bytes for config.json and the file system's own


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a conversion may be told: `dtype` is "bfloat16", "float16" or "float32"."""

    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.dtype not in NAMES:
            raise UsageError(f"dtype must be {', '.join(NAMES)}, got {self.dtype}")


def material(checkpoint: Checkpoint, hashes: dict[str, str], options: Options) -> dict[str, Any]:
    """What gives a converted model its meaning; `hashes` as `source_hashes` gives them."""
    return {
        "source": hashes,
        "variant": checkpoint.variant.name,
        "dtype": options.dtype,
        "quantization": None,
    }


def convert(
    checkpoint: Checkpoint, target: Path, key: str, options: Options, progress: Progress
) -> ModelConfig:
    """Write the model `key` into `target`, going on where a killed conversion stopped.

    A component is done when its file and the record beside it are there; config.json comes last.
    Raises CheckpointError where the checkpoint does not fit, StoreError where `target` holds
    something else or has too little room; finished components stay.
    """
    finished = _finished(target, key)
    if finished is not None:
        _remove_records(target, finished)
        return finished
    jobs = plan_components(checkpoint, options.dtype)
    tokenizer = read_tokenizer(checkpoint.files["tokenizer"][0])
    done = {job.file: _recorded(target, job.file, key) for job in jobs}
    check_room(target, sum((job.bytes for job in jobs if done[job.file] is None), len(tokenizer)))
    try:
        target.mkdir(parents=True, exist_ok=True)
        components = {"tokenizer": _write_tokenizer(tokenizer, target)}
        for job in jobs:
            components[job.name] = done[job.file] or _write(job, target, key, progress)
        config = ModelConfig(
            schema=SCHEMA,
            key=key,
            variant=checkpoint.variant.name,
            dtype=options.dtype,
            quantization=None,
            defaults=checkpoint.variant.defaults,
            components=components,
        )
        text = json.dumps(config.to_json(), indent=2, ensure_ascii=False) + "\n"
        replace_file(target / "config.json", text.encode("utf-8"))
        _remove_records(target, config)
        return read_model_config(target)
    except OSError as error:
        raise StoreError(
            f"{target} cannot be written: {error.strerror or error}; finished files are kept, "
            "so convert again when that is mended"
        ) from error


def check_room(target: Path, needed: int) -> None:
    """Raise StoreError unless the file system of `target` has room for `needed` bytes."""
    there = next(path for path in (target, *target.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if needed + MARGIN > free:
        raise StoreError(
            f"{target} needs {needed + MARGIN} bytes ({needed / 1e9:.1f} GB), its disk has {free} "
            "free; make room or choose another directory"
        )


def _finished(target: Path, key: str) -> ModelConfig | None:
    """Read the config.json of `target` if this model is there, whole; refuse another."""
    path = target / "config.json"
    if not path.exists():
        return None
    try:
        config = read_model_config(target)
    except CheckpointError as error:
        raise StoreError(
            f"{path} is not a model's that wanpipe wrote; choose another directory"
        ) from error
    if config.key != key:
        raise StoreError(
            f"{target} holds another model ({config.variant}, {config.key[:8]}); "
            "choose another directory"
        )
    for component in config.components.values():
        file = target / component.file
        if not file.is_file() or file.stat().st_size != component.bytes:
            path.unlink()
            return None
    return config


def _record(target: Path, file: str) -> Path:
    return target / f"{file}.json"


def _recorded(target: Path, file: str, key: str) -> Component | None:
    """Give the component that an earlier run of this conversion finished."""
    with suppress(CheckpointError):  # a missing or damaged record means: not done
        data = read_json(_record(target, file))
        if data.pop("key", None) == key:
            component = Component.from_json(data, file)
            path = target / component.file
            if path.is_file() and path.stat().st_size == component.bytes:
                return component
    return None


def _remove_records(target: Path, config: ModelConfig) -> None:
    for component in config.components.values():
        _record(target, component.file).unlink(missing_ok=True)


def _write(job: Job, target: Path, key: str, progress: Progress) -> Component:
    """Write one component file, then the record that says it is done."""
    total, done = sum(slot.nbytes for slot in job.slots), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(job.name, done, total)

    progress(job.name, 0, total)
    with open_tensors(job.sources) as file:
        written = write_tensors(
            target / job.file,
            job.slots,
            lambda slot: _blocks(file, job, slot),
            job.metadata,
            advance,
        )
    component = Component(
        file=job.file,
        hash=written.hash,
        bytes=written.bytes,
        parameters=job.parameters,
        config=job.config,
    )
    record = json.dumps({"key": key, **component.to_json()})
    replace_file(_record(target, job.file), record.encode("utf-8"))
    return component


def _blocks(file: TensorFile, job: Job, slot: Slot) -> Iterator[Array]:
    move = job.moves[slot.name]
    source = file.tensors[move.source].dtype
    subject = f"{job.sources[0]}: {shown(move.source)}"
    for block in file.blocks(move.source):
        yield recast(apply_transform(block, move.transform), source, slot.dtype, subject)


def read_tokenizer(path: Path) -> bytes:
    """Read tokenizer.json. Raises CheckpointError where it is no tokenizer by its form."""
    if not isinstance(read_json(path, TOKENIZER_LIMIT).get("model"), dict):
        raise CheckpointError(f"{path} is not a tokenizer (no model in it); download it again")
    return path.read_bytes()


def _write_tokenizer(data: bytes, target: Path) -> Component:
    replace_file(target / TOKENIZER, data)
    return Component(file=TOKENIZER, hash=xxhash.xxh3_128_hexdigest(data), bytes=len(data))
