"""Names of a sweep's videos: any option that it sets can be a field of their template."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wanpipe.errors import UsageError
from wanpipe.media.names import LETTERS, fields_of, fill

OTHERS = re.compile(r"[^\w.+-]+")
Fields = Mapping[str, Any]


def check_template(template: str, values: Fields) -> None:
    """Raise UsageError for a template that has a field which is not among the values of options."""
    fields_of(template, {"n": 1, "key": "", **dict(shown(values))})


def readable(value: Any) -> str:
    """Return a value as a part of a file's name: a path by the name of its file, several values
    joined.
    """
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
        texts = {
            name: value if name == "prompt" or type(value) is int else readable(value)
            for name, value in fields.items()
        }
        path = Path(os.path.normpath(folder / Path(fill(template, texts)).expanduser()))
        if path in found:
            raise UsageError(
                f"videos {found[path]} and {number} would both be {path.name}; put more values "
                "into output, such as {seed}, {n} or {key}"
            )
        found[path] = number
        paths.append(path)
    return paths
