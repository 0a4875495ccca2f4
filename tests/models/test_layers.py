"""Keys and values that are followed by means of them: which, how many, and what that changes."""

from itertools import pairwise

import mlx.core as mx
import pytest

from wanpipe.models import layers
from wanpipe.models.layers import attend, evened, split_heads, with_means


def test_means_of_groups_follow_the_rows() -> None:
    x = mx.random.normal((1001, 16))
    rows = with_means(x, 23)
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
        (32760, mx.float32, True, 32760),  # holds what means would change
        (32760, mx.bfloat16, False, 32760),
        (8184 - 128, mx.bfloat16, True, 8184 - 128),  # few tokens
        (8192 + 80, mx.bfloat16, True, 8192 + 80),  # 48 means of 172 each
    ],
)
def test_keys_are_evened_where_it_pays(
    tokens: int, dtype: mx.Dtype, cuda: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "with_means", lambda x, n: mx.zeros((len(x) + n, x.shape[1])))
    monkeypatch.setattr(layers, "is_cuda", lambda: cuda)
    assert len(evened(mx.zeros((tokens, 8), dtype))) == expected


@pytest.mark.parametrize("sharpness", [0.0, 0.3, 1.0, 2.0, 8.0])
def test_means_take_no_more_than_their_part_of_attention(sharpness: float) -> None:
    tokens, groups, heads, width = 4000, 16, 2, 32
    q = sharpness * mx.random.normal((48, heads * width))
    # what all keys have in common, and values far from zero
    k = mx.random.normal((tokens, heads * width)) + mx.random.normal((1, heads * width))
    v = mx.random.normal((tokens, heads * width)) + 3

    def attended(k: mx.array, v: mx.array) -> mx.array:
        return attend(*(split_heads(rows, heads) for rows in (q, k, v)))[0]

    plain, more = attended(k, v), attended(with_means(k, groups), with_means(v, groups))
    means = with_means(v, groups)[tokens:]
    farthest = mx.abs(means[:, None] - plain).max(0)
    smallest = tokens // groups  # keys of a group
    bound = farthest / smallest
    assert mx.all(mx.abs(more - plain) <= bound + 1e-5)
    error = (mx.linalg.norm(more - plain) / mx.linalg.norm(plain)).item()
    assert error < 2e-4  # bfloat16 rounds by 2e-3
