"""Renames tensors of a checkpoint into those of a network: rules of data, applied by one engine.

Every source tensor must be taken by a rule or dropped by one, and every target filled with its
shape; what is left over is listed.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Literal

import numpy as np

from wanpipe.checkpoints.dtypes import Array
from wanpipe.checkpoints.tensors import TensorInfo, list_names, quote_name
from wanpipe.errors import CheckpointError
from wanpipe.models.config import PATCH

Transform = Literal["copy", "conv", "flatten", "patch", "channels_first", "unpatch"]
Shape = tuple[int, ...]
PLACEHOLDERS = {"{i}": r"(?P<i>\d+)", "{j}": r"(?P<j>\d+)", "{leaf}": r"(?P<leaf>[^.]+)"}


@dataclass(frozen=True)
class RenameRule:
    """One rule: source names that match `pattern` become `target`; without a target they go.

    In a pattern `{i}` and `{j}` match digits, `{leaf}` the last word (`weight`, `bias`, `gamma`);
    the target repeats them. `transform` is "copy", "conv" (channels last: (O, I, *K) to
    (O, *K, I)), "flatten" (unit axes dropped) or "patch" (a convolution whose stride is its kernel
    as a matrix: (O, I, *K) to (O, prod(K) * I), channels last). To official shapes lead
    "channels_first" ((O, *K, I) to (O, I, *K)) and "unpatch" ((O, I * prod(K)) to (O, I, *K), K the
    transformer's patch). `keep_float32` keeps the tensor in float32 whatever `--dtype` says: small,
    or used in float32; others get the dtype.
    """

    pattern: str
    target: str | None
    transform: Transform = "copy"
    keep_float32: bool = False


@dataclass(frozen=True)
class PlannedRename:
    """Rename of one tensor: `source` becomes `target` by `transform`, and has `shape` there."""

    source: str
    target: str
    transform: Transform
    keep_float32: bool
    shape: Shape


def plan_renames(
    sources: Mapping[str, TensorInfo],
    rules: Sequence[RenameRule],
    targets: Mapping[str, Shape],
    subject: str,
) -> list[PlannedRename]:
    """Match every source with the first rule that fits, and every target with its source.

    Gives renames in the order of the targets. Raises one CheckpointError that starts with `subject`
    and lists unused sources, targets filled twice or not at all, and wrong shapes.
    """
    renames: dict[str, PlannedRename] = {}
    unused, twice, wrong = [], [], []
    for name, rule, target in match_rules(sources, rules):
        if rule is None:
            unused.append(name)
            continue
        if target is None:
            continue
        shape = transformed_shape(sources[name].shape, rule.transform)
        if target not in targets:
            unused.append(name)
        elif target in renames:
            twice.append(target)
        elif shape != targets[target]:
            wrong.append(f"{quote_name(name)} {shape} instead of {targets[target]}")
        if target not in renames:
            renames[target] = PlannedRename(name, target, rule.transform, rule.keep_float32, shape)
    unfilled = [target for target in targets if target not in renames]
    complaints = [
        f"{what}: {list_names(names)}"
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
    return [renames[target] for target in targets]


def match_rules(
    names: Mapping[str, TensorInfo], rules: Sequence[RenameRule]
) -> Iterator[tuple[str, RenameRule | None, str | None]]:
    """Yield each name with the first rule that matches it, or None, and the target it becomes."""
    every, patterns = _compile(tuple(rules))
    for name in names:
        found = every.fullmatch(name)
        if found is None or found.lastindex is None:
            yield name, None, None
            continue
        rule, placeholders = rules[found.lastindex - 1], patterns[found.lastindex - 1]
        values = placeholders.fullmatch(name)
        assert values is not None, (name, rule)
        yield name, rule, rule.target and rule.target.format(**values.groupdict())


def transformed_shape(shape: Shape, transform: Transform) -> Shape:
    """Return the shape that `transform` makes of `shape`."""
    if transform == "flatten":
        return tuple(length for length in shape if length != 1)
    if transform == "conv" and len(shape) > 2:
        return (shape[0], *shape[2:], shape[1])
    if transform == "patch" and len(shape) > 2:
        return (shape[0], prod(shape[1:]))
    if transform == "channels_first" and len(shape) > 2:
        return (shape[0], shape[-1], *shape[1:-1])
    if transform == "unpatch" and len(shape) == 2 and shape[1] % prod(PATCH) == 0:
        return (shape[0], shape[1] // prod(PATCH), *PATCH)
    return shape


def apply_transform(values: Array, transform: Transform) -> Array:
    """Apply `transform` on a tensor, or on a slice of it along the first axis."""
    if transform == "flatten":
        return values.reshape(
            [length for length in values.shape if length != 1]
        )  # unit axes dropped
    if transform == "unpatch":
        return values.reshape(transformed_shape(values.shape, transform))
    if transform == "copy" or values.ndim <= 2:
        return values
    if transform == "channels_first":
        return np.ascontiguousarray(np.moveaxis(values, -1, 1))  # (O, I, *K)
    last = np.ascontiguousarray(np.moveaxis(values, 1, -1))
    return last.reshape(len(last), -1) if transform == "patch" else last  # (O, prod(K) * I)


@lru_cache(maxsize=32)
def _compile(rules: tuple[RenameRule, ...]) -> tuple[re.Pattern[str], list[re.Pattern[str]]]:
    """Compile one expression whose groups are the rules in order, for speed, and one for each."""
    expressions = []
    for rule in rules:
        expression = re.escape(rule.pattern)
        for placeholder, group in PLACEHOLDERS.items():
            expression = expression.replace(re.escape(placeholder), group)
        expressions.append(expression)
    unnamed = (re.sub(r"\(\?P<\w+>", "(?:", expression) for expression in expressions)
    every = re.compile("|".join(f"({expression})" for expression in unnamed))
    return every, [re.compile(expression) for expression in expressions]
