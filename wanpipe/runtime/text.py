"""Makes text safe to print: it cannot control a terminal, and every stream can encode it.

Text from a file, such as a prompt or a key of a LoRA, is printed only through these functions.
"""

import codecs
from collections.abc import Sequence
from typing import Any

BYTES = range(0xDC80, 0xDD00)  # how Python decodes bytes that are not UTF-8 (surrogateescape)


def printable(text: str) -> str:
    """Replace control characters, direction marks and other invisible characters of a text.

    White space becomes a blank. Other characters become an escape such as \\x1b or \\u202e.
    """
    if text.isprintable():
        return text
    return "".join(map(_shown, text))


def to_json(value: Any) -> str:
    """Encode a value as one line of JSON. Characters that `printable` replaces are escaped."""
    import json  # imported late, because signal handlers must be installed first

    text = json.dumps(value, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in text)


def storable(value: Any) -> Any:
    """Return data whose texts every reader of JSON accepts: bytes of a path that are not UTF-8
    become visible escapes such as \\udce9.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {storable(name): storable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [storable(inner) for inner in value]
    return value


def wants_json(arguments: Sequence[str]) -> bool:
    """Return whether command line arguments ask for JSON events, and therefore for JSON errors."""
    return any(argument.partition("=")[0] == "--events" for argument in arguments)


def error_line(message: str, as_json: bool) -> str:
    """Format an error for stderr as one line, without the line end."""
    line = " ".join(message.split())
    if as_json:
        return to_json({"event": "error", "text": line})
    return printable(f"wanpipe: error: {line}")


def _shown(letter: str) -> str:
    if letter.isprintable():
        return letter
    return " " if letter.isspace() else ascii(letter)[1:-1]


def _encoded(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode a character that a stream cannot: as its original bytes, or as a JSON escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    import json

    letter = error.object[error.start]
    if ord(letter) in BYTES:
        return bytes([ord(letter) - 0xDC00]), error.start + 1
    return json.dumps(letter)[1:-1], error.start + 1


ENCODING_ERRORS = "wanpipe"  # the name of `_encoded` for streams
codecs.register_error(ENCODING_ERRORS, _encoded)
