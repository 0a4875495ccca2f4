"""convert: an original PyTorch checkpoint to a model that MLX loads lazily.

Reads: a checkpoint in the official layout.
Writes: a model directory: config.json and one safetensors per component; an entry of the cache
unless told where.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from wanpipe import cli, options
from wanpipe.errors import UsageError
from wanpipe.report import Task
from wanpipe.store import Draft, Recipe, Store

UNIT = 1 << 20  # bytes in a step of the progress bar


@dataclass(frozen=True, kw_only=True)
class Params:
    """What to convert and how; without `output_dir` the model becomes an entry of the cache."""

    checkpoint_dir: Path
    output_dir: Path | None = None
    dtype: str = "bfloat16"
    model_version: str = "auto"


def run(params: Params, store: Store) -> Path:
    """Convert a checkpoint unless that was done before, and return the model's directory.

    Raises CheckpointError for a checkpoint that is not whole or not understood, StoreError where
    there is no room.
    """
    from wanpipe.weights import convert as engine
    from wanpipe.weights.detect import detect
    from wanpipe.weights.sources import source_hashes

    checkpoint = detect(params.checkpoint_dir, params.model_version)
    chosen = engine.Options(dtype=params.dtype)
    with bars(store, "read") as progress:
        hashes = source_hashes(checkpoint, store.memo, progress)
    recipe = Recipe(
        stage="convert",
        algorithm=engine.ALGORITHM,
        material=engine.material(checkpoint, hashes, chosen),
        made={"checkpoint": str(params.checkpoint_dir.resolve())},
        resumable=True,
    )

    def write(directory: Path) -> dict[str, str]:
        with bars(store, "convert") as progress:
            config = engine.convert(checkpoint, directory, recipe.key, chosen, progress)
        return {component.file: component.hash for component in config.components.values()}

    if params.output_dir is not None:
        return outside(params.output_dir, recipe, write, store)
    return store.obtain(recipe, filler(write)).path


def filler(write: Callable[[Path], dict[str, str]]) -> Callable[[Draft], dict[str, Any]]:
    """Return what writes the model into an entry, beside its Zarr group."""

    def fill(draft: Draft) -> dict[str, Any]:
        from wanpipe.device import made

        for name, digest in write(draft.path).items():
            draft.attach(name, digest)
        draft.attach("config.json")
        return made()

    return fill


def outside(
    directory: Path, recipe: Recipe, write: Callable[[Path], dict[str, str]], store: Store
) -> Path:
    """Write the model into a directory of the user's, or say that it is there."""
    from wanpipe.errors import CheckpointError
    from wanpipe.model import open_model

    try:
        there = (directory / "config.json").exists() and open_model(
            directory
        ).config.key == recipe.key
    except CheckpointError:
        there = False
    if store.dry:
        status = "already there" if there else "to compute"
        store.report.event("planned", **recipe.event(), path=str(directory), status=status)
        return directory
    event = {**recipe.event(), "path": str(directory)}
    if there and not store.force:
        store.report.event("reused", **event)
        return directory
    write(directory)
    store.report.event("computed", **event, seconds=0.0)
    return directory


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
@cli.common
@options.checkpoint
@click.option("--output-dir", type=options.PATH, help="Where the model goes. Default: the cache.")
def command(session: cli.Session, checkpoint_dir: Path | None, **asked: Any) -> None:
    """Convert an original Wan checkpoint, recognised by its files, to safetensors for MLX."""
    if checkpoint_dir is None:
        raise UsageError("no checkpoint is given; use --checkpoint-dir DIR")
    session.deliver([run(Params(checkpoint_dir=checkpoint_dir, **asked), session.store)])
