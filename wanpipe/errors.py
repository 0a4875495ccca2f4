"""The errors that wanpipe raises on purpose, and the one line that reports an error.

A message is one line: subject, rule, value, remedy. `wanpipe.app` turns an error into an exit code;
nothing else catches the whole family.
"""

from collections.abc import Sequence


class WanpipeError(Exception):
    """A failure that the user can understand and fix. Exit code 1."""

    exit_code = 1


class UsageError(WanpipeError):
    """Invalid options or arguments. Exit code 2."""

    exit_code = 2


class CheckpointError(WanpipeError):
    """A checkpoint, model or LoRA file that is unreadable or does not fit."""


class StoreError(WanpipeError):
    """A cache that cannot be read or written, or an entry that does not exist."""


def wants_json(arguments: Sequence[str]) -> bool:
    """Return whether command line arguments ask for JSON events, and so for errors as JSON."""
    return any(argument.partition("=")[0] == "--events" for argument in arguments)


def error_line(message: str, as_json: bool) -> str:
    """Format an error for stderr as one line, without the line end."""
    line = " ".join(message.split())
    if not as_json:
        return f"wanpipe: error: {line}"
    import json

    return json.dumps({"event": "error", "text": line}, ensure_ascii=False)
