"""Traces the operations that a function would run on Metal, with shapes and dtypes.

Nothing is evaluated. MLX's norms and attention, and the fused elementwise functions of `layers`,
are one operation each, as on Metal. Attention without a Metal kernel is decomposed, as MLX does.
The workspace of kernels is not included.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from wanpipe.checkpoints.rename import RenameRule, match_rules
from wanpipe.models import layers

# Head widths of Metal's attention kernel for more than eight queries in every MLX from 0.32.1 on:
# `sdpa_full_supported_head_dim` in mlx/backend/metal/scaled_dot_product_attention.cpp. Newer ones
# add 72 and 96; 192 and 256 have a kernel that is not chosen for speed. mlx#3885: the fallback is
# silent.
FUSED_WIDTHS = (64, 80, 128)
RESHAPES = frozenset({"Reshape", "Flatten", "Unflatten", "Squeeze", "ExpandDims"})
VIEWS = RESHAPES | {"AsStrided", "Broadcast", "Slice", "Split", "Transpose"}
ELEMENTWISE = frozenset(
    {"Abs", "Add", "AsType", "Clip", "Divide", "Erf", "Exp", "Fused", "Maximum", "Minimum"}
    | {"Multiply", "Negative", "Power", "Rsqrt", "Select", "Sigmoid", "Sqrt", "Square", "Subtract"}
    | {"Tanh"}
)
DONATING = ELEMENTWISE | {"LayerNorm", "RMSNorm", "Softmax"}  # may write over an input
Strides = tuple[int, ...]


class Value(NamedTuple):
    """One array of a graph."""

    name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * self.dtype.size


@dataclass(frozen=True)
class Operation:
    """An operation of a graph: a primitive of MLX, or a kernel.

    Kernels are called `Attention`, `LayerNorm`, `RMSNorm`, `Fused` and `Contiguous`.
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    arguments: tuple[Any, ...] = ()

    @property
    def arrays(self) -> tuple[Value, ...]:
        """Inputs and outputs."""
        return self.inputs + self.outputs

    def __str__(self) -> str:
        sides = [[str(value.shape) for value in side] for side in (self.inputs, self.outputs)]
        return f"{self.name} {' '.join(sides[0])} -> {' '.join(sides[1])}"


@dataclass(frozen=True)
class Graph:
    """Operations in an order in which they can run, and the names of the outputs."""

    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]

    def named(self, name: str) -> list[Operation]:
        """Return the operations called `name`."""
        return [operation for operation in self.operations if operation.name == name]

    def after(self, output: int) -> "Graph":
        """Return the graph without the operations that output number `output` depends on."""
        needed = {self.outputs[output]}
        rest = []
        for operation in reversed(self.operations):
            if needed.isdisjoint(value.name for value in operation.outputs):
                rest.append(operation)
            else:
                needed.update(value.name for value in operation.inputs)
        outputs = tuple(name for name in self.outputs if name not in needed)
        return Graph(tuple(reversed(rest)), outputs)


class Tracer:
    """Builds graphs inside `gpu()`, and records which operation stands for which kernel."""

    def __init__(self) -> None:
        self.kernels: list[tuple[str, tuple[Any, ...]]] = []

    def kernel(
        self,
        name: str,
        inputs: Sequence[mx.array],
        shape: Sequence[int],
        dtype: mx.Dtype,
        arguments: tuple[Any, ...] = (),
    ) -> mx.array:
        """Return an array (`shape`) that depends on `inputs` through the kernel `name`."""
        self.kernels.append((name, arguments))
        number = mx.array(len(self.kernels) - 1)
        return mx.depends(mx.broadcast_to(mx.array(0, dtype), shape), [number, *inputs])

    def read(self, function: Callable[..., Any], *inputs: mx.array) -> Graph:
        """Trace `function`, which returns one or more arrays, without evaluation."""
        records: list[dict[str, Any]] = []
        mx.export_function(records.append, function, *inputs)
        constants = {
            name: array
            for record in records
            if record["type"] == "constants"
            for name, array in record["constants"]
        }
        steps = [record for record in records if record["type"] == "primitive"]
        marks = {step["inputs"][0][0] for step in steps if step["name"] == "Depends"}
        outputs = next(record["outputs"] for record in records if record["type"] == "outputs")
        operations = tuple(
            self._operation(step, constants) for step in steps if step["outputs"][0][0] not in marks
        )
        return Graph(operations, tuple(name for name, *_ in outputs))

    def read_network(
        self,
        network: nn.Module,
        rules: Sequence[RenameRule],
        function: Callable[..., Any],
        *inputs: mx.array,
    ) -> Graph:
        """Trace `function(*inputs)`, which uses `network`.

        Weights have the dtypes of a model that is converted to bfloat16 by `rules`.
        """
        parameters: Any = tree_flatten(network.parameters())
        names = [name for name, _ in parameters]
        ours = [
            RenameRule(rule.target, rule.target, keep_float32=rule.keep_float32)
            for rule in rules
            if rule.target
        ]
        full = {
            name
            for name, rule, _ in match_rules(dict(parameters), ours)
            if rule and rule.keep_float32
        }
        weights = [
            mx.zeros(value.shape, mx.float32 if name in full else mx.bfloat16)
            for name, value in parameters
        ]

        def call(*arrays: mx.array) -> Any:
            named = zip(names, arrays[len(inputs) :], strict=True)
            network.update(tree_unflatten(list(named)))
            return function(*arrays[: len(inputs)])

        return self.read(call, *inputs, *weights)

    def _operation(self, step: dict[str, Any], constants: Mapping[str, mx.array]) -> Operation:
        inputs = tuple(Value(*value) for value in step["inputs"])
        outputs = tuple(Value(*value) for value in step["outputs"])
        if step["name"] != "Depends":
            return Operation(step["name"], inputs, outputs, tuple(step["arguments"]))
        name, arguments = self.kernels[constants[inputs[1].name].item()]
        return Operation(name, inputs[2:], outputs, arguments)


@contextmanager
def gpu() -> Iterator[Tracer]:
    """Make wanpipe use its Metal code paths, and MLX record kernels instead of evaluating.

    Build networks inside this context: layers keep references to functions.
    """
    tracer = Tracer()
    is_fused = layers.silu.__code__  # type: ignore[attr-defined]
    # the same graphs on every machine
    with pytest.MonkeyPatch.context() as patch, mx.stream(mx.cpu):
        for path, module in list(sys.modules.items()):
            if not path.startswith("wanpipe."):
                continue
            for name, value in list(vars(module).items()):
                if name == "is_gpu":
                    patch.setattr(module, name, lambda: True)
                elif getattr(value, "__code__", None) is is_fused:
                    patch.setattr(module, name, _fused(tracer, name))
        patch.setattr(mx.metal, "is_available", lambda: True)
        patch.setattr(mx.cuda, "is_available", lambda: False)
        for name in ("layer_norm", "rms_norm"):
            patch.setattr(mx.fast, name, _norm(tracer, name))
        attention = _attention(tracer, mx.fast.scaled_dot_product_attention)
        patch.setattr(mx.fast, "scaled_dot_product_attention", attention)
        # MLX cannot export this function
        copy = lambda x: tracer.kernel("Contiguous", [x], x.shape, x.dtype)  # noqa: E731
        patch.setattr(mx, "contiguous", copy)
        patch.setattr(mx, "eval", lambda *arrays: None)
        patch.setattr(mx, "async_eval", lambda *arrays: None)
        # random weights would make the global key a graph of thousands of splits
        patch.setattr(mx.random, "uniform", lambda *_, shape, **__: mx.zeros(shape))
        yield tracer


def _fused(tracer: Tracer, name: str) -> layers.Fused:
    def call(*arrays: mx.array, dtype: mx.Dtype) -> mx.array:
        shape = np.broadcast_shapes(*(array.shape for array in arrays))
        return tracer.kernel("Fused", arrays, shape, dtype, (name,))

    return call


def _norm(tracer: Tracer, name: str) -> Callable[..., mx.array]:
    kernel = {"layer_norm": "LayerNorm", "rms_norm": "RMSNorm"}[name]

    def call(x: mx.array, *rest: mx.array | float | None) -> mx.array:
        inputs = [x, *(weight for weight in rest if isinstance(weight, mx.array))]
        return tracer.kernel(kernel, inputs, x.shape, mx.result_type(*inputs))

    return call


def _attention(tracer: Tracer, original: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def call(
        q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: mx.array | None = None
    ) -> mx.array:
        if q.shape[-1] not in FUSED_WIDTHS or v.shape[-1] != q.shape[-1] or q.shape[2] <= 8:
            return original(q, k, v, scale=scale, mask=mask)
        inputs = [q, k, v] if mask is None else [q, k, v, mask]
        return tracer.kernel("Attention", inputs, (*q.shape[:3], v.shape[-1]), q.dtype)

    return call


def winograd(operation: Operation) -> int:
    """Return the bytes that `winograd_conv_2D_gpu` in MLX's conv.cpp allocates; 0 if not used."""
    (N, *sides, C), (out, *kernel, _) = (value.shape for value in operation.inputs)
    aligned = C % 32 == out % 32 == 0 and C + out >= 256
    strides = set(operation.arguments[0])
    if kernel != [3, 3] or strides != {1} or not aligned or N * prod(sides) < 4096:
        return 0
    tiles = N * prod(-(-side // 6) for side in operation.outputs[0].shape[1:3])
    padded = N * prod(6 * (-(-side // 6)) + 2 for side in sides) * C
    return (padded + 64 * (tiles * (C + out) + C * out)) * operation.inputs[0].dtype.size


class Layout(NamedTuple):
    """The memory layout of an array: the array `base` that owns the memory, and strides."""

    base: str
    strides: Strides


def layouts(operations: Sequence[Operation]) -> dict[str, Layout]:
    """Return the layout of every array; inputs and kernel outputs are row-major."""
    known: dict[str, Layout] = {}
    for operation in operations:
        for value in operation.inputs:
            known.setdefault(value.name, Layout(value.name, rows(value.shape)))
        for value in operation.outputs:
            known[value.name] = Layout(value.name, rows(value.shape))
            if operation.name == "Attention":
                # Metal writes (B, L, N, D), so that heads merge without a copy
                _, N, L, D = value.shape
                known[value.name] = Layout(value.name, (N * L * D, D, N * D, 1))
            elif operation.name in VIEWS:
                source = known[operation.inputs[0].name]
                strides = _view(operation, value, source.strides)
                if strides is not None:
                    known[value.name] = Layout(source.base, strides)
    return known


def rows(shape: tuple[int, ...]) -> Strides:
    """Return the strides of a row-major array."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _view(operation: Operation, value: Value, strides: Strides) -> Strides | None:
    """Return the strides of `value` as a view of the first input, or None for a copy."""
    if operation.name == "Transpose":
        return tuple(strides[axis] for axis in operation.arguments[0])
    if operation.name == "Split":
        return strides
    if operation.name == "Slice":
        return tuple(a * step for a, step in zip(strides, operation.arguments[2], strict=True))
    shape = operation.inputs[0].shape
    if operation.name == "AsStrided":  # copies its input unless that is row-major
        axes = zip(shape, strides, rows(shape), strict=True)
        in_place = all(n == 1 or stride == plain for n, stride, plain in axes)
        return tuple(operation.arguments[1]) if in_place else None
    if operation.name == "Broadcast":
        missing = len(value.shape) - len(shape)
        own = (0 if n == 1 else stride for n, stride in zip(shape, strides, strict=True))
        return (0,) * missing + tuple(own)
    return _reshaped(shape, strides, value.shape)


def _reshaped(shape: tuple[int, ...], strides: Strides, target: tuple[int, ...]) -> Strides | None:
    runs: list[list[int]] = []  # length and stride of axes that are contiguous with each other
    for n, stride in zip(shape, strides, strict=True):
        if n != 1 and runs and runs[-1][1] == n * stride:
            runs[-1] = [runs[-1][0] * n, stride]
        elif n != 1:
            runs.append([n, stride])
    result = []
    for n in reversed(target):
        if n == 1:
            result.append(0)
            continue
        if not runs or runs[-1][0] % n:
            return None
        result.append(runs[-1][1])
        runs[-1] = [runs[-1][0] // n, runs[-1][1] * n]
        if runs[-1][0] == 1:
            runs.pop()
    return tuple(reversed(result))


class Memory(NamedTuple):
    """Bytes of the outputs and intermediates of a graph, without its inputs: total and peak."""

    total: int
    peak: int


def memory(operations: Sequence[Operation], outputs: Sequence[str] = ()) -> Memory:
    """Return the memory of `operations` in this order, without their inputs.

    Each array is freed after its last use, except `outputs`. Views take no memory, and an
    elementwise operation overwrites an input that is not used again. A backend that frees later, or
    whose kernels need workspace, takes more.
    """
    known = layouts(operations)
    last = {
        known[value.name].base: index
        for index, operation in enumerate(operations)
        for value in operation.arrays
    }
    last |= {known[name].base: len(operations) for name in outputs if name in known}
    alive: dict[str, int] = {}
    total = peak = 0
    for index, operation in enumerate(operations):
        dying = {known[v.name].base for v in operation.inputs if last[known[v.name].base] == index}
        for value in operation.outputs:
            if known[value.name].base != value.name:
                continue
            spare = [name for name in dying if alive.get(name) == value.nbytes]
            if spare and operation.name in DONATING:
                alive.pop(spare[0])
            alive[value.name] = value.nbytes
            total += value.nbytes
        peak = max(peak, sum(alive.values()))
        for name in dying:
            alive.pop(name, None)
    return Memory(total, peak)
