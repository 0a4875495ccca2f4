"""Renames tensors of a checkpoint into those of a network: rows of data, applied by one engine.

Every source tensor must be taken by a row or dropped by one, and every target filled with its
shape; what is left over is listed.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from wanpipe.checkpoints.dtypes import Array
from wanpipe.checkpoints.tensors import TensorInfo, listed, shown
from wanpipe.errors import CheckpointError

Transform = Literal["copy", "conv", "flatten", "patch"]
Shape = tuple[int, ...]
HOLES = {"{i}": r"(?P<i>\d+)", "{j}": r"(?P<j>\d+)", "{leaf}": r"(?P<leaf>[^.]+)"}


@dataclass(frozen=True)
class Row:
    """One rule: source names that match `pattern` become `target`; without a target they go.

    In a pattern `{i}` and `{j}` match digits, `{leaf}` the last word (`weight`, `bias`, `gamma`);
    the target repeats them. `transform` is "copy", "conv" (channels last: (O, I, *K) to
    (O, *K, I)), "flatten" (unit axes dropped) or "patch" (a convolution whose stride is its kernel
    as a matrix: (O, I, *K) to (O, prod(K) * I), channels last). `full` keeps the tensor in float32
    whatever `--dtype` says: small, or used in float32; all others get the dtype.
    """

    pattern: str
    target: str | None
    transform: Transform = "copy"
    full: bool = False


@dataclass(frozen=True)
class Move:
    """One tensor's way: from `source` through `transform` to `target`, where it has `shape`."""

    source: str
    target: str
    transform: Transform
    full: bool
    shape: Shape


def plan(
    sources: Mapping[str, TensorInfo],
    rows: Sequence[Row],
    targets: Mapping[str, Shape],
    subject: str,
) -> list[Move]:
    """Match every source with the first row that fits, and every target with its source.

    Gives moves in the order of the targets. Raises one CheckpointError that starts with `subject`
    and lists unused sources, targets filled twice or not at all, and wrong shapes.
    """
    moves: dict[str, Move] = {}
    unused, twice, wrong = [], [], []
    for name, row, target in matches(sources, rows):
        if row is None:
            unused.append(name)
            continue
        if target is None:
            continue
        shape = transformed(sources[name].shape, row.transform)
        if target not in targets:
            unused.append(name)
        elif target in moves:
            twice.append(target)
        elif shape != targets[target]:
            wrong.append(f"{shown(name)} {shape} instead of {targets[target]}")
        if target not in moves:
            moves[target] = Move(name, target, row.transform, row.full, shape)
    unfilled = [target for target in targets if target not in moves]
    complaints = [
        f"{what}: {listed(names)}"
        for what, names in (
            ("unknown tensors", unused),
            ("missing tensors", unfilled),
            ("given twice", twice),
            ("wrong shapes", wrong),
        )
        if names
    ]
    if complaints:
        raise CheckpointError(f"{subject} does not fit: {'; '.join(complaints)}")
    return [moves[target] for target in targets]


def matches(
    names: Mapping[str, TensorInfo], rows: Sequence[Row]
) -> Iterator[tuple[str, Row | None, str | None]]:
    """Give each name with the first row that matches it, or None, and the target it becomes."""
    compiled = [(_pattern(row.pattern), row) for row in rows]
    for name in names:
        for pattern, row in compiled:
            if found := pattern.fullmatch(name):
                yield name, row, row.target and row.target.format(**found.groupdict())
                break
        else:
            yield name, None, None


def transformed(shape: Shape, transform: Transform) -> Shape:
    """Tell the shape that `transform` makes of `shape`."""
    if transform == "flatten":
        return tuple(length for length in shape if length != 1)
    if transform == "conv" and len(shape) > 2:
        return (shape[0], *shape[2:], shape[1])
    if transform == "patch" and len(shape) > 2:
        return (shape[0], prod(shape[1:]))
    return shape


def apply_transform(values: Array, transform: Transform) -> Array:
    """Carry out `transform` on a tensor, or on a slice of it along the first axis."""
    if transform == "flatten":
        return values.reshape(
            [length for length in values.shape if length != 1]
        )  # unit axes dropped
    if transform == "copy" or values.ndim <= 2:
        return values
    last = np.ascontiguousarray(np.moveaxis(values, 1, -1))
    return last.reshape(len(last), -1) if transform == "patch" else last  # (O, prod(K) * I)


def _pattern(pattern: str) -> re.Pattern[str]:
    expression = re.escape(pattern)
    for hole, group in HOLES.items():
        expression = expression.replace(re.escape(hole), group)
    return re.compile(expression)
