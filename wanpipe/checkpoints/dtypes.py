"""Number formats of checkpoint files, and exact conversion between them in NumPy.

Names are those of safetensors. Formats that NumPy lacks travel as bit patterns: BF16 as uint16,
8-bit floats as uint8. Knows nothing of files.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from wanpipe.errors import CheckpointError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("u1"),
}
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # of --dtype


def recast(values: Array, source: str, target: str, subject: str) -> Array:
    """Convert from format `source` to `target` (F32, BF16, F16): to nearest, ties to even.

    Raises CheckpointError that names `subject` where a finite value would overflow float16,
    or where `source` is no float.
    """
    return values if source == target else narrow(widen(values, source, subject), target, subject)


def widen(values: Array, source: str, subject: str) -> Floats:
    """Give the float32 values of numbers of format `source`; exact but for F64, rounded."""
    if source not in FLOATS:
        raise CheckpointError(f"{subject} must hold floating-point numbers, got {source}")
    if source == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    if source in FLOAT8_VALUES:
        return np.take(FLOAT8_VALUES[source], values)
    return values.astype(np.float32, copy=False)


def narrow(values: Floats, target: str, subject: str) -> Array:
    """Round float32 values to format `target`, ties to even; not-a-number stays so."""
    if target == "F32":
        return values
    if target == "BF16":
        return _bfloat16(values)
    assert target == "F16", target
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all() and np.isfinite(values).all():
        raise CheckpointError(
            f"{subject} has values beyond float16's 65504; convert with --dtype bfloat16 or float32"
        )
    return half


def _bfloat16(values: Floats) -> npt.NDArray[np.uint16]:
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits  # may wrap for not-a-number alone, mended below
    rounded >>= 16
    result = rounded.astype(np.uint16)
    broken = np.isnan(values)
    if broken.any():
        result[broken] = (bits[broken] >> 16) | 0x40  # quiet, or its mantissa might be all zeros
    return result


def _eight_bit(exponent_bits: int, infinities: bool) -> Floats:
    """Tabulate the 256 values of an 8-bit float: sign, exponent, mantissa."""
    mantissa_bits = 7 - exponent_bits
    codes = np.arange(256)
    exponent = (codes & 0x7F) >> mantissa_bits
    mantissa = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    bias = (1 << (exponent_bits - 1)) - 1
    scale = np.exp2(np.maximum(exponent, 1) - bias)
    values = np.where(codes & 0x80, -1.0, 1.0) * ((exponent > 0) + mantissa) * scale
    if infinities:  # E5M2 is as IEEE has it
        top = exponent == (1 << exponent_bits) - 1
        values[top] = np.where(mantissa[top] == 0, np.sign(values[top]) * np.inf, np.nan)
    else:  # E4M3 has no infinity; only all ones is not a number
        values[[0x7F, 0xFF]] = np.nan
    table: Floats = values.astype(np.float32)
    return table


FLOAT8_VALUES = {"F8_E4M3": _eight_bit(4, False), "F8_E5M2": _eight_bit(5, True)}
