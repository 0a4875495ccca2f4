"""Turns a recognised checkpoint into a model directory, one component file after another.

Memory holds one block of one tensor at a time, whatever the size of the model. Knows neither the
cache nor the command line.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import xxhash
from msgspec import structs

from wanpipe.checkpoints.detect import Checkpoint
from wanpipe.checkpoints.dtypes import NAMES, Array, recast
from wanpipe.checkpoints.layouts import Network, open_network
from wanpipe.checkpoints.rename import apply_transform
from wanpipe.checkpoints.tensors import shown
from wanpipe.checkpoints.vocabulary import read_tokenizer
from wanpipe.errors import CheckpointError, StoreError, UsageError
from wanpipe.models.config import (
    EXPERTS,
    SCHEMA,
    Component,
    Components,
    Defaults,
    DiTConfig,
    Dtype,
    ModelConfig,
    Quantization,
    T5Config,
    read_model_config,
)
from wanpipe.runtime.disk import atomic_write
from wanpipe.runtime.documents import DocumentError, Hash, encode, load, to_builtins
from wanpipe.weights.components import Job, plan_components, plan_copy, quantized
from wanpipe.weights.quantize import Packer, check, check_fit
from wanpipe.weights.source_hashes import Progress
from wanpipe.weights.write import Slot, write_tensors

ALGORITHM = 1  # raised when the same checkpoint and options give other files
TOKENIZER = "tokenizer.json"
Tell = Callable[[str, str, float], None]  # component, kind of layer, relative error
Wrote = Callable[[Path, str], None]  # a file that is finished, its content hash
MARGIN = 1 << 20  # bytes for config.json and the file system's own


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a conversion may be told: `dtype` is "bfloat16", "float16" or "float32"; how to quantise
    the blocks of the transformers and of T5.
    """

    dtype: str = "bfloat16"
    quantization: Quantization | None = None
    text_encoder: Quantization | None = None

    def __post_init__(self) -> None:
        if self.dtype not in NAMES:
            raise UsageError(f"dtype must be {', '.join(NAMES)}, got {self.dtype}")
        for spec in filter(None, (self.quantization, self.text_encoder)):
            check(spec)

    def check_fit(self, dit: DiTConfig, t5: T5Config) -> None:
        """Raise UsageError where a group size does not fit the networks."""
        if self.quantization is not None:
            check_fit(self.quantization, "the transformer", (dit.dim, dit.ffn_dim))
        if self.text_encoder is not None:
            check_fit(self.text_encoder, "T5", (t5.dim, t5.attention_dim, t5.ffn_dim))

    def applied(self, jobs: Sequence[Job]) -> list[Job]:
        """Plan each component in the bits that are asked for it."""
        specs = dict.fromkeys(EXPERTS, self.quantization) | {"t5_encoder": self.text_encoder}
        return [quantized(job, specs.get(job.name)) for job in jobs]

    def to_json(self) -> dict[str, Any]:
        """What of them gives a model its meaning."""
        specs = {"experts": self.quantization, "text_encoder": self.text_encoder}
        given = {name: spec and to_builtins(spec) for name, spec in specs.items()}
        return {"dtype": self.dtype, "quantization": given if any(given.values()) else None}


class Record(Component[Any], frozen=True, kw_only=True):
    """What lies beside a finished component until its model is whole; `key` is the model's."""

    key: Hash


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What a model will be: its config.json less the components, and the plan of those."""

    variant: str
    dtype: str
    quantization: Quantization | None
    defaults: Defaults
    tokenizer: Path
    jobs: list[Job]


def material(checkpoint: Checkpoint, hashes: dict[str, str], options: Options) -> dict[str, Any]:
    """What gives a converted model its meaning; `hashes` as `source_hashes` gives them."""
    return {"source": hashes, "variant": checkpoint.variant.name, **options.to_json()}


def convert(
    checkpoint: Checkpoint,
    target: Path,
    key: str,
    options: Options,
    progress: Progress,
    tell: Tell = lambda *_: None,
    wrote: Wrote = lambda *_: None,
) -> ModelConfig:
    """Write the model `key` into `target`, going on where a killed conversion stopped.

    A component is done when its file and the record beside it are there; config.json comes last.
    `tell` is called with component, kind of layer and relative error of what was quantised, `wrote`
    with every component that this call has written and its content hash.
    Raises CheckpointError where the checkpoint does not fit, StoreError where `target` holds
    something else or has too little room; finished components stay.
    """
    options.check_fit(checkpoint.dit, checkpoint.t5)

    def outline() -> Outline:
        return Outline(
            variant=checkpoint.variant.name,
            dtype=options.dtype,
            quantization=options.quantization,
            defaults=checkpoint.variant.defaults,
            tokenizer=checkpoint.files["tokenizer"][0],
            jobs=options.applied(plan_components(checkpoint, options.dtype)),
        )

    return _produce(outline, target, key, progress, tell, wrote)


def rehearse(checkpoint: Checkpoint, options: Options) -> None:
    """Plan a conversion and try its tokenizer, by headers alone; write nothing.

    Raises what `convert` would raise for this checkpoint before its first tensor.
    """
    plan_components(checkpoint, options.dtype)
    read_tokenizer(checkpoint.files["tokenizer"][0])


def material_of_model(config: ModelConfig, options: Options) -> dict[str, Any]:
    """What gives a model its meaning that is quantised from a converted one."""
    hashes = {name: component.hash for name, component in config.components.items()}
    defaults = to_builtins(config.defaults)
    return {"source": hashes, "variant": config.variant, "defaults": defaults, **options.to_json()}


def plan_requantized(directory: Path, config: ModelConfig, options: Options) -> list[Job]:
    """Plan the components of a quantised copy of a model, by headers alone.

    Raises UsageError where it is quantised already, or a group size does not fit.
    """
    options.check_fit(config.dit, config.t5)
    return options.applied(plan_copy(directory, config))


def requantize(
    directory: Path,
    target: Path,
    key: str,
    options: Options,
    progress: Progress,
    tell: Tell = lambda *_: None,
    wrote: Wrote = lambda *_: None,
) -> ModelConfig:
    """Write the model in `directory` again into `target`, quantised; otherwise as `convert`."""
    config = read_model_config(directory)

    def outline() -> Outline:
        return Outline(
            variant=config.variant,
            dtype=config.dtype,
            quantization=options.quantization or config.quantization,
            defaults=config.defaults,
            tokenizer=directory / config.components["tokenizer"].file,
            jobs=plan_requantized(directory, config, options),
        )

    return _produce(outline, target, key, progress, tell, wrote)


def _produce(
    outline: Callable[[], Outline],
    target: Path,
    key: str,
    progress: Progress,
    tell: Tell,
    wrote: Wrote,
) -> ModelConfig:
    """Write what is outlined, unless it is there."""
    finished = _finished(target, key)
    if finished is not None:
        _remove_records(target, finished)
        return finished
    plan = outline()
    jobs = plan.jobs
    tokenizer = read_tokenizer(plan.tokenizer)
    done = {job.name: _recorded(target, job, key) for job in jobs}
    check_room(target, sum((job.bytes for job in jobs if done[job.name] is None), len(tokenizer)))
    try:
        target.mkdir(parents=True, exist_ok=True)
        components = {"tokenizer": _write_tokenizer(tokenizer, target)}
        for job in jobs:
            components[job.name] = done[job.name] or _write(job, target, key, progress, tell)
        for name, component in components.items():
            if not done.get(name):
                wrote(target / component.file, component.hash)
        config = ModelConfig(
            schema=SCHEMA,
            key=key,
            variant=plan.variant,
            dtype=cast(Dtype, plan.dtype),  # Options lets no other pass
            quantization=plan.quantization,
            defaults=plan.defaults,
            files=Components(**components),
        )
        atomic_write(target / "config.json", encode(config))
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


def _recorded(target: Path, job: Job, key: str) -> Component[Any] | None:
    """Give the component that an earlier run of this conversion finished."""
    try:
        record = load(_record(target, job.file), Record)
    except (OSError, DocumentError):  # a missing or damaged record means: not done
        return None
    path = target / job.file
    size = path.stat().st_size if path.is_file() else None
    if (record.key, record.file, record.bytes) != (key, job.file, size):
        return None
    return described(job, record.hash, record.bytes)


def described(job: Job, digest: str, size: int) -> Component[Any]:
    """Say of a component that was written what config.json says."""
    return Component(
        file=job.file, hash=digest, bytes=size, parameters=job.parameters, config=job.config
    )


def _remove_records(target: Path, config: ModelConfig) -> None:
    for component in config.components.values():
        _record(target, component.file).unlink(missing_ok=True)


def _write(job: Job, target: Path, key: str, progress: Progress, tell: Tell) -> Component[Any]:
    """Write one component file, then the record that says it is done."""
    total, done = sum(slot.nbytes for slot in job.stored), 0
    packer = Packer(job.quantization, job.slots) if job.quantization else None

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(job.name, done, total)

    progress(job.name, 0, total)
    with open_network(job.sources) as file:
        blocks = partial(_blocks, file, job)
        written = write_tensors(
            target / job.file,
            job.stored,
            partial(packer.blocks, plain=blocks) if packer else blocks,
            job.metadata,
            advance,
        )
    for kind, error in (packer.errors if packer else {}).items():
        tell(job.name, kind, error)
    component = described(job, written.hash, written.bytes)
    record = Record(key=key, **structs.asdict(component))
    atomic_write(_record(target, job.file), encode(record))
    return component


def _blocks(file: Network, job: Job, slot: Slot) -> Iterator[Array]:
    move = job.moves[slot.name]
    source = file.tensors[move.source].dtype
    subject = f"{job.sources[0]}: {shown(move.source)}"
    for block in file.blocks(move.source):
        yield recast(apply_transform(block, move.transform), source, slot.dtype, subject)


def _write_tokenizer(data: bytes, target: Path) -> Component[Any]:
    atomic_write(target / TOKENIZER, data)
    digest = xxhash.xxh3_128_hexdigest(data)
    return Component(file=TOKENIZER, hash=digest, bytes=len(data), config=None)
