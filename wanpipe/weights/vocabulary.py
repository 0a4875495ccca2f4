"""Reads a tokenizer.json that is to become part of a model, and tries it.

The library that will use it aborts over some damages where others are errors: those are found here
first, by form.
"""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wanpipe.errors import CheckpointError
from wanpipe.weights.dimensions import read_json

LIMIT = 1 << 26  # bytes; the official one has 17 MB
PROBE = "a cat, 猫 \U0010fffd"  # words, spaces, and what no vocabulary has


def read_tokenizer(path: Path) -> bytes:
    """Read tokenizer.json. Raises CheckpointError where it is none, or cannot be used."""
    table = read_json(path, LIMIT)
    if not isinstance(table.get("model"), dict):
        raise CheckpointError(f"{path} is not a tokenizer (no model in it); download it again")
    for part in parts({name: value for name, value in table.items() if name != "model"}):
        if wrong := complaint(part):
            raise CheckpointError(f"{path} is not a tokenizer ({wrong}); download it again")
    data = path.read_bytes()
    attempt(data, path)
    return data


def parts(table: Any) -> Iterator[dict[str, Any]]:
    """Give every JSON object inside another, however deep."""
    left = [table]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            yield value
            left += value.values()
        elif isinstance(value, list):
            left += value


def complaint(part: dict[str, Any]) -> str:
    """Tell what would make the library abort; nothing where all is well.

    By the other keys too: the library does not insist on the type.
    """
    normalizes = part.get("type") == "Precompiled" or "precompiled_charsmap" in part
    if normalizes and not is_map(part.get("precompiled_charsmap")):
        return "a normalizer without its map"
    if part.get("type") == "TemplateProcessing" or "single" in part:
        defined = part.get("special_tokens")
        for piece in parts([part.get("single"), part.get("pair")]):
            token = piece.get("SpecialToken")
            name = token.get("id") if isinstance(token, dict) else None
            if isinstance(name, str) and not (isinstance(defined, dict) and name in defined):
                return "a template with a token that is not defined"
    return ""


def is_map(value: Any) -> bool:
    """Tell whether this is a map of characters: base64 of a size, a trie of that size, and text."""
    if not isinstance(value, str):
        return False
    try:
        data = base64.b64decode(value, validate=True)
        size = int.from_bytes(data[:4], "little")
        data[4 + size :].decode("utf-8")
    except ValueError:
        return False
    return len(data) >= 4 + size and size % 4 == 0 and size > 0


def attempt(data: bytes, path: Path) -> None:
    """Use the tokenizer once."""
    import tokenizers

    try:
        tokenizers.Tokenizer.from_buffer(data).encode(PROBE)
    except Exception as error:  # the library raises nothing more particular
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is no tokenizer: {reason}; download it again") from error
