"""The sweep file: settings for all videos, axes of which every combination is made, and values that
go together.

A key is the name of an option of `wanpipe run`.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import click

from wanpipe.cli.prompts import read_prompts
from wanpipe.cli.seeds import parse_seeds
from wanpipe.errors import UsageError
from wanpipe.media.names import DEFAULT
from wanpipe.runtime.documents import DocumentError, convert, first_line, read_regular
from wanpipe.sweeps.arguments import Value, read_value
from wanpipe.sweeps.names import check_template
from wanpipe.weights.model import is_model

MOST = 100_000  # videos of a sweep
LONGEST = 1 << 24  # bytes of a file, which may have all prompts
AXES, ZIP, OUTPUT, PROMPTS = "axes", "zip", "output", "prompt-file"
Table = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The videos of a sweep: the values of options by their names, such as "guide-scale", for each.

    `varied` are the names of the options that differ. `template` names the videos; relative ones
    are in `folder`.
    """

    folder: Path
    template: str
    varied: tuple[str, ...]
    videos: tuple[dict[str, Value], ...]

    def groups(self) -> list[list[int]]:
        """Return the numbers of videos that differ in their seeds only."""
        found: dict[Any, list[int]] = {}
        for number, values in enumerate(self.videos):
            rest = tuple((name, value) for name, value in values.items() if name != "seed")
            found.setdefault(rest, []).append(number)
        return list(found.values())


def read_sweep(path: Path, known: Mapping[str, click.Option]) -> Sweep:
    """Read a sweep file. `known` are the options that it may set, by name. Raises UsageError."""
    try:
        return read_document(read_toml(path), path.absolute().parent, known)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def read_toml(path: Path) -> Table:
    """Read a TOML file. Raises UsageError."""
    try:
        return tomllib.loads(read_regular(path, LONGEST).decode("utf-8"))
    except OSError as error:
        raise UsageError(f"it cannot be read: {error.strerror}") from error
    except (DocumentError, UnicodeDecodeError) as error:
        raise UsageError(f"it cannot be read: {first_line(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"it is no TOML: {first_line(error)}") from error


def read_document(data: Table, folder: Path, known: Mapping[str, click.Option]) -> Sweep:
    """Return the sweep of a document. Raises UsageError."""
    axes = section(data.pop(AXES, {}), AXES, Table)
    zips = data.pop(ZIP, [])
    if isinstance(zips, dict):
        raise UsageError(f"{ZIP} must be a list of tables, got one; write [[{ZIP}]]")
    zips = section(zips, ZIP, list[Table])
    template = section(data.pop(OUTPUT, DEFAULT), OUTPUT, str)
    if PROMPTS in data:
        raise UsageError(f"{PROMPTS} has a prompt for each video; write it below [{AXES}]")
    check_keys(data, axes, zips, known)
    fixed = {name: read(known[name], value, folder) for name, value in data.items()}
    factors = [Factor(zipped({name: one}, folder)) for name, one in axes.items()]
    factors += [Factor(zipped(one, folder)) for one in zips]
    count = prod(len(factor) for factor in factors)
    if count > MOST:
        raise UsageError(f"a sweep may have at most {MOST} videos, got {count}; write several")
    read_factors = [list(factor.read(known, folder)) for factor in factors]
    videos = []
    for chosen in product(*read_factors):
        video = dict(fixed)
        for part in chosen:
            video |= part
        videos.append(video)
    for name in ("model", "prompt"):
        if name not in videos[0]:
            raise UsageError(f"no {name} is given; write {name} = …")
    check_template(template, videos[0])
    varied = tuple(name for part in next(product(*read_factors)) for name in part)
    return Sweep(folder=folder, template=template, varied=varied, videos=tuple(videos))


def section(value: Any, name: str, kind: Any) -> Any:
    """Return a part of the document that has this type. Raises UsageError."""
    try:
        return convert(value, kind)
    except DocumentError as error:
        raise UsageError(f"{name} is invalid: {error}") from error


def check_keys(
    data: Table, axes: Table, zips: Sequence[Table], known: Mapping[str, click.Option]
) -> None:
    """Raise UsageError for a key that is no option, or that stands twice."""
    seen: set[str] = set()
    for name in (name for table in (data, axes, *zips) for name in table):
        if name not in known and name != PROMPTS:
            close = get_close_matches(name, [*known, AXES, ZIP, OUTPUT, PROMPTS], 1)
            hint = f"; did you mean {close[0]}?" if close else f"; it may have {', '.join(known)}"
            raise UsageError(f"{name} is no option that a sweep can set{hint}")
        option = "prompt" if name == PROMPTS else name
        if option in seen:
            raise UsageError(f"{option} is given twice; give it once")
        seen.add(option)


@dataclass(frozen=True)
class Factor:
    """Values that are combined with all others: of one option, or of several that go together."""

    values: dict[str, Sequence[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def read(self, known: Mapping[str, click.Option], folder: Path) -> Iterator[dict[str, Value]]:
        """Yield the values of the options together. Raises UsageError."""
        for chosen in zip(*self.values.values(), strict=True):
            named = zip(self.values, chosen, strict=True)
            yield {name: read(known[name], value, folder) for name, value in named}


def zipped(table: Table, folder: Path) -> dict[str, Sequence[Any]]:
    """Return the values of options that go together. Raises UsageError for other lengths."""
    found: dict[str, Sequence[Any]] = {}
    for name, value in table.items():
        found["prompt" if name == PROMPTS else name] = values_of(name, value, folder)
    if len({len(values) for values in found.values()}) != 1:
        lengths = ", ".join(f"{name} has {len(values)}" for name, values in found.items())
        raise UsageError(
            f"what stands below [[{ZIP}]] goes together, so it must have as many values: "
            f"{lengths or 'nothing is there'}"
        )
    return found


def values_of(name: str, value: Any, folder: Path) -> Sequence[Any]:
    """Return the values of an axis: a list, the lines of a prompt file, or for seeds a range too.

    Raises UsageError.
    """
    if name == PROMPTS:
        file = section(value, name, str)
        return read_prompts((), folder / Path(file).expanduser())
    if name == "seed" and isinstance(value, str | int):
        return parse_seeds(str(value), MOST)
    if not isinstance(value, list):
        shown = repr(value)[:40]
        raise UsageError(f"{name} must be a list of values here, got {shown}; write [{shown}]")
    if not value:
        raise UsageError(f"{name} has no value; give one, or leave it out")
    return value


def read(option: click.Option, value: Any, folder: Path) -> Value:
    """Return the value of an option. A model may be a path from `folder`. Raises UsageError."""
    found = read_value(option, value, folder)
    if option.name == "prompt" and found == "-":
        raise UsageError("prompt must be text here, got -; standard input is for `wanpipe run`")
    if option.name == "model" and is_model(folder / Path(found).expanduser()):
        return str(folder / Path(found).expanduser())
    return found
