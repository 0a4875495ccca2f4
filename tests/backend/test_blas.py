"""NumPy's kernels for the CPU give what float64 and MLX's own operations give."""

import math

import mlx.core as mx
import numpy as np
import pytest

from tests.models.official import on_the_cpu
from wanpipe.backend import blas, cpu_kernels
from wanpipe.models import rope
from wanpipe.models.layers import modulate

pytestmark = on_the_cpu


def normal(*shape: int) -> mx.array:
    return mx.array(np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32))


def error(ours: mx.array, truth: "mx.array | np.ndarray") -> float:
    """Relative L2 error."""
    exact = np.asarray(truth, np.float64)
    return float(np.linalg.norm(np.asarray(ours) - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        ((3, 3, 3), (1, 1, 1), ((0, 0), (1, 1), (1, 1))),
        ((1, 3, 3), (1, 2, 2), ((0, 0), (0, 1), (0, 1))),
        ((3, 1, 1), (2, 1, 1), ((0, 0), (0, 0), (0, 0))),
        ((1, 2, 2), (1, 1, 1), ((0, 0), (1, 1), (1, 1))),
    ],
)
@pytest.mark.parametrize("band", [1, 1500, 1 << 18])
def test_a_convolution_is_that_of_mlx(
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    band: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blas, "BAND", band)
    x, weight = normal(5, 10, 14, 6), normal(4, *kernel, 6)
    low, high = zip(*padding, strict=True)
    theirs = mx.conv_general(x[None], weight, stride, (list(low), list(high))).squeeze(0)
    ours = blas.convolve(x, weight, stride, padding)
    assert ours.shape == theirs.shape
    assert error(ours, theirs) < 1e-6


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(7, 5), (300, 1100), (257, 512)])
def test_attention_is_exact_for_many_keys(queries: int, keys: int, masked: bool) -> None:
    q, k, v = (normal(1, 3, rows, 16) for rows in (queries, keys, keys))
    mask = normal(3, queries, keys) if masked else None
    wide = [np.asarray(x, np.float64)[0] for x in (q, k, v)]
    scores = wide[0] @ wide[1].swapaxes(1, 2) * 0.25
    if mask is not None:
        scores += np.asarray(mask, np.float64)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    truth = weights / weights.sum(-1, keepdims=True) @ wide[2]
    ours = blas.attend(q, k, v, 0.25, mask)
    assert error(ours[0], truth.swapaxes(0, 1).reshape(queries, -1)) < 1e-6


def test_equal_keys_are_summed_without_loss() -> None:
    q, one = normal(1, 1, 4, 8), mx.full((1, 1, 1, 8), 0.1)
    keys = mx.broadcast_to(one, (1, 1, 500, 8))
    assert error(blas.attend(q, keys, keys, 1.0, None)[0], np.full((4, 8), 0.1)) < 5e-7


def test_norms_and_activations_are_those_of_mlx() -> None:
    x, y = normal(2, 30, 32), normal(60, 32)
    shift, scale, gate = (normal(2, 1, 32) for _ in range(3))
    weight = normal(32)
    own = {"eps": 1e-6, "dtype": mx.float32}
    theirs = modulate(mx.fast.layer_norm(x, None, None, 1e-6), shift, scale, dtype=mx.float32)
    assert error(cpu_kernels.norm_modulate(x, shift, scale, **own), theirs) < 1e-6
    moved, normed = cpu_kernels.add_norm(
        x, [y[:40], y[40:]], gate, weight, weight, plus_one=False, **own
    )
    total = x + y.reshape(x.shape) * gate
    assert error(moved, total) < 1e-6
    assert error(normed, mx.fast.layer_norm(total, weight, weight, 1e-6)) < 1e-6
    assert error(cpu_kernels.rms_norm(x, weight, 1e-6), mx.fast.rms_norm(x, weight, 1e-6)) < 1e-6
    scaled = mx.fast.rms_norm(x, weight, 1e-12)
    silu = scaled * mx.sigmoid(scaled)
    assert error(cpu_kernels.rms_norm_silu(x, weight, 1e-12, silu=True), silu) < 1e-6
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    assert error(cpu_kernels.gelu(x), 0.5 * x * (1 + mx.tanh(inner))) < 1e-6
    assert error(cpu_kernels.sum_terms(x, scaled, weight), x + scaled + weight) < 1e-6


def test_rotation_by_complex_numbers_is_that_of_pairs() -> None:
    x, weight, table = normal(24, 32), normal(32), rope.tables((2, 3, 4), 16)
    heads = mx.fast.rms_norm(x, None, 1e-6).reshape(24, 2, 16)
    ours = cpu_kernels.norm_rotate(x, weight, table, width=16, eps=1e-6)
    assert error(ours, rope.rotate(heads, weight, table).reshape(x.shape)) < 1e-6


def test_far_below_zero_silu_is_zero_without_a_warning() -> None:
    x = mx.array([[-1000.0, 1.0]])
    values = np.asarray(cpu_kernels.rms_norm_silu(x, mx.array([1e3, 1.0]), 1e-12, silu=True))
    assert np.isfinite(values).all()
    assert values[0, 0] == 0
