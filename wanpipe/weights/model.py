"""A converted model on disk: its config.json and the component files that it names. Loads no
weights.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from wanpipe.errors import CheckpointError, StoreError, UsageError
from wanpipe.models.config import Component, ModelConfig, read_model_config
from wanpipe.store import Entry, Run, Store
from wanpipe.store.keys import Progress, hash_file, is_key


@dataclass(frozen=True)
class Model:
    """A model directory with its config read and its files found."""

    directory: Path
    config: ModelConfig

    def component(self, name: str) -> Component[Any]:
        """The component of that name. Raises CheckpointError where this model has none."""
        if name not in self.config.components:
            raise CheckpointError(
                f"{self.directory} ({self.config.variant}) has no {name}; it has "
                f"{', '.join(self.config.components)}; convert the checkpoint again with --force"
            )
        return self.config.components[name]

    def hash(self, name: str) -> str:
        """Content hash of a component."""
        return self.component(name).hash

    def file(self, name: str) -> Path:
        """Path of a component's file."""
        return self.directory / self.component(name).file

    def checked(self, name: str, store: Store, progress: Progress | None = None) -> Path:
        """Path of a component's file, its content hash checked (from memory where the file has not
        changed). `progress` gets the bytes done and in all.
        """
        path = self.file(name)
        if store.hash_cache.hash(path, partial(hash_file, progress=progress)) != self.hash(name):
            raise CheckpointError(
                f"{path} does not have the content hash in config.json; convert the checkpoint "
                "again"
            )
        return path

    def tokenizer(self, store: Store) -> Path:
        """Path of the tokenizer, its content hash checked. One that no conversion with this cache
        has written is tried first, in a process of its own, once.
        """
        from wanpipe.checkpoints.tokenizer_file import read_tokenizer

        path, digest = self.checked("tokenizer", store), self.hash("tokenizer")
        if not store.hash_cache.is_tried(digest):
            read_tokenizer(path)
            store.hash_cache.record_tried(digest)
        return path

    @cached_property
    def takes_clip(self) -> bool:
        """Whether its transformer attends to CLIP's image tokens (Wan2.1 I2V)."""
        return self.config.dit.clip_dim is not None


def check_readable(directory: Path) -> None:
    """Raise CheckpointError for a path that MLX cannot open because it is not UTF-8."""
    try:
        str(directory).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(
            f"the path of a model must be UTF-8, got {directory}; rename its folders"
        ) from error


def open_model(directory: Path | str) -> Model:
    """Open a model directory. Raises CheckpointError where config.json is missing or cannot be, or
    a component is missing, of another size, or of other dimensions by its header.
    """
    from wanpipe.weights.shape_check import check_shapes

    model = Model(Path(directory), read_model_config(Path(directory)))
    check_readable(model.directory)
    for name, component in model.config.components.items():
        path = model.directory / component.file
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise CheckpointError(f"{path} is missing; convert the checkpoint again")
        if size != component.bytes:
            raise CheckpointError(
                f"{path} must have {component.bytes} bytes, got {size}; {name} is damaged, convert "
                "the checkpoint again"
            )
        if component.config is not None:
            check_shapes(name, path, component.config)
    return model


def find_model(
    reference: str | None, entries: list[Entry], store: Store, run: Run | None = None
) -> Model:
    """Open the model that --model names (a directory, a convert entry or a name), else that of the
    run, else the latest used one that fits the entries. Raises UsageError or CheckpointError.
    """
    if reference is not None:
        return open_model(locate_model(reference, store))
    if run is not None:
        directory = current_directory(run.model.directory, store)
        if not (directory / "config.json").is_file():
            raise CheckpointError(
                f"the model was at {run.model.directory} and is gone; say where it is with --model"
            )
        return open_model(directory)
    models = matching_models(entries, store)
    if not models:
        raise UsageError(
            "no model is given; use --model DIR, a directory that `wanpipe convert` wrote"
        )
    if len(models) > 1:
        store.report.remark(
            f"{len(models)} models fit; taking the latest used, {models[0].directory}. Use --model "
            "to take another"
        )
    return models[0]


def matching_models(entries: list[Entry], store: Store) -> list[Model]:
    """The known models that made the entries, by content hashes, the latest used first: those used
    with this cache, and where the entries' own notes say that one was.
    """
    places = [model.directory for model in store.models.all()] if entries else []
    places += [entry.made.model for entry in entries if entry.made.model]
    found: dict[str, Model] = {}
    for place in dict.fromkeys(places):
        with suppress(CheckpointError):  # a model that is gone or damaged fits nothing
            model = open_model(current_directory(place, store))
            if all(matches(model, entry) for entry in entries):
                found.setdefault(model.config.key, model)
    return list(found.values())


def matches(model: Model, entry: Entry) -> bool:
    """Whether the networks of a model are those that made an entry."""
    hashes = {name: component.hash for name, component in model.config.components.items()}
    made_by = {"t5": "t5_encoder", "tokenizer": "tokenizer", "vae": "vae_encoder", "clip": "clip"}
    if entry.stage == "decode":
        made_by = {"vae": "vae"}
    if entry.stage == "denoise":
        return entry.material.expert in (hashes[name] for name in model.config.experts)
    asked = {name: getattr(entry.material, name, None) for name in made_by}
    return all(hashes.get(made_by[name]) == value for name, value in asked.items() if value)


def current_directory(directory: str, store: Store) -> Path:
    """Return where a model is now: if its cache was moved, it is in `store` under its key."""
    path = Path(directory)
    if (path / "config.json").is_file() or not is_key(path.name):
        return path
    return store.path("convert", path.name) if store.is_here("convert", path.name) else path


def locate_model(reference: str, store: Store) -> Path:
    """Return the directory of a model given as such, as a convert entry, by a name, or as ORG/NAME
    in the Hub's cache.
    """
    from wanpipe.checkpoints.hub.cache import not_there, parse_repository

    if Path(reference).is_dir() and not is_named_model(reference, store):
        return Path(reference)
    try:
        path = store.locate(reference)
        if path.parent == store.root / "convert":
            store.is_here("convert", path.name)
        return path
    except StoreError as error:
        repository = parse_repository(reference)
        if snapshot := repository and repository.snapshot():
            return snapshot
        if repository is not None:
            other = f"a directory, an entry of {store.root}"
            raise CheckpointError(not_there(repository, other)) from error
        raise CheckpointError(
            f"no model {reference}: neither a directory nor an entry of {store.root}; "
            "make one with `wanpipe convert`"
        ) from error


def is_named_model(reference: str, store: Store) -> bool:
    """Return whether a reference is the name of a model, and no model lies in a folder of that
    name. People name a model as the folder of its checkpoint.
    """
    named = store.names.get(reference) or ""
    return named.startswith("convert/") and not is_model(Path(reference))


def is_model(directory: Path) -> bool:
    """Return whether a converted model lies in a directory."""
    try:
        read_model_config(directory)
    except CheckpointError:
        return False
    return True
