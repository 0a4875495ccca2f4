"""Reads the prompts of --prompt, --prompt-file and standard input."""

import re
from collections.abc import Sequence
from pathlib import Path

from wanpipe.errors import UsageError
from wanpipe.runtime.documents import DocumentError, read_stdin, read_stream

LINE_END = re.compile(r"\r\n|\n|\r")
LONGEST_FILE = 1 << 24  # bytes of prompts
LONGEST_PROMPT = 1 << 17  # bytes of one, as long as an argument of a command


def read_prompts(prompts: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """Return the prompts of --prompt and the lines of --prompt-file that are not empty.

    Raises UsageError for an unreadable file or standard input.
    """
    prompts = [read_prompt(prompt) for prompt in prompts]
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


def read_prompt(prompt: str) -> str:
    """Return a prompt, which is read from standard input for "-". Raises UsageError if it cannot be
    read, or is empty.
    """
    if prompt != "-":
        return prompt
    try:
        text = read_stdin(LONGEST_PROMPT).decode("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError, DocumentError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"standard input cannot be read as a prompt: {reason}; write UTF-8 text to it"
        ) from error
    if not text:
        raise UsageError("standard input has no prompt; write one to it, or use --prompt TEXT")
    return text
