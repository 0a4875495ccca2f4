"""Renames tensors of a checkpoint into those of a network: ordered rows of data, applied by one engine.

Every source tensor must be taken by a row or dropped by one, and every target filled with its shape; what is left
over is listed whole.
"""

from dataclasses import dataclass
from typing import Literal

Transform = Literal["copy", "conv", "flatten", "patch"]


@dataclass(frozen=True)
class Row:
    """One rule: source names that match `pattern` become `target`; without a target they are dropped.

    In a pattern `{i}` and `{j}` match digits, `{leaf}` the last word (`weight`, `bias`, `gamma`); the target repeats them.
    `transform` is "copy", "conv" (channels last: (O, I, *K) to (O, *K, I)), "flatten" (unit axes dropped) or
    "patch" (a convolution whose stride is its kernel as a matrix: (O, I, *K) to (O, prod(K) * I), channels last).
    `full` keeps the tensor in float32 whatever `--dtype` says: one-dimensional, small, or used in float32.
    """

    pattern: str
    target: str | None
    transform: Transform = "copy"
    full: bool = False
