"""Reads a tokenizer.json that is to become part of a model, and has it tried."""

from pathlib import Path

from wanpipe.checkpoints.sandbox import SandboxError, run_limited
from wanpipe.errors import CheckpointError
from wanpipe.runtime.documents import DocumentError, read_regular

LIMIT = 1 << 26  # bytes; the official one has 17 MB
SECONDS = 9  # of processor time to try it; the official one takes 3
MEMORY = 1 << 30  # bytes to try it with, beside what grows with the file:
GROWTH = 100  # bytes per byte; a vocabulary of 256,000 pieces in 11 MB takes 1 GB
TRIAL = Path(__file__).with_name("try_tokenizer.py")


def read_tokenizer(path: Path) -> bytes:
    """Read tokenizer.json. Raises CheckpointError where it is none, or cannot be used."""
    try:
        data = read_regular(path, LIMIT)
        run_limited(TRIAL, data, SECONDS, MEMORY + GROWTH * len(data))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (DocumentError, SandboxError) as error:
        raise CheckpointError(f"{path} is no tokenizer: {error}; download it again") from error
    return data
