"""Turns a recognized checkpoint into a model directory, one component file after another.

Memory holds one block of one tensor at a time, whatever the size of the model. Knows neither the
cache nor the command line.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import xxhash
from msgspec import structs

from wanpipe.checkpoints.detect import Checkpoint
from wanpipe.checkpoints.dtypes import NAMES, Array, recast
from wanpipe.checkpoints.rename import apply_transform
from wanpipe.checkpoints.source_hashes import Progress
from wanpipe.checkpoints.state_dict import Network, open_network
from wanpipe.checkpoints.tensors import quote_name
from wanpipe.checkpoints.tokenizer_file import read_tokenizer
from wanpipe.errors import CheckpointError, StoreError, UsageError
from wanpipe.models.config import (
    EXPERTS,
    SCHEMA,
    Component,
    Components,
    DiTConfig,
    Dtype,
    ModelConfig,
    Quantization,
    T5Config,
    read_model_config,
)
from wanpipe.models.variants import Defaults
from wanpipe.runtime.disk import atomic_write, check_free_space
from wanpipe.runtime.documents import DocumentError, Hash, encode, load, to_builtins
from wanpipe.weights.components import (
    ComponentPlan,
    plan_components,
    plan_copy,
    with_quantization,
)
from wanpipe.weights.quantize import Quantizer, check_group_size, check_quantization
from wanpipe.weights.write import TensorSpec, write_tensors

ALGORITHM = 1  # raised when the same checkpoint and options give other files
TOKENIZER = "tokenizer.json"
OnQuantized = Callable[[str, str, float], None]  # component, kind of layer, relative error
OnWritten = Callable[[Path, str], None]  # a finished file, its content hash


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a conversion: `dtype` is "bfloat16", "float16" or "float32"; `quantization` is for
    the blocks of the transformers, `text_encoder` for those of T5.
    """

    dtype: str = "bfloat16"
    quantization: Quantization | None = None
    text_encoder: Quantization | None = None

    def __post_init__(self) -> None:
        if self.dtype not in NAMES:
            raise UsageError(f"dtype must be {', '.join(NAMES)}, got {self.dtype}")
        for spec in filter(None, (self.quantization, self.text_encoder)):
            check_quantization(spec)

    def check_group_sizes(self, dit: DiTConfig, t5: T5Config) -> None:
        """Raise UsageError if a group size does not divide the widths of the networks."""
        if self.quantization is not None:
            check_group_size(self.quantization, "the transformer", (dit.dim, dit.ffn_dim))
        if self.text_encoder is not None:
            check_group_size(self.text_encoder, "T5", (t5.dim, t5.attention_dim, t5.ffn_dim))

    def apply(self, plans: Sequence[ComponentPlan]) -> list[ComponentPlan]:
        """Plan each component in the bits that are asked for it."""
        specs = dict.fromkeys(EXPERTS, self.quantization) | {"t5_encoder": self.text_encoder}
        return [with_quantization(plan, specs.get(plan.name)) for plan in plans]

    def to_json(self) -> dict[str, Any]:
        """Their part of a model's material."""
        specs = {"experts": self.quantization, "text_encoder": self.text_encoder}
        given = {name: spec and to_builtins(spec) for name, spec in specs.items()}
        return {"dtype": self.dtype, "quantization": given if any(given.values()) else None}


class FinishedComponent(Component[Any], frozen=True, kw_only=True):
    """Record beside a finished component until its model is whole; `key` is the model's."""

    key: Hash


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """The plan of a model: its config.json without the components, and their plans."""

    variant: str
    dtype: str
    quantization: Quantization | None
    defaults: Defaults
    tokenizer: Path
    components: list[ComponentPlan]


def material(checkpoint: Checkpoint, hashes: dict[str, str], options: Options) -> dict[str, Any]:
    """Material of a converted model; `hashes` as `source_hashes` gives them."""
    return {"source": hashes, "variant": checkpoint.variant.name, **options.to_json()}


def convert(
    checkpoint: Checkpoint,
    target: Path,
    key: str,
    options: Options,
    progress: Progress,
    on_quantized: OnQuantized = lambda *_: None,
    on_written: OnWritten = lambda *_: None,
) -> ModelConfig:
    """Write the model `key` into `target`, going on where a killed conversion stopped.

    A component is done when its file and the record beside it are there; config.json comes last.
    `on_quantized` is called with component, kind of layer and relative error of what was quantized,
    `on_written` with every file that this call has written and its content hash.
    Raises CheckpointError where the checkpoint does not fit, StoreError where `target` holds
    something else or has too little room; finished components stay.
    """
    options.check_group_sizes(checkpoint.dit, checkpoint.t5)

    def plan_model() -> ModelPlan:
        return ModelPlan(
            variant=checkpoint.variant.name,
            dtype=options.dtype,
            quantization=options.quantization,
            defaults=checkpoint.variant.defaults,
            tokenizer=checkpoint.files["tokenizer"][0],
            components=options.apply(plan_components(checkpoint, options.dtype)),
        )

    return _write_model(plan_model, target, key, progress, on_quantized, on_written)


def check_readable(checkpoint: Checkpoint, options: Options) -> None:
    """Plan a conversion and try its tokenizer, from headers alone; write nothing.

    Raises what `convert` would raise for this checkpoint before its first tensor.
    """
    plan_components(checkpoint, options.dtype)
    read_tokenizer(checkpoint.files["tokenizer"][0])


def material_of_model(config: ModelConfig, options: Options) -> dict[str, Any]:
    """Material of a model that is quantized from a converted one."""
    hashes = {name: component.hash for name, component in config.components.items()}
    defaults = to_builtins(config.defaults)
    return {"source": hashes, "variant": config.variant, "defaults": defaults, **options.to_json()}


def plan_requantized(directory: Path, config: ModelConfig, options: Options) -> list[ComponentPlan]:
    """Plan the components of a quantized copy of a model, from headers alone.

    Raises UsageError where it is quantized already, or a group size does not divide its widths.
    """
    options.check_group_sizes(config.dit, config.t5)
    return options.apply(plan_copy(directory, config))


def requantize(
    directory: Path,
    target: Path,
    key: str,
    options: Options,
    progress: Progress,
    on_quantized: OnQuantized = lambda *_: None,
    on_written: OnWritten = lambda *_: None,
) -> ModelConfig:
    """Write the model in `directory` again into `target`, quantized; otherwise as `convert`."""
    config = read_model_config(directory)

    def plan_model() -> ModelPlan:
        return ModelPlan(
            variant=config.variant,
            dtype=config.dtype,
            quantization=options.quantization or config.quantization,
            defaults=config.defaults,
            tokenizer=directory / config.components["tokenizer"].file,
            components=plan_requantized(directory, config, options),
        )

    return _write_model(plan_model, target, key, progress, on_quantized, on_written)


def _write_model(
    plan_model: Callable[[], ModelPlan],
    target: Path,
    key: str,
    progress: Progress,
    on_quantized: OnQuantized,
    on_written: OnWritten,
) -> ModelConfig:
    """Write the planned model, unless it exists."""
    finished = _read_finished(target, key)
    if finished is not None:
        remove_leftovers(target, finished)
        return finished
    plan = plan_model()
    tokenizer = read_tokenizer(plan.tokenizer)
    done = {one.name: _read_record(target, one, key) for one in plan.components}
    missing = (one.bytes for one in plan.components if done[one.name] is None)
    check_free_space(target, sum(missing, len(tokenizer)))
    try:
        target.mkdir(parents=True, exist_ok=True)
        components = {"tokenizer": _write_tokenizer(tokenizer, target)}
        for one in plan.components:
            components[one.name] = done[one.name] or _write_component(
                one, target, key, progress, on_quantized
            )
        for name, component in components.items():
            if not done.get(name):
                on_written(target / component.file, component.hash)
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
        remove_leftovers(target, config)
        return read_model_config(target)
    except OSError as error:
        raise StoreError(
            f"{target} cannot be written: {error.strerror or error}; finished files are kept, "
            "so convert again when that is mended"
        ) from error


def _read_finished(target: Path, key: str) -> ModelConfig | None:
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


def _record_path(target: Path, file: str) -> Path:
    return target / f"{file}.json"


def has_records(target: Path) -> bool:
    """Return whether a conversion has finished a component in a directory, but not the model."""
    return any(map(_is_record, target.glob("*.safetensors.json")))


def _is_record(path: Path) -> bool:
    """Return whether a file is a record of wanpipe, not a file of the user."""
    try:
        load(path, FinishedComponent)
    except (OSError, DocumentError):
        return False
    return True


def _read_record(target: Path, plan: ComponentPlan, key: str) -> Component[Any] | None:
    """Read the record of a component that an earlier run of this conversion finished."""
    try:
        record = load(_record_path(target, plan.file), FinishedComponent)
    except (OSError, DocumentError):  # a missing or damaged record means: not done
        return None
    path = target / plan.file
    if path.is_symlink():  # its target does not belong to this model
        return None
    size = path.stat().st_size if path.is_file() else None
    if (record.key, record.file, record.bytes) != (key, plan.file, size):
        return None
    return component_of(plan, record.hash, record.bytes)


def component_of(plan: ComponentPlan, digest: str, size: int) -> Component[Any]:
    """Describe a written component as config.json does."""
    return Component(
        file=plan.file, hash=digest, bytes=size, parameters=plan.parameters, config=plan.config
    )


def remove_leftovers(target: Path, config: ModelConfig) -> None:
    """Remove what a finished or killed conversion leaves beside the files of a model: records of
    components, parts of files, drafts of small ones. The model must be locked.
    """
    for component in config.components.values():
        record = _record_path(target, component.file)
        if _is_record(record):
            record.unlink()
        (target / f"{component.file}.part").unlink(missing_ok=True)
    for suffix in ("json", "md"):
        for draft in target.glob(f".wanpipe-????????.{suffix}"):
            draft.unlink()


def _write_component(
    plan: ComponentPlan, target: Path, key: str, progress: Progress, on_quantized: OnQuantized
) -> Component[Any]:
    """Write one component file, then the record that says it is done."""
    total, done = sum(spec.nbytes for spec in plan.stored), 0
    quantizer = Quantizer(plan.quantization, plan.tensors) if plan.quantization else None

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(plan.name, done, total)

    progress(plan.name, 0, total)
    with open_network(plan.sources) as file:
        blocks = partial(_blocks, file, plan)
        written = write_tensors(
            target / plan.file,
            plan.stored,
            partial(quantizer.blocks, plain=blocks) if quantizer else blocks,
            plan.metadata,
            advance,
        )
    for kind, error in (quantizer.errors if quantizer else {}).items():
        on_quantized(plan.name, kind, error)
    component = component_of(plan, written.hash, written.bytes)
    record = FinishedComponent(key=key, **structs.asdict(component))
    atomic_write(_record_path(target, plan.file), encode(record))
    return component


def _blocks(file: Network, plan: ComponentPlan, spec: TensorSpec) -> Iterator[Array]:
    rename = plan.renames[spec.name]
    source = file.tensors[rename.source].dtype
    subject = f"{plan.sources[0]}: {quote_name(rename.source)}"
    for block in file.blocks(rename.source):
        yield recast(apply_transform(block, rename.transform), source, spec.dtype, subject)


def _write_tokenizer(data: bytes, target: Path) -> Component[Any]:
    atomic_write(target / TOKENIZER, data)
    digest = xxhash.xxh3_128_hexdigest(data)
    return Component(file=TOKENIZER, hash=digest, bytes=len(data), config=None)
