"""Tiles of any size: they cover the video, and their weights sum to 1."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import repeatable
from wanpipe.models.vae import tiling


@repeatable
@given(st.integers(1, 300), st.integers(1, 40), st.data())
def test_spans_cover_all_rows_in_order(size: int, tile: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(1, tile))
    spans = tiling.spans(size, tile, step)
    assert spans[0].start == 0 and spans[-1].stop == size
    assert all(span.stop - span.start == min(tile, size) for span in spans)
    for before, after in itertools.pairwise(spans):
        assert before.start < after.start <= min(before.stop, before.start + step)


@repeatable
@given(st.integers(1, 150), st.sampled_from([8, 16]), st.integers(2, 40), st.data())
def test_weights_sum_to_one_and_are_never_negative(
    size: int, stride: int, tile: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(1, tile // 2))
    total = np.zeros(size * stride)
    for span, weights in tiling.ramps(size, stride, tile * stride, overlap * stride):
        assert len(weights) == (span.stop - span.start) * stride
        assert (weights >= 0).all()
        total[span.start * stride : span.stop * stride] += weights
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-6)
