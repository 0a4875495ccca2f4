"""The errors that wanpipe raises on purpose.

A message is one line: subject, rule, value, remedy. `wanpipe.app` turns an error into an exit code;
nothing else catches the whole family.
"""


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
