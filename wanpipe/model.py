"""A converted model on disk: its config.json and the component files that it names. Loads no
weights.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from wanpipe.config import Component, ModelConfig, read_model_config
from wanpipe.errors import CheckpointError, StoreError, UsageError
from wanpipe.store import Entry, Store


@dataclass(frozen=True)
class Model:
    """A model directory with its config read and its files found."""

    directory: Path
    config: ModelConfig

    def component(self, name: str) -> Component:
        """The component of that name. Raises CheckpointError where this model has none."""
        if name not in self.config.components:
            raise CheckpointError(
                f"{self.directory} ({self.config.variant}) has no {name}; it has "
                f"{', '.join(self.config.components)}"
            )
        return self.config.components[name]

    def hash(self, name: str) -> str:
        """Content hash of a component."""
        return self.component(name).hash

    def file(self, name: str) -> Path:
        """Path of a component's file."""
        return self.directory / self.component(name).file

    def checked(self, name: str, store: Store) -> Path:
        """Path of a component's file, its content hash checked (from memory where the file has not
        changed).
        """
        path = self.file(name)
        if store.memo.hash(path) != self.hash(name):
            raise CheckpointError(
                f"{path} does not have the content hash in config.json; convert the checkpoint "
                "again"
            )
        return path

    @cached_property
    def takes_clip(self) -> bool:
        """Whether its transformer attends to CLIP's image tokens (Wan2.1 I2V)."""
        return self.config.dit.clip_dim is not None


def open_model(directory: Path | str) -> Model:
    """Open a model directory. Raises CheckpointError where config.json or a component is missing or
    of another size.
    """
    model = Model(Path(directory), read_model_config(Path(directory)))
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
    return model


def find_model(reference: str | None, entries: list[Entry], store: Store) -> Model:
    """Open the model that --model names (a directory, a convert entry or a name), else the one that
    `entries` remember.
    """
    if reference is not None:
        return open_model(locate_model(reference, store))
    remembered = [entry.made["model"] for entry in entries if "model" in entry.made]
    if not remembered:
        raise UsageError(
            "no model is given; use --model DIR, a directory that `wanpipe convert` wrote"
        )
    if not Path(remembered[0], "config.json").is_file():
        raise CheckpointError(
            f"the model was at {remembered[0]} and is gone; say where it is with --model"
        )
    return open_model(remembered[0])


def locate_model(reference: str, store: Store) -> Path:
    """Return the directory of a model given as such, as a convert entry or by a name."""
    if Path(reference).is_dir():
        return Path(reference)
    try:
        return store.locate(reference)
    except StoreError as error:
        raise CheckpointError(
            f"no model {reference}: neither a directory nor an entry of {store.root}; "
            "make one with `wanpipe convert`"
        ) from error
