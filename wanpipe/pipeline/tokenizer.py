"""Prompts to token ids, as in wan/modules/tokenizers.py of the official code."""

import html
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from wanpipe.errors import CheckpointError, UsageError
from wanpipe.store import Store
from wanpipe.store.index_file import TokenCache
from wanpipe.weights.model import Model

if TYPE_CHECKING:
    import tokenizers

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
    """The tokenizer of a model's text encoder. It is opened at the first text that `remembered`
    does not have.
    """

    def __init__(self, path: Path, remembered: TokenCache | None = None) -> None:
        self.path, self.remembered = path, remembered

    @cached_property
    def opened(self) -> "tokenizers.Tokenizer":
        """The tokenizer in tokenizer.json. Raises CheckpointError if it is missing or damaged."""
        import tokenizers

        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{self.path} cannot be read: {error}") from error
        try:
            tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing more specific
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{self.path} is not a tokenizer: {reason}; convert again"
            ) from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def ids(self, prompts: Sequence[str], text_len: int) -> list[list[int]]:
        """Clean and tokenize prompts: at most `text_len` ids each, the last one `</s>`."""
        texts = [clean(prompt) for prompt in prompts]
        known = self.remembered.get(texts, text_len) if self.remembered else {}
        new = {text: self.tokenize(text, text_len) for text in texts if text not in known}
        if self.remembered:
            self.remembered.put(new, text_len)
        found = known | new
        return [found[text] for text in texts]

    def tokenize(self, text: str, text_len: int) -> list[int]:
        """Tokenize a cleaned text."""
        ids: list[int] = self.opened.encode(text).ids
        return ids if len(ids) <= text_len else [*ids[: text_len - 1], ids[-1]]


def tokenizer_of(model: Model, store: Store) -> Tokenizer:
    """Return the tokenizer of a model, which remembers in `store`. Raises CheckpointError."""
    import tokenizers

    # another version of the library may give other ids
    name = f"{model.hash('tokenizer')} {tokenizers.__version__}"
    return Tokenizer(model.tokenizer(store), TokenCache(store.index.index_file, name))
