"""Runs conversions into an entry of the cache or a user's folder, with progress in bytes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wanpipe.errors import CheckpointError
from wanpipe.models.config import ModelConfig, read_model_config
from wanpipe.runtime.report import Report, Task
from wanpipe.store import Draft, Recipe, Store
from wanpipe.weights.model import open_model

UNIT = 1 << 20  # bytes in a step of the progress bar
Convert = Callable[..., ModelConfig]


@dataclass
class Conversion:
    """A conversion by a function of wanpipe.weights.convert."""

    recipe: Recipe
    convert: Convert
    store: Store
    written: dict[str, str] = field(default_factory=dict)  # content hashes by file name

    def write(self, directory: Path) -> dict[str, str]:
        """Write the model into a directory, and return the content hash of each component."""

        def report_error(component: str, layer: str, error: float) -> None:
            fields = {"component": component, "layer": layer, "relative_error": error}
            self.store.report.event("quantized", **fields)

        with byte_progress(self.store.report, "convert") as progress:
            config = self.convert(
                directory,
                self.recipe.key,
                progress=progress,
                on_quantized=report_error,
                on_written=lambda path, digest: self.written.update({path.name: digest}),
            )
        return {component.file: component.hash for component in config.components.values()}

    def publish(self) -> Path:
        """Write the model into an entry, next to its Zarr group, and return the entry's folder."""
        path = self.store.get_or_create(self.recipe, self.fill).path
        self.remember(path)
        return path

    def fill(self, draft: Draft) -> dict[str, Any]:
        """Write the model into a draft."""
        from wanpipe.backend.device import provenance

        for name, digest in self.write(draft.path).items():
            draft.attach(name, digest)
        draft.attach("config.json")
        return provenance()

    def remember(self, path: Path) -> None:
        """Note the content hashes of new files, so that the first run need not read them."""
        for name, digest in self.written.items():
            self.store.hash_cache.record(path / name, digest)


@dataclass(frozen=True)
class ModelFolder:
    """A model in a user's folder, outside the cache."""

    path: Path
    recipe: Recipe
    store: Store

    def fill(self, conversion: Conversion) -> Path:
        """Write the model into the folder unless it is up to date, and return the folder."""
        from filelock import FileLock

        event = {**self.recipe.event(), "path": str(self.path)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        with lock:
            try:
                if not self.store.force and self.is_up_to_date():
                    self.store.report.event("reused", **event)
                else:
                    started = time.monotonic()
                    self.discard()
                    conversion.write(self.path)
                    seconds = round(time.monotonic() - started, 3)
                    self.store.report.event("computed", **event, seconds=seconds)
            finally:
                Path(lock.lock_file).unlink(missing_ok=True)
        conversion.remember(self.path)
        return self.path

    def is_up_to_date(self) -> bool:
        """Whether the folder is this model, every file with its content hash."""
        try:
            model = open_model(self.path)
            for name in model.config.components:
                model.checked(name, self.store)
        except CheckpointError:
            return False
        return model.config.key == self.recipe.key

    def discard(self) -> None:
        """Remove a damaged or unwanted copy of this model, so that it is written again."""
        try:
            config = read_model_config(self.path)
        except CheckpointError:
            return  # nothing, an unfinished conversion, or something else: the conversion decides
        if config.key == self.recipe.key:
            (self.path / "config.json").unlink()
            for component in config.components.values():
                (self.path / component.file).unlink(missing_ok=True)


@contextmanager
def byte_progress(report: Report, verb: str) -> Iterator[Callable[[str, int, int], None]]:
    """Return a function (name, bytes done, total bytes) that shows a progress bar for each name."""
    open_tasks: list[tuple[str, Any, Task]] = []

    def close() -> None:
        while open_tasks:
            open_tasks.pop()[1].__exit__(None, None, None)

    def progress(name: str, done: int, total: int) -> None:
        if not open_tasks or open_tasks[0][0] != name:
            close()
            context = report.task(f"{verb} {name}", max(1, total // UNIT))
            open_tasks.append((name, context, context.__enter__()))
        task = open_tasks[0][2]
        if done // UNIT > task.done:
            task.advance(done // UNIT - task.done)

    try:
        yield progress
    finally:
        close()
