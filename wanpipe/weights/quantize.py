"""Stores the matrices of transformer blocks in 4 or 8 bits, in MLX's affine format, as they stream.

Memory holds some rows of one matrix, and its scales. Knows neither files nor networks.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np

from wanpipe.checkpoints.dtypes import Array, Floats, recast, widen
from wanpipe.errors import CheckpointError, UsageError
from wanpipe.models.config import Quantization
from wanpipe.weights.write import TensorSpec, sort_specs

BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)
# of the DiT and of umT5; embeddings, norms, modulation and head stay as they are
MATRICES = re.compile(
    r"(vace_)?blocks\.\d+\.(?P<kind>(self_attn|cross_attn|attn)\.(q|k|v|o|k_img|v_img)"
    r"|ffn\.(gate|fc1|fc2)|(before|after)_proj)\.weight"
)
WEIGHT, SCALES, BIASES = "weight", "scales", "biases"  # last words of MLX's three tensors

Blocks = Callable[[TensorSpec], Iterator[Array]]


def check_quantization(quantization: Quantization) -> Quantization:
    """Return `quantization`. Raises UsageError for bits or a group size that MLX does not have."""
    for name, value, known in (
        ("bits", quantization.bits, BITS),
        ("group-size", quantization.group_size, GROUP_SIZES),
    ):
        if value not in known:
            raise UsageError(f"{name} must be {' or '.join(map(str, known))}, got {value}")
    return quantization


def check_group_size(quantization: Quantization, subject: str, widths: Sequence[int]) -> None:
    """Raise UsageError for a group size that does not divide all widths of a network's matrices."""
    if any(width % quantization.group_size for width in widths):
        fitting = [str(size) for size in GROUP_SIZES if not any(one % size for one in widths)]
        remedy = f"use {' or '.join(fitting)}" if fitting else "leave it unquantized"
        raise UsageError(
            f"group-size must divide the widths of {subject} ({', '.join(map(str, widths))}), got "
            f"{quantization.group_size}; {remedy}"
        )


def quantized_specs(specs: Sequence[TensorSpec], quantization: Quantization) -> list[TensorSpec]:
    """Give the tensors of a quantized file: each matrix followed by its scales and biases."""
    codes = [
        replace(spec, dtype="U32") if MATRICES.fullmatch(spec.name) else spec for spec in specs
    ]
    stored = {spec.name: spec.dtype for spec in specs}
    result = []
    for spec in sort_specs(codes):
        if not MATRICES.fullmatch(spec.name):
            result.append(spec)
            continue
        height, width = spec.shape
        assert width % quantization.group_size == 0, (spec, quantization)
        result.append(replace(spec, shape=(height, width * quantization.bits // 32)))
        for word in (SCALES, BIASES):
            name = spec.name.removesuffix(WEIGHT) + word
            result.append(
                TensorSpec(name, stored[spec.name], (height, width // quantization.group_size))
            )
    return result


class Quantizer:
    """Quantizes the blocks of tensors as they are written, and sums up the errors."""

    def __init__(self, quantization: Quantization, specs: Sequence[TensorSpec]) -> None:
        self.quantization = quantization
        self._plain = {spec.name: spec for spec in specs}
        self._pending: dict[str, list[Array]] = {}  # scales and biases of the matrix before
        self._squares: dict[str, Array] = {}  # of errors and of weights, by kind of layer

    def blocks(self, spec: TensorSpec, plain: Blocks) -> Iterator[Array]:
        """Give the blocks of one tensor of the file; `plain` gives those of an unquantized one."""
        if spec.name in self._pending:
            yield from self._pending.pop(spec.name)
        elif MATRICES.fullmatch(spec.name):
            yield from self._quantize(self._plain[spec.name], plain)
        else:
            yield from plain(spec)

    def _quantize(self, spec: TensorSpec, plain: Blocks) -> Iterator[Array]:
        scales, biases = (
            self._pending.setdefault(spec.name.removesuffix(WEIGHT) + word, [])
            for word in (SCALES, BIASES)
        )
        for block in plain(replace(spec, dtype="F32")):
            codes, scale, bias = quantize(block, self.quantization, spec.dtype, spec.name)
            scales.append(scale)
            biases.append(bias)
            self._add_error(
                spec.name, block, dequantize(codes, scale, bias, self.quantization, spec.dtype)
            )
            yield codes

    def _add_error(self, name: str, values: Floats, restored: Floats) -> None:
        """Add up squares, for the error of this kind of layer."""
        found = MATRICES.fullmatch(name)
        assert found is not None
        lost = np.ravel(restored - values)
        squares = [np.vdot(one, one) for one in (lost, np.ravel(values))]
        self._squares[found["kind"]] = self._squares.get(found["kind"], 0) + np.array(squares)

    @property
    def errors(self) -> dict[str, float]:
        """Relative error of each kind of layer: norm of the difference over that of the weights."""
        return {
            kind: float(np.sqrt(lost / max(whole, 1e-30)))
            for kind, (lost, whole) in self._squares.items()
        }


def quantize(
    rows: Floats, quantization: Quantization, dtype: str, subject: str
) -> tuple[Array, Array, Array]:
    """Quantize rows (O, I) to MLX's codes (uint32), scales and biases, these in format `dtype`.

    Codes are rounded against the scales as they are stored: rounding a scale to bfloat16 after the
    codes would add half as much error again at 8 bits. Raises CheckpointError for NaN or infinity.
    """
    if not np.isfinite(rows).all():
        raise CheckpointError(f"{subject} has NaN or infinite values; download the file again")
    width = rows.shape[1]
    _, *exact = mx.quantize(
        mx.array(rows), quantization.group_size, quantization.bits, stream=mx.cpu
    )
    scales, biases = (recast(np.array(one), "F32", dtype, subject) for one in exact)
    step, base = (widen(one, dtype, subject)[..., None] for one in (scales, biases))
    codes = np.rint((rows.reshape(len(rows), -1, quantization.group_size) - base) / step)
    codes = (
        np.clip(codes, 0, (1 << quantization.bits) - 1).astype(np.uint8).reshape(-1, width)
    )  # (O, I)
    if quantization.bits == 4:  # the first of a pair takes the low half of a byte
        codes = codes[:, ::2] | codes[:, 1::2] << 4
    return np.ascontiguousarray(codes).view(np.uint32), scales, biases


def dequantize(
    codes: Array, scales: Array, biases: Array, quantization: Quantization, dtype: str
) -> Floats:
    """Give the float32 values (O, I) of what `quantize` gave."""
    step, base = (mx.array(widen(one, dtype, "")) for one in (scales, biases))
    matrix = mx.dequantize(
        mx.array(codes), step, base, quantization.group_size, quantization.bits, stream=mx.cpu
    )
    return np.array(matrix)
