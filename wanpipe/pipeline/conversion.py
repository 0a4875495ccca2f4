"""Runs conversions into an entry of the cache or a user's folder, with progress in bytes."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from msgspec import structs

from wanpipe.errors import CheckpointError, StoreError, UsageError
from wanpipe.models.config import Components, ModelConfig, component_file, read_model_config
from wanpipe.runtime.report import Report, Task
from wanpipe.store import Draft, Recipe, Store
from wanpipe.store.arrays import DamageError
from wanpipe.store.entry import read_entry
from wanpipe.store.keys import is_key
from wanpipe.weights.card import write_card
from wanpipe.weights.model import open_model

UNIT = 1 << 20  # bytes in a step of the progress bar
CLAIM = ".wanpipe-convert"  # in a folder that a conversion has begun to write
MAX_LOCK_NAME = 200  # bytes; file systems take 255 for a name
Convert = Callable[..., ModelConfig]


@dataclass
class Conversion:
    """A conversion by a function of wanpipe.weights.convert. `source` is what the model's card says
    of what it was made from.
    """

    recipe: Recipe
    convert: Convert
    store: Store
    source: dict[str, str]
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
        if tokenizer := self.written.get(component_file("tokenizer")):
            self.store.hash_cache.record_tried(tokenizer)  # as a conversion does


@dataclass(frozen=True)
class ModelFolder:
    """A model in a user's folder, outside the cache."""

    path: Path
    store: Store

    def fill(self, conversion: Conversion) -> Path:
        """Write the model into the folder unless it is up to date, and return the folder."""
        from wanpipe.weights.convert import remove_leftovers

        event = {**conversion.recipe.event(), "path": str(self.path)}
        with self.lock():
            key = conversion.recipe.key
            if not self.store.force and self.is_up_to_date(key):
                remove_leftovers(self.path, read_model_config(self.path))
                (self.path / CLAIM).unlink(missing_ok=True)
                self.store.report.event("reused", **event)
            else:
                started = time.monotonic()
                self.discard(key)
                with self.claimed():
                    conversion.write(self.path)
                seconds = round(time.monotonic() - started, 3)
                self.store.report.event("computed", **event, seconds=seconds)
            self.describe(conversion.source)
        conversion.remember(self.path)
        return self.path

    def describe(self, source: dict[str, str]) -> None:
        """Write the card of the model, unless there is a README.md."""
        try:
            write_card(self.path, read_model_config(self.path), source)
        except OSError as error:
            raise cannot_be_written(self.path, error) from error

    def check(self) -> None:
        """Raise StoreError if the folder cannot be written, or has files of the user by
        the names of a model's: before gigabytes are read for it.
        """
        whole = absolute(self.path)
        there = next(one for one in (whole, *whole.parents) if os.path.lexists(one))
        if not there.is_dir():
            raise StoreError(f"{there} is not a directory; choose another directory for the model")
        try:
            with suppress(FileNotFoundError):
                whole.lstat()
            if not os.access(there, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            if not self.store.read_only and whole.parent.is_dir() and not self.lock_file.exists():
                self.lock_file.touch()
                self.lock_file.unlink()
        except OSError as error:
            raise cannot_be_written(self.path, error) from error
        self.check_owner()

    def check_owner(self) -> None:
        """Raise StoreError if files of the user have the names of a model's files."""
        from wanpipe.weights.convert import has_records

        names = [component_file(name) for name in Components.__struct_fields__]
        names += [f"{name}.part" for name in names]
        found = [name for name in names if os.path.lexists(self.path / name)]
        begun = (self.path / CLAIM).exists() or has_records(self.path)
        if found and not begun and not (self.path / "config.json").exists():
            raise StoreError(
                f"{self.path} holds {found[0]}, which is of no model that wanpipe wrote; choose "
                "another directory"
            )

    @property
    def lock_file(self) -> Path:
        """Path of the lock, beside the folder."""
        whole = absolute(self.path)
        name = whole.name.encode()[:MAX_LOCK_NAME].decode(errors="ignore")
        return whole.with_name(f".{name}.lock")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the folder, beside it. Raises StoreError if it cannot be made there."""
        from filelock import FileLock

        file = self.lock_file
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()  # if this fails, a lock would wait forever
        except OSError as error:
            raise cannot_be_written(self.path, error) from error
        with FileLock(file):
            try:
                yield
            finally:
                file.unlink(missing_ok=True)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Mark the folder as one that a conversion has begun, until it is whole.

        Raises StoreError if files of somebody else are there by the names of a model's.
        """
        mark, existed = self.path / CLAIM, self.path.is_dir()
        if (self.path / "config.json").exists():
            yield  # the conversion checks whether it belongs to this model
            return
        self.check_owner()
        try:
            self.path.mkdir(exist_ok=True)
            mark.touch()
        except OSError as error:
            raise cannot_be_written(self.path, error) from error
        try:
            yield
        finally:
            others = [path.name for path in self.path.iterdir() if path != mark]
            if not others or "config.json" in others:
                mark.unlink(missing_ok=True)
            if not others and not existed:
                self.path.rmdir()

    def is_up_to_date(self, key: str) -> bool:
        """Whether the folder is the model `key`, every file with its content hash."""
        try:
            model = open_model(self.path)
            for name in model.config.components:
                model.checked(name, self.store)
        except CheckpointError:
            return False
        return model.config.key == key

    def discard(self, key: str) -> None:
        """Remove a damaged or unwanted copy of this model, so that it is written again."""
        try:
            config = read_model_config(self.path)
        except CheckpointError:
            return  # nothing, an unfinished conversion, or something else: the conversion decides
        if config.key == key:
            self.path.joinpath(CLAIM).touch()
            (self.path / "config.json").unlink()
            for component in config.components.values():
                (self.path / component.file).unlink(missing_ok=True)


def with_known_content(recipe: Recipe, store: Store) -> Recipe:
    """Return the recipe of an entry that was made from the same files under other names, the same
    way; without one, return `recipe`.
    """
    if store.force or store.has(recipe.stage, recipe.key):
        return recipe
    folder, wanted = store.root / recipe.stage, meaning(recipe.material)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        with suppress(DamageError):  # a damaged entry is no match
            material = read_entry(path).material if is_key(path.name) else None
            if material is not None and meaning(material) == wanted:
                return replace(recipe, material=material)
    return recipe


def meaning(material: Any) -> Any:
    """Return a conversion's material with the roles of its files instead of their names.

    Content gives the role of a file. Only the two experts are told apart by name.
    """
    from wanpipe.checkpoints.folders import expert_label

    files = sorted((digest, expert_label(path)) for path, digest in material.source.items())
    return structs.replace(material, source=files)


def absolute(path: Path) -> Path:
    """Return a path with a name of its own. Raises UsageError for the root of a file system."""
    whole = Path(os.path.abspath(path))  # noqa: PTH100, resolve would follow a link to the folder
    if not whole.name:
        raise UsageError(f"{path} is the root of a file system; choose a directory below it")
    return whole


def cannot_be_written(path: Path, error: OSError) -> StoreError:
    """Return the error for a folder that cannot be written."""
    return StoreError(f"{path} cannot be written: {error.strerror}; choose another directory")


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
