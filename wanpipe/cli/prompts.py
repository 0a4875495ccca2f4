"""Reads the prompts of --prompt and --prompt-file."""

import re
from collections.abc import Sequence
from pathlib import Path

from wanpipe.errors import UsageError
from wanpipe.runtime.documents import DocumentError, read_stream

LINE_END = re.compile(r"\r\n|\n|\r")
LONGEST_FILE = 1 << 24  # bytes of prompts


def read_prompts(prompts: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """Return the prompts of --prompt and the lines of --prompt-file that are not empty.

    Raises UsageError for an unreadable file.
    """
    lines: list[str] = []
    if file is not None:
        try:
            text = read_stream(file, LONGEST_FILE).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError, DocumentError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(
                f"prompt file {file} cannot be read as UTF-8 text: {reason}; give a text file"
            ) from error
        # not splitlines, which takes marks within a prompt for line ends
        lines = [line for line in LINE_END.split(text) if line.strip()]
        if not lines:
            raise UsageError(f"prompt file {file} has no prompt; write one a line")
    return (*prompts, *lines)
