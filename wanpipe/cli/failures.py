"""What an error is for a user: one line, and the exit code of the command that it ended."""

import click

from wanpipe.errors import WanpipeError

MEMORY_HINT = "reduce --width, --height or --num-frames, or use --tiling spatial"


def explain(error: BaseException) -> tuple[str, int] | None:
    """Return the line and the exit code of an error; None for one that users cannot cause."""
    if isinstance(error, WanpipeError):
        return str(error), error.exit_code
    if isinstance(error, click.ClickException):
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f"; see `{context.command_path} --help`" if context else ""
        return error.format_message().rstrip(".") + hint, error.exit_code
    if isinstance(error, MemoryError):
        return f"out of memory; {MEMORY_HINT}", 1
    # MLX has no exception type for a failed allocation
    if isinstance(error, RuntimeError) and "alloc" in str(error).lower():
        return f"out of memory ({error}); {MEMORY_HINT}", 1
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}", 1
    return None
