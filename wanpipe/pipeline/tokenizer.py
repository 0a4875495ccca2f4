"""Prompts to token ids, as in wan/modules/tokenizers.py of the official code."""

import html
import re
from pathlib import Path

from wanpipe.errors import CheckpointError, UsageError

# half a surrogate pair, which is how Python reads arguments that are not UTF-8
LONE = re.compile("[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]")


def clean(prompt: str) -> str:
    """Fix encoding errors, resolve HTML entities and collapse whitespace.

    Source: basic_clean and whitespace_clean. Raises UsageError for text that is not Unicode.
    """
    import ftfy

    if "\0" in prompt:
        position = prompt.index("\0")
        raise UsageError(f"a prompt must be text, got a NUL at character {position + 1}; remove it")
    if lone := LONE.search(prompt):
        code = f"U+{ord(lone.group()):04X}"
        raise UsageError(
            f"a prompt must be Unicode text, got the lone surrogate {code} at character "
            f"{lone.start() + 1}; pass it as UTF-8"
        )
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text).strip()


class Tokenizer:
    """The tokenizer of a model's text encoder."""

    def __init__(self, path: Path) -> None:
        """Read tokenizer.json. Raises CheckpointError if it is missing or damaged."""
        import tokenizers

        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing more specific
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{path} is not a tokenizer: {reason}; convert again") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def ids(self, prompt: str, text_len: int) -> list[int]:
        """Clean and tokenize a prompt: at most `text_len` ids, the last one `</s>`."""
        ids: list[int] = self._tokenizer.encode(clean(prompt)).ids
        return ids if len(ids) <= text_len else [*ids[: text_len - 1], ids[-1]]
