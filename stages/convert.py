"""convert: an original PyTorch checkpoint to a model that MLX loads lazily.

Reads: a checkpoint in the official layout; or a converted model, to quantise it.
Writes: a model directory: config.json and one safetensors per component; an entry of the cache
unless told where.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from wanpipe.cli import options
from wanpipe.cli.session import Session, stage_options
from wanpipe.errors import CheckpointError, UsageError
from wanpipe.models.config import ModelConfig, Quantization, read_model_config
from wanpipe.runtime.report import Task
from wanpipe.store import Draft, Recipe, Store
from wanpipe.store import material as named
from wanpipe.weights.model import find_model, open_model

UNIT = 1 << 20  # bytes in a step of the progress bar
BITS, TEXT_BITS, GROUP_SIZE = 4, 8, 64  # of quantised matrices, unless told


@dataclass(frozen=True, kw_only=True)
class Params:
    """What to convert and how: a checkpoint, or with `from_model` (a directory, an entry or a name)
    a model that is converted already, whose dtype stays.

    Without `output_dir` the model becomes an entry of the cache. `bits` and `group_size` hold for
    all that is quantised; unless given, transformers get 4 bits, T5 gets 8, in groups of 64.
    """

    checkpoint_dir: Path | None = None
    from_model: str | None = None
    output_dir: Path | None = None
    dtype: str = "bfloat16"
    model_version: str = "auto"
    quantize: bool = False
    quantize_text_encoder: bool = False
    bits: int | None = None
    group_size: int | None = None


def run(params: Params, store: Store) -> Path:
    """Convert a checkpoint unless that was done before, and return the model's directory.

    Raises CheckpointError for a checkpoint that is not whole or not understood, StoreError where
    there is no room, UsageError for options that exclude or miss each other.
    """
    check(params)
    recipe, engine = from_model(params, store) if params.from_model else original(params, store)

    def tell(component: str, layer: str, error: float) -> None:
        store.report.event("quantized", component=component, layer=layer, relative_error=error)

    fresh: dict[str, str] = {}

    def wrote(path: Path, digest: str) -> None:
        fresh[path.name] = digest

    def write(directory: Path) -> dict[str, str]:
        with bars(store, "convert") as progress:
            config = engine(directory, recipe.key, progress=progress, tell=tell, wrote=wrote)
        return {component.file: component.hash for component in config.components.values()}

    if params.output_dir is not None:
        made = outside(params.output_dir, recipe, write, store)
    else:
        made = store.obtain(recipe, filler(write)).path
    for name, digest in fresh.items():  # in place at last: the first run need not read them
        store.memo.learn(made / name, digest)
    return made


def check(params: Params) -> None:
    """Raise UsageError for options that exclude or miss each other."""
    quantizes = params.quantize or params.quantize_text_encoder
    if (params.checkpoint_dir is None) == (params.from_model is None):
        raise UsageError(
            "convert takes a checkpoint or a model; give --checkpoint-dir or --from-model, not both"
        )
    if params.from_model is not None and not quantizes:
        raise UsageError(
            "--from-model is for quantising; add --quantize or --quantize-text-encoder"
        )
    if not quantizes and (params.bits, params.group_size) != (None, None):
        raise UsageError(
            "--bits and --group-size say how to quantise; add --quantize or --quantize-text-encoder"
        )


def original(params: Params, store: Store) -> tuple[Recipe, Callable[..., ModelConfig]]:
    """Plan the conversion of a checkpoint: its recipe, and what carries it out."""
    from wanpipe.checkpoints.detect import detect
    from wanpipe.weights import convert as engine
    from wanpipe.weights.source_hashes import source_hashes

    assert params.checkpoint_dir is not None
    checkpoint = detect(params.checkpoint_dir, params.model_version)
    chosen = engine.Options(dtype=params.dtype, **quantization(params))
    chosen.check_fit(checkpoint.dit, checkpoint.t5)
    with bars(store, "read") as progress:
        hashes = source_hashes(checkpoint, store.memo, progress)
    material = engine.material(checkpoint, hashes, chosen)
    made = {"checkpoint": str(params.checkpoint_dir.resolve())}
    recipe = recipe_of(material, made)
    if params.output_dir is not None or store.wants(recipe):
        engine.rehearse(checkpoint, chosen)  # whatever is refused leaves no trace in the cache
    return recipe, partial(engine.convert, checkpoint, options=chosen)


def from_model(params: Params, store: Store) -> tuple[Recipe, Callable[..., ModelConfig]]:
    """Plan the quantisation of a converted model, every file checked: its recipe, and what carries
    it out.
    """
    from wanpipe.weights import convert as engine

    model = find_model(params.from_model, [], store)
    for name in model.config.components:
        model.checked(name, store)
    chosen = engine.Options(dtype=model.config.dtype, **quantization(params))
    engine.plan_requantized(model.directory, model.config, chosen)  # refuses what cannot be
    material = engine.material_of_model(model.config, chosen)
    made = {"from_model": str(model.directory.resolve())}
    return recipe_of(material, made), partial(engine.requantize, model.directory, options=chosen)


def recipe_of(material: dict[str, Any], made: dict[str, Any]) -> Recipe:
    """The recipe of a converted model."""
    return Recipe(material=named("convert", **material), made=made, resumable=True)


def quantization(params: Params) -> dict[str, Quantization]:
    """How to quantise transformers and T5, as far as that is asked for."""
    group_size = params.group_size or GROUP_SIZE
    asked = (
        ("quantization", params.quantize, params.bits or BITS),
        ("text_encoder", params.quantize_text_encoder, params.bits or TEXT_BITS),
    )
    return {
        name: Quantization(bits=bits, group_size=group_size)
        for name, wanted, bits in asked
        if wanted
    }


def filler(write: Callable[[Path], dict[str, str]]) -> Callable[[Draft], dict[str, Any]]:
    """Return what writes the model into an entry, beside its Zarr group."""

    def fill(draft: Draft) -> dict[str, Any]:
        from wanpipe.backend.device import provenance

        for name, digest in write(draft.path).items():
            draft.attach(name, digest)
        draft.attach("config.json")
        return provenance()

    return fill


def outside(
    directory: Path, recipe: Recipe, write: Callable[[Path], dict[str, str]], store: Store
) -> Path:
    """Write the model into a directory of the user's, or say that it is there, whole."""
    from filelock import FileLock

    event = {**recipe.event(), "path": str(directory)}
    if store.dry:
        status = "already there" if holds(directory, recipe.key, store) else "to compute"
        store.report.event("planned", **event, status=status)
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory.with_name(f".{directory.name}.lock"))
    with lock:
        try:
            if not store.force and holds(directory, recipe.key, store):
                store.report.event("reused", **event)
            else:
                started = time.monotonic()
                discard(directory, recipe.key)
                write(directory)
                seconds = round(time.monotonic() - started, 3)
                store.report.event("computed", **event, seconds=seconds)
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
    return directory


def holds(directory: Path, key: str, store: Store) -> bool:
    """Whether a directory is the model `key`, every file with the content hash it should have."""
    try:
        model = open_model(directory)
        for name in model.config.components:
            model.checked(name, store)
    except CheckpointError:
        return False
    return model.config.key == key


def discard(directory: Path, key: str) -> None:
    """Remove a damaged or unwanted copy of the model `key`, so that it is written anew."""
    try:
        config = read_model_config(directory)
    except CheckpointError:
        return  # nothing, an unfinished conversion, or a stranger's: convert tells
    if config.key == key:
        (directory / "config.json").unlink()
        for component in config.components.values():
            (directory / component.file).unlink(missing_ok=True)


@contextmanager
def bars(store: Store, verb: str) -> Iterator[Callable[[str, int, int], None]]:
    """Give a progress function (what, bytes done, bytes in all) that shows one bar per component or
    file.
    """
    open_tasks: list[tuple[str, Any, Task]] = []

    def close() -> None:
        while open_tasks:
            open_tasks.pop()[1].__exit__(None, None, None)

    def progress(name: str, done: int, total: int) -> None:
        if not open_tasks or open_tasks[0][0] != name:
            close()
            context = store.report.task(f"{verb} {name}", max(1, total // UNIT))
            open_tasks.append((name, context, context.__enter__()))
        task = open_tasks[0][2]
        if done // UNIT > task.done:
            task.advance(done // UNIT - task.done)

    try:
        yield progress
    finally:
        close()


@click.command("convert", short_help="an original checkpoint to a model")
@stage_options
@options.checkpoint
@options.quantization
@click.option("--from-model", metavar="MODEL", help="Quantise a converted model, keeping it.")
@click.option("--output-dir", type=options.PATH, help="Where the model goes. Default: the cache.")
def command(session: Session, **asked: Any) -> None:
    """Convert an original Wan checkpoint, recognised by its files, to safetensors for MLX."""
    source = click.get_current_context().get_parameter_source("dtype")
    if asked["from_model"] is not None and source is not ParameterSource.DEFAULT:
        raise UsageError("--dtype is for checkpoints, a model keeps its own; leave it out")
    session.deliver([run(Params(**asked), session.store)])
