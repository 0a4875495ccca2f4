"""The types of the values of options: sizes, ages and lists of numbers."""

import math
import re
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from wanpipe.errors import UsageError
from wanpipe.runtime.units import parse_age, parse_size
from wanpipe.store import Store


class Size(click.ParamType[int]):
    """A size such as 12GB, in bytes."""

    name = "size"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> int:
        """Parse the size, or fail with click's message."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except UsageError as error:
            self.fail(str(error), parameter, context)


class Age(click.ParamType[float]):
    """An age such as 30d, in seconds."""

    name = "age"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> float:
        """Parse the age, or fail with click's message."""
        if isinstance(value, int | float):
            return float(value)
        try:
            return parse_age(value)
        except UsageError as error:
            self.fail(str(error), parameter, context)


class Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers separated by commas."""

    name = "number[,number...]"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[float, ...]:
        """Parse the numbers, or fail with click's message."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            numbers = (math.nan,)
        if not all(math.isfinite(number) for number in numbers):
            self.fail(f"must be numbers separated by commas, got {value!r}", parameter, context)
        return numbers


class Integers(click.ParamType[tuple[int, ...]]):
    """A fixed number of integers, separated by commas."""

    name = "integers"

    def __init__(self, count: int) -> None:
        self.count = count

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[int, ...]:
        """Parse the integers, or fail with click's message."""
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if len(parts) != self.count or not all(re.fullmatch(r"-?\d{1,9}", part) for part in parts):
            message = f"must be {self.count} integers separated by commas, got {value!r}"
            self.fail(message, parameter, context)
        return tuple(int(part) for part in parts)


class Reference(click.ParamType[str]):
    """What can be a name in the cache or a path. A shell completes names first, then files."""

    name = "text"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the names in the cache that start with a text; without any, ask for files."""
        names = Store(ctx.params.get("cache") or Path("cache")).names.all()
        found = [
            CompletionItem(name)
            for name in names
            if name.startswith(incomplete) and name.isprintable()
        ]
        return found or [CompletionItem(incomplete, type="file")]


REFERENCE = Reference()
