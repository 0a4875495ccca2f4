"""Tries a tokenizer.json: reads it from stdin and uses it; ends with an error where it cannot.

Run by `sandbox` as a child process, because the library that reads it aborts or panics over some
damages where others are errors.
"""

import sys

import tokenizers

WORDS = "a cat, <pad> \u732b \U0010fffd"  # words, spaces, and what no vocabulary has
CHARACTERS = [chr(code) for code in range(0x20000) if not 0xD800 <= code < 0xE000]
CHUNK = 1024  # of them at once, for little memory

if __name__ == "__main__":
    tokenizer = tokenizers.Tokenizer.from_buffer(sys.stdin.buffer.read())
    tokenizer.encode(WORDS)
    for start in range(0, len(CHARACTERS), CHUNK):  # a damaged normalizer fails over some alone
        tokenizer.encode("".join(CHARACTERS[start : start + CHUNK]))
