"""Values of a sweep file as those of command line options, and values of options as arguments.

Reads the declarations of click, so that a sweep takes what the command takes, by the same names.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from wanpipe.cli.seeds import Seeds, join
from wanpipe.cli.values import Integers, Numbers, Size
from wanpipe.errors import UsageError
from wanpipe.runtime.documents import DocumentError, convert

# what a file may hold for an option; anything else is text
KINDS: dict[type[Any], Any] = {
    type(click.INT): int,
    type(click.FLOAT): float,
    Numbers: float | list[float] | str,
    Integers: list[int] | str,
    Size: int | str,
    Seeds: int | str,
}
Value = Any  # of an option, as click has it


def is_path(option: click.Parameter) -> bool:
    """Return whether an option takes the path of a file."""
    return isinstance(option.type, click.Path)


def read_value(option: click.Option, value: Any, folder: Path) -> Value:
    """Return a value of a file as click would from the command line. Relative paths start at
    `folder`.

    An option of several parts, such as a LoRA with its strength, is a list of them. An option that
    can be repeated takes one value or a list. Raises UsageError.
    """
    name = option.opts[0].removeprefix("--")
    try:
        if option.is_flag:
            return convert(value, bool)
        if not option.multiple:
            return read_one(option.type, value, folder)
        parts = isinstance(option.type, click.Tuple)
        listed = isinstance(value, list) and not (
            parts and value and not isinstance(value[0], list)
        )
        many = value if listed else [value]
        found = tuple(read_one(option.type, one, folder) for one in many)
        return join(found) if isinstance(option.type, Seeds) else found
    except DocumentError as error:
        raise UsageError(f"{name} is invalid: {error}") from error
    except click.BadParameter as error:
        raise UsageError(f"{name} is invalid: {error.message}") from error


def read_one(kind: click.ParamType[Any], value: Any, folder: Path) -> Value:
    """Return one value. Raises DocumentError or click.BadParameter."""
    if isinstance(kind, click.Tuple):
        parts = convert(value, list[Any])
        if len(parts) != len(kind.types):
            raise DocumentError(f"expected a list of {len(kind.types)} values, got {len(parts)}")
        return tuple(
            read_one(one, part, folder) for one, part in zip(kind.types, parts, strict=True)
        )
    plain = convert(value, KINDS.get(type(kind), str))
    if isinstance(plain, list):
        plain = ",".join(map(repr, plain))
    if isinstance(kind, click.Path):
        plain = str(folder / Path(plain).expanduser())
    return kind.convert(plain, None, None)


def arguments(command: click.Command, values: Mapping[str, Value]) -> tuple[str, ...]:
    """Return the arguments that give a command these values; those that are its defaults are left
    out.
    """
    words: list[str] = []
    for option in command.params:
        value = values.get(option.name or "")
        if value in (None, (), False) or value == option.default:
            continue
        name = option.opts[0]
        if isinstance(option, click.Option) and option.is_flag:
            words.append(name)
        elif option.multiple:
            for one in value:
                words += [name, *spelled(option.type, one)]
        else:
            words += [name, *spelled(option.type, value)]
    return tuple(words)


def spelled(kind: click.ParamType[Any], value: Value) -> list[str]:
    """Return the words that follow an option for one value."""
    if isinstance(kind, click.Tuple):
        return [str(part) for part in value]
    if isinstance(value, tuple):
        return [",".join(map(str, value))]
    return [str(value)]
