"""The one family of errors that wanpipe raises on purpose.

A message is one line: subject, rule, value, remedy. `cli.py` turns it into the exit code; nothing
else catches it.
"""


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
