"""Names of a sweep's videos, from a template such as "{prompt}-{seed}.mp4"."""

import re
from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import Any

from wanpipe.errors import UsageError
from wanpipe.media.video import name_after

TEMPLATE = "{prompt}-{key}.mp4"
WIDTH = re.compile(r"0?\d{1,2}")  # of a number: 03 is three digits
OTHERS = re.compile(r"[^\w.+-]+")
Fields = Mapping[str, Any]


def check_template(template: str, fields: Fields) -> None:
    """Raise UsageError for a template that cannot be read, or whose fields are not among these."""
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"output {template!r} is no template: {error}") from error
    for _, field, form, conversion in parsed:
        if field is None:
            continue
        if field not in fields:
            raise UsageError(
                f"output has {{{field}}}, which is no value of this sweep; use "
                f"{', '.join(f'{{{name}}}' for name in fields)}"
            )
        number = isinstance(fields[field], int)
        if conversion or (form and not (number and WIDTH.fullmatch(form))):
            raise UsageError(
                f"output has {{{field}{'!' if conversion else ':'}{conversion or form}}}; only "
                "numbers have a form, their width, such as {n:03}"
            )


def fill(template: str, fields: Fields) -> str:
    """Return a checked template with its fields filled in."""
    parts: list[str] = []
    for text, field, form, _ in Formatter().parse(template):
        parts.append(text)
        if field is not None:
            value = fields[field]
            parts.append(format(value, form) if form else readable(field, value))
    return "".join(parts)


def readable(field: str, value: Any) -> str:
    """Return a value as a part of a file's name: a prompt by its first words, a path by the name of
    its file, several values joined.
    """
    if field == "prompt":
        return name_after(value) or "video"
    return OTHERS.sub("-", joined(value)).strip("-.") or "none"


def joined(value: Any) -> str:
    """Return a value as text, parts joined by hyphens."""
    if isinstance(value, list | tuple):
        return "-".join(map(joined, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return value.stem if isinstance(value, Path) else str(value)


def check_distinct(paths: Mapping[int, Path]) -> None:
    """Raise UsageError if two videos, given by number, have one name."""
    found: dict[Path, int] = {}
    for number, path in paths.items():
        if path in found:
            raise UsageError(
                f"videos {found[path]} and {number} would both be {path.name}; put more fields "
                "into output, such as {n} or {key}"
            )
        found[path] = number
