"""Names of videos: templates such as {prompt}-{seed:03}.mp4, filled with what a video is made from.

A field is a name in braces; a number may have a width. Other braces stay as they are.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wanpipe.errors import UsageError

FIELDS = {"seed": 0, "key": "", "prompt": "", "n": 1}  # of a run, with values as they may be
DISTINCT = {"seed", "key", "n"}  # a name with one of them says how videos are told apart
DEFAULT = "{prompt}-{key}.mp4"
FIELD = re.compile(r"\{([A-Za-z_][\w-]*)((?:[:!][^{}]*)?)\}")
WIDTH = re.compile(r":0?\d{1,2}")  # of a number: :03 is three digits
WORDS, LETTERS = 6, 60  # of a prompt in a name
MAX_NAME_BYTES = 200  # file systems allow 255
KEY_DIGITS = 8


@dataclass(frozen=True, kw_only=True)
class Named:
    """What the name of a video may have: the key of its last step, its number from 1, its prompt
    and its seed; None: it has none.
    """

    key: str
    number: int = 1
    prompt: str | None = None
    seed: int | None = None


def name_videos(output: Path | None, videos: Sequence[Named]) -> list[Path]:
    """Return the paths of the videos of one command.

    If some would have one name, and it does not say how they are told apart, the seeds are added,
    or the numbers if seeds do not tell all apart. Raises UsageError for two videos of one name.
    """
    paths = [name_video(output, named) for named in videos]
    if are_distinct(paths) or (output and DISTINCT & set(fields_of(output.name))):
        check_distinct(paths)
        return paths
    pairs = list(zip(paths, videos, strict=True))
    if None not in [named.seed for named in videos]:
        ended = [path.with_stem(f"{path.stem}-{named.seed}") for path, named in pairs]
        if are_distinct(ended):
            return ended
    return [path.with_stem(f"{path.stem}-{named.number}") for path, named in pairs]


def are_distinct(paths: Sequence[Path]) -> bool:
    """Return whether no two paths are the same."""
    return len(set(paths)) == len(paths)


def name_video(output: Path | None, named: Named) -> Path:
    """Return the path of a video: the default name, or `output` with its fields filled.

    Raises UsageError for a field that is unknown, or that the video does not have.
    """
    output = Path(DEFAULT) if output is None else output
    found = fields_of(output.name)
    key, number = named.key[:KEY_DIGITS], named.number
    values = {"key": key, "n": number, "seed": named.seed, "prompt": named.prompt}
    for name in found:
        if values[name] is None:
            raise UsageError(
                f"{{{name}}} in {output.name} cannot be filled, because the video has no {name}; "
                "leave it out"
            )
    return output.with_name(fill(output.name, values))


def fields_of(template: str, known: Mapping[str, Any] = FIELDS) -> list[str]:
    """Return the fields in a template. Raises UsageError for one that is not among the `known`
    values, or that has a width and is no number.
    """
    found = []
    for field in FIELD.finditer(template):
        name, form = field.groups()
        if name not in known:
            listed = ", ".join(f"{{{one}}}" for one in known)
            raise UsageError(
                f"{{{name}}} in {template} is no field of a name; use {listed}, or another name"
            )
        if form and not (type(known[name]) is int and WIDTH.fullmatch(form)):
            raise UsageError(
                f"{field[0]} in {template} cannot be filled: only numbers have a form, their "
                "width, such as {n:03}"
            )
        found.append(name)
    return found


def fill(template: str, values: Mapping[str, Any]) -> str:
    """Return a checked template with its fields filled. The prompt is cut to the room that the
    others leave in the name of a file.
    """

    def filled(prompt: str) -> str:
        texts = {**values, "prompt": prompt}
        return FIELD.sub(lambda field: format(texts[field[1]], field[2][1:]), template)

    count = [field[1] for field in FIELD.finditer(template)].count("prompt")
    if not count:
        return filled("")
    room = MAX_NAME_BYTES - len(os.fsencode(Path(filled("")).name))
    return filled(words_of(values["prompt"], max(0, room // count)))


def words_of(prompt: str, most: int = MAX_NAME_BYTES) -> str:
    """Return the first words of a prompt as a part of a name: letters, digits and hyphens, at most
    `most` bytes.
    """
    words = "-".join(re.findall(r"\w+", prompt.lower())[:WORDS])[:LETTERS]
    # letters of rare scripts take four bytes each
    cut = words.encode()[: min(3 * LETTERS, most)].decode(errors="ignore")
    return cut.strip("-") or "video"


def check_distinct(paths: Iterable[Path]) -> None:
    """Raise UsageError if two videos would have one name."""
    for path, count in Counter(paths).items():
        if count > 1:
            raise UsageError(
                f"{count} videos would be named {path}; add {{seed}}, {{key}} or {{n}} to its name"
            )
