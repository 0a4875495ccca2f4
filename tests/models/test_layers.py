"""Padded keys and values: when they are padded, by how much, and the error of attention."""

from itertools import pairwise

import mlx.core as mx
import pytest

from wanpipe.models import layers
from wanpipe.models.layers import append_group_means, attend, pad_keys, split_heads


def test_group_means_are_appended_to_the_rows() -> None:
    x = mx.random.normal((1001, 16))
    rows = append_group_means(x, 23)
    assert rows.shape == (1024, 16)
    assert mx.array_equal(rows[:1001], x)
    cuts = [1001 * group // 23 for group in range(24)]
    assert {b - a for a, b in pairwise(cuts)} == {43, 44}
    for group, (first, last) in enumerate(pairwise(cuts)):
        assert mx.allclose(rows[1001 + group], x[first:last].mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "dtype", "cuda", "expected"),
    [
        (32760, mx.bfloat16, True, 32768),
        (75600, mx.float16, True, 75648),
        (27280, mx.bfloat16, True, 27392),
        (32768, mx.bfloat16, True, 32768),
        (32760, mx.float32, True, 32760),  # more precise than the error of padding
        (32760, mx.bfloat16, False, 32760),
        (8184 - 128, mx.bfloat16, True, 8184 - 128),  # few tokens
        (8192 + 80, mx.bfloat16, True, 8192 + 80),  # 48 means of 172 each
    ],
)
def test_keys_are_padded_when_it_is_faster(
    tokens: int, dtype: mx.Dtype, cuda: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        layers, "append_group_means", lambda x, n: mx.zeros((len(x) + n, x.shape[1]))
    )
    monkeypatch.setattr(layers, "is_cuda", lambda: cuda)
    monkeypatch.delenv("WANPIPE_EXACT", raising=False)
    assert len(pad_keys(mx.zeros((tokens, 8), dtype))) == expected


@pytest.mark.parametrize(("setting", "expected"), [("1", 32760), ("0", 32768), ("", 32768)])
def test_keys_are_not_padded_if_exactness_is_asked_for(
    setting: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        layers, "append_group_means", lambda x, n: mx.zeros((len(x) + n, x.shape[1]))
    )
    monkeypatch.setattr(layers, "is_cuda", lambda: True)
    monkeypatch.setenv("WANPIPE_EXACT", setting)
    assert len(pad_keys(mx.zeros((32760, 8), mx.bfloat16))) == expected


@pytest.mark.parametrize("sharpness", [0.0, 0.3, 1.0, 2.0, 8.0])
def test_the_error_of_padding_is_bounded_by_the_share_of_means(sharpness: float) -> None:
    tokens, groups, heads, width = 4000, 16, 2, 32
    q = sharpness * mx.random.normal((48, heads * width))
    # keys with a common component, and values far from zero
    k = mx.random.normal((tokens, heads * width)) + mx.random.normal((1, heads * width))
    v = mx.random.normal((tokens, heads * width)) + 3

    def attended(k: mx.array, v: mx.array) -> mx.array:
        return attend(*(split_heads(rows, heads) for rows in (q, k, v)))[0]

    plain, more = (
        attended(k, v),
        attended(append_group_means(k, groups), append_group_means(v, groups)),
    )
    means = append_group_means(v, groups)[tokens:]
    farthest = mx.abs(means[:, None] - plain).max(0)
    smallest = tokens // groups  # keys of a group
    bound = farthest / smallest
    assert mx.all(mx.abs(more - plain) <= bound + 1e-5)
    error = (mx.linalg.norm(more - plain) / mx.linalg.norm(plain)).item()
    assert error < 2e-4  # bfloat16 rounds by 2e-3
