"""Names of videos: templates such as {prompt}-{seed}.mp4, filled with what a video is made from."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wanpipe.errors import UsageError

FIELDS = ("seed", "key", "prompt", "n")
DISTINCT = {"seed", "key", "n"}  # by which the videos of one prompt differ
DEFAULT = Path("{prompt}-{key}.mp4")
FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")
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


def name_video(output: Path | None, named: Named, several: bool = False) -> Path:
    """Return the path of a video: the default name, or `output` with its fields filled.

    If it is one of `several` and nothing in the name tells them apart, the seed is added. Raises
    UsageError for a field that is unknown, or that the video does not have.
    """
    if output is None:
        return fill_name(DEFAULT, named)
    path = fill_name(output, named)
    if not several or DISTINCT & set(fields_of(output)):
        return path
    return path.with_stem(f"{path.stem}-{named.number if named.seed is None else named.seed}")


def fields_of(path: Path) -> list[str]:
    """Return the fields in the name of a file; folders have none. Raises UsageError for an unknown
    one.
    """
    found = FIELD.findall(path.name)
    for name in found:
        if name not in FIELDS:
            known = ", ".join(f"{{{one}}}" for one in FIELDS)
            raise UsageError(
                f"{{{name}}} in {path.name} is no field of a name; use {known}, or another name"
            )
    return found


def fill_name(path: Path, named: Named) -> Path:
    """Fill the fields in the name of a file: {seed}, {key}, {prompt} and {n}.

    A prompt is cut to the room that the others leave. Raises UsageError as `name_video` does.
    """
    found = fields_of(path)
    values = {"key": named.key[:KEY_DIGITS], "n": str(named.number)}
    if named.seed is not None:
        values["seed"] = str(named.seed)
    if named.prompt is not None and "prompt" in found:
        others = FIELD.sub(lambda field: values.get(field[1], ""), path.name)
        room = MAX_NAME_BYTES - len(os.fsencode(others))
        values["prompt"] = words_of(named.prompt, max(0, room // found.count("prompt")))
    for name in found:
        if name not in values:
            raise UsageError(
                f"{{{name}}} in {path.name} cannot be filled, because the video has no {name}; "
                "leave it out"
            )
    return path.with_name(FIELD.sub(lambda field: values[field[1]], path.name))


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
