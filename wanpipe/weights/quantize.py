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
from wanpipe.weights.write import Slot, arranged

BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)
# of the DiT and of umT5; embeddings, norms, modulation and head stay as they are
MATRICES = re.compile(
    r"blocks\.\d+\."
    r"(?P<kind>(self_attn|cross_attn|attn)\.(q|k|v|o|k_img|v_img)|ffn\.(gate|fc1|fc2))\.weight"
)
CODES, SCALES, BIASES = "weight", "scales", "biases"  # last words of MLX's three tensors

Blocks = Callable[[Slot], Iterator[Array]]


def check(spec: Quantization) -> Quantization:
    """Return `spec`. Raises UsageError for bits or a group size that MLX does not have."""
    for name, value, known in (
        ("bits", spec.bits, BITS),
        ("group-size", spec.group_size, GROUP_SIZES),
    ):
        if value not in known:
            raise UsageError(f"{name} must be {' or '.join(map(str, known))}, got {value}")
    return spec


def check_fit(spec: Quantization, subject: str, widths: Sequence[int]) -> None:
    """Raise UsageError for a group size that does not divide all widths of a network's matrices."""
    if any(width % spec.group_size for width in widths):
        fitting = [str(size) for size in GROUP_SIZES if not any(one % size for one in widths)]
        remedy = f"use {' or '.join(fitting)}" if fitting else "leave it unquantised"
        raise UsageError(
            f"group-size must divide the widths of {subject} ({', '.join(map(str, widths))}), got "
            f"{spec.group_size}; {remedy}"
        )


def packed(slots: Sequence[Slot], spec: Quantization) -> list[Slot]:
    """Give the tensors of a quantised file: each matrix followed by its scales and biases."""
    codes = [
        replace(slot, dtype="U32") if MATRICES.fullmatch(slot.name) else slot for slot in slots
    ]
    stored = {slot.name: slot.dtype for slot in slots}
    result = []
    for slot in arranged(codes):
        if not MATRICES.fullmatch(slot.name):
            result.append(slot)
            continue
        height, width = slot.shape
        assert width % spec.group_size == 0, (slot, spec)
        result.append(replace(slot, shape=(height, width * spec.bits // 32)))
        for word in (SCALES, BIASES):
            name = slot.name.removesuffix(CODES) + word
            result.append(Slot(name, stored[slot.name], (height, width // spec.group_size)))
    return result


class Packer:
    """Turns the blocks of plain tensors into those of `packed` ones, and sums up the errors."""

    def __init__(self, spec: Quantization, slots: Sequence[Slot]) -> None:
        self.spec = spec
        self._plain = {slot.name: slot for slot in slots}
        self._pending: dict[str, list[Array]] = {}  # scales and biases of the matrix before
        self._squares: dict[str, Array] = {}  # of errors and of weights, by kind of layer

    def blocks(self, slot: Slot, plain: Blocks) -> Iterator[Array]:
        """Give the blocks of one tensor of the file; `plain` gives those of an unquantised one."""
        if slot.name in self._pending:
            yield from self._pending.pop(slot.name)
        elif MATRICES.fullmatch(slot.name):
            yield from self._pack(self._plain[slot.name], plain)
        else:
            yield from plain(slot)

    def _pack(self, slot: Slot, plain: Blocks) -> Iterator[Array]:
        scales, biases = (
            self._pending.setdefault(slot.name.removesuffix(CODES) + word, [])
            for word in (SCALES, BIASES)
        )
        for block in plain(replace(slot, dtype="F32")):
            codes, scale, bias = quantize(block, self.spec, slot.dtype, slot.name)
            scales.append(scale)
            biases.append(bias)
            self._note(slot.name, block, dequantize(codes, scale, bias, self.spec, slot.dtype))
            yield codes

    def _note(self, name: str, values: Floats, restored: Floats) -> None:
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
    rows: Floats, spec: Quantization, dtype: str, subject: str
) -> tuple[Array, Array, Array]:
    """Quantise rows (O, I) to MLX's codes (uint32), scales and biases, these in format `dtype`.

    Codes are rounded against the scales as they are stored: rounding a scale to bfloat16 after the
    codes would add half as much error again at 8 bits. Raises CheckpointError for NaN or infinity.
    """
    if not np.isfinite(rows).all():
        raise CheckpointError(f"{subject} has NaN or infinite values; download the file again")
    width = rows.shape[1]
    _, *exact = mx.quantize(mx.array(rows), spec.group_size, spec.bits, stream=mx.cpu)
    scales, biases = (recast(np.array(one), "F32", dtype, subject) for one in exact)
    step, base = (widen(one, dtype, subject)[..., None] for one in (scales, biases))
    codes = np.rint((rows.reshape(len(rows), -1, spec.group_size) - base) / step)
    codes = np.clip(codes, 0, (1 << spec.bits) - 1).astype(np.uint8).reshape(-1, width)  # (O, I)
    if spec.bits == 4:  # the first of a pair takes the low half of a byte
        codes = codes[:, ::2] | codes[:, 1::2] << 4
    return np.ascontiguousarray(codes).view(np.uint32), scales, biases


def dequantize(
    codes: Array, scales: Array, biases: Array, spec: Quantization, dtype: str
) -> Floats:
    """Give the float32 values (O, I) of what `quantize` gave."""
    step, base = (mx.array(widen(one, dtype, "")) for one in (scales, biases))
    matrix = mx.dequantize(mx.array(codes), step, base, spec.group_size, spec.bits, stream=mx.cpu)
    return np.array(matrix)
