"""Classifier-free guidance."""

import mlx.core as mx

from wanpipe.sampling.guidance import apply_guidance

COND, UNCOND = mx.array([1.0, 2.0], mx.bfloat16), mx.array([0.5, 4.0], mx.bfloat16)


def test_guidance_extrapolates_from_uncond_through_cond() -> None:
    assert apply_guidance(COND, UNCOND, 3.0).tolist() == [2.0, -2.0]
    assert apply_guidance(COND, UNCOND, 0.0).tolist() == UNCOND.tolist()


def test_guidance_without_uncond_returns_cond() -> None:
    assert apply_guidance(COND, None, 1.0).tolist() == COND.tolist()


def test_guidance_is_float32() -> None:
    assert (
        apply_guidance(COND, UNCOND, 3.0).dtype
        == apply_guidance(COND, None, 1.0).dtype
        == mx.float32
    )
