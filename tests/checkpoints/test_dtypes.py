"""Conversion between number formats, against MLX's own rounding."""

import mlx.core as mx
import numpy as np
import pytest

from wanpipe.checkpoints.dtypes import recast, widen
from wanpipe.errors import CheckpointError

RANDOM = np.random.default_rng(0)
BITS = RANDOM.integers(0, 1 << 32, 200_000, dtype=np.uint32)
EDGES = np.array(
    [
        0,
        0x8000_0000,
        0x3F80_8000,
        0x3F81_8000,
        0x3F80_8001,
        0x7F7F_FFFF,
        0x7F80_0000,
        0xFF80_0000,
        1,
    ],
    np.uint32,
)
VALUES = np.concatenate([BITS, EDGES]).view(np.float32)


def test_bfloat16_rounds_to_nearest_with_ties_to_even() -> None:
    values = VALUES[~np.isnan(VALUES)]
    expected = np.array(mx.array(values).astype(mx.bfloat16).view(mx.uint16))
    np.testing.assert_array_equal(recast(values, "F32", "BF16", "x"), expected)


def test_not_a_number_stays_so_in_bfloat16() -> None:
    values = np.array([0x7F80_0001, 0xFFFF_FFFF, 0x7FC0_0000], np.uint32).view(np.float32)
    assert np.isnan(widen(recast(values, "F32", "BF16", "x"), "BF16", "x")).all()


def test_bfloat16_comes_back_unchanged_through_float32() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    bits = bits[~np.isnan(widen(bits, "BF16", "x"))]
    np.testing.assert_array_equal(
        recast(recast(bits, "BF16", "F32", "x"), "F32", "BF16", "x"), bits
    )


def test_float16_rounds_as_mlx_does() -> None:
    values = RANDOM.standard_normal(100_000).astype(np.float32)
    expected = np.array(mx.array(values).astype(mx.float16))
    np.testing.assert_array_equal(recast(values, "F32", "F16", "x"), expected)


def test_a_value_beyond_float16_is_an_error_that_names_the_tensor() -> None:
    with pytest.raises(CheckpointError, match=r"blocks\.0.*65504.*bfloat16"):
        recast(np.array([1e5], np.float32), "F32", "F16", "blocks.0")


def test_integers_are_no_weights() -> None:
    with pytest.raises(CheckpointError, match="floating-point numbers, got I64"):
        recast(np.arange(3), "I64", "F32", "step")


def test_the_same_format_is_not_touched() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    assert recast(bits, "BF16", "BF16", "x") is bits
