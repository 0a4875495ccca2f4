"""Rotary positions against the official code, and against complex numbers in float64."""

import shutil

import mlx.core as mx
import numpy as np
import pytest

from tests.conftest import golden, relative_error
from wanpipe.models import layers, rope

GRIDS = ("wan21-t2v/dit", "wan21-i2v/dit", "wan22-t2v-a14b/dit_low", "wan22-ti2v-5b/dit")


def reference(x: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Multiply pairs by complex exponentials in float64."""
    positions = np.indices(grid).reshape(3, -1)  # frame, row and column of every token
    ladders = [10000.0 ** -(np.arange(count) / count) for count in rope.pairs(x.shape[-1])]
    angles = [np.outer(n, ladder) for n, ladder in zip(positions, ladders, strict=True)]
    rotations = np.exp(1j * np.concatenate(angles, axis=1))[:, None]  # (L, 1, D / 2)
    return ((x[..., ::2] + 1j * x[..., 1::2]) * rotations).view(np.float64).reshape(x.shape)


@pytest.mark.parametrize("topic", GRIDS)
def test_rotated_queries_match_the_official_code(topic: str) -> None:
    reference = golden(topic)
    q = mx.array(reference["a_rope_q_in"])
    rotated = rope.rotate(q, mx.ones((64,)), rope.tables((2, 4, 3), 32))
    assert relative_error(rotated, reference["a_rope_q"]) < 2e-7


def test_each_axis_rotates_its_share_of_a_head() -> None:
    assert rope.pairs(128) == (22, 21, 21)
    assert rope.pairs(32) == (6, 5, 5)


def test_each_axis_has_its_own_frequencies() -> None:
    frames, rows, columns = rope.angles((2, 3, 4), 32)
    np.testing.assert_allclose(frames[1], 10000.0 ** (-np.arange(6) / 6), rtol=1e-15)
    np.testing.assert_allclose(rows[2], 2 * 10000.0 ** (-np.arange(5) / 5), rtol=1e-15)
    assert columns.shape == (4, 5)
    assert columns[3, 0] == 3


def test_a_full_size_grid_keeps_float32_precision() -> None:
    grid = (3, 45, 80)
    x = np.random.default_rng(0).standard_normal((3 * 45 * 80, 2, 128))
    rotated = rope.rotate(mx.array(x, mx.float32), mx.ones((256,)), rope.tables(grid, 128))
    assert relative_error(rotated, reference(x, grid)) < 1e-7


def test_the_weight_of_the_norm_is_applied_before_rotation() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((24, 2, 32)), rng.standard_normal(64)
    rotated = rope.rotate(
        mx.array(x, mx.float32), mx.array(weight, mx.float32), rope.tables((2, 4, 3), 32)
    )
    assert relative_error(rotated, reference(x * weight.reshape(2, 32), (2, 4, 3))) < 2e-7


def test_the_dtype_of_the_input_is_kept() -> None:
    x = mx.random.normal((24, 2, 32)).astype(mx.bfloat16)
    assert rope.rotate(x, mx.ones((64,)), rope.tables((2, 4, 3), 32)).dtype == mx.bfloat16


@pytest.mark.skipif(shutil.which("g++") is None, reason="MLX compiles for the CPU with g++")
def test_the_fused_kernel_matches_separate_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = [mx.random.normal((tokens, 2, 32)) for tokens in (24, 24, 60)]
    grids = [(2, 4, 3), (1, 4, 6), (3, 4, 5)]
    weight = mx.random.normal((64,))

    def rotate_all() -> list[mx.array]:
        return [
            rope.rotate(x, weight, rope.tables(grid, 32))
            for x, grid in zip(inputs, grids, strict=True)
        ]

    plain = rotate_all()
    mx.eval(plain)
    monkeypatch.setattr(layers, "is_gpu", lambda: True)
    for fused, separate in zip(rotate_all(), plain, strict=True):
        assert relative_error(fused, separate) < 1e-7
