"""Names of a sweep's videos, from a template such as "{prompt}-{seed}.mp4"."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

from wanpipe.errors import UsageError
from wanpipe.media.names import LETTERS, words_of

TEMPLATE = "{prompt}-{key}.mp4"
WIDTH = re.compile(r"0?\d{1,2}")  # of a number: 03 is three digits
OTHERS = re.compile(r"[^\w.+-]+")
Fields = Mapping[str, Any]


def check_template(template: str, fields: Fields) -> None:
    """Raise UsageError for a template that cannot be read, or whose fields are not among these."""
    fields = {"n": 1, "key": "", **fields}
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
        return words_of(value)
    return OTHERS.sub("-", joined(value))[:LETTERS].strip("-.") or "none"


def joined(value: Any) -> str:
    """Return a value as text, parts joined by hyphens."""
    if isinstance(value, list | tuple):
        return "-".join(map(joined, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return value.stem if isinstance(value, Path) else str(value)


def shown(values: Fields) -> Iterator[tuple[str, Any]]:
    """Yield values of options as people give them: one seed is a number, not a list."""
    for name, value in values.items():
        one = isinstance(value, tuple) and len(value) == 1 and not isinstance(value[0], tuple)
        yield name, value[0] if one else value


def name_videos(
    template: str, folder: Path, videos: Sequence[Fields], keys: Sequence[str]
) -> list[Path]:
    """Return the path of each video, given the values of its options and the start of its key.

    Raises UsageError for two videos of one name.
    """
    paths: list[Path] = []
    found: dict[Path, int] = {}
    for number, (values, key) in enumerate(zip(videos, keys, strict=True), 1):
        fields = {"n": number, "key": key, **dict(shown(values))}
        fields["model"] = Path(fields["model"]).name
        path = Path(os.path.normpath(folder / Path(fill(template, fields)).expanduser()))
        if path in found:
            raise UsageError(
                f"videos {found[path]} and {number} would both be {path.name}; put more values "
                "into output, such as {seed}, {n} or {key}"
            )
        found[path] = number
        paths.append(path)
    return paths
