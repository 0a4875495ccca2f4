"""The one family of errors that wanpipe raises on purpose, and the line that tells of one.

A message is one line: subject, rule, value, remedy. `cli.py` turns it into the exit code; nothing
else catches it.
"""

from collections.abc import Sequence


class WanpipeError(Exception):
    """Raise for a failure that a user can understand and mend (exit code 1)."""

    exit_code = 1


class UsageError(WanpipeError):
    """Raise for options or arguments that cannot be right (exit code 2)."""

    exit_code = 2


class CheckpointError(WanpipeError):
    """Raise for a checkpoint, model or LoRA file that cannot be read or does not fit."""


class StoreError(WanpipeError):
    """Raise for a cache that cannot be read or written, or an entry that is not there."""


def wants_json(words: Sequence[str]) -> bool:
    """Whether the words of a command ask for events as JSON, errors among them."""
    return any(word.partition("=")[0] == "--events" for word in words)


def error_line(message: str, as_json: bool) -> str:
    """Format what is printed on stderr of an error, one line without its end."""
    line = " ".join(message.split())
    if not as_json:
        return f"wanpipe: error: {line}"
    import json

    return json.dumps({"event": "error", "text": line}, ensure_ascii=False)
