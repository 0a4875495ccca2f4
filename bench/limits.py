"""Measured ceilings of one H100, and the shortest possible time of a step.

With products at 700 TFLOP/s, a step with guidance at 832x480, 81 frames takes at least 0.924 s
(1.3B) and 5.30 s (14B). At 654 TFLOP/s, the slowest product, it takes 0.940 and 5.46 s. Norms,
activations and additions are not counted.
"""

from wanpipe.pipeline.budget import Expert

# mean of the bf16 products of a block: 654 to 740 TFLOP/s (MLX 0.32.4, cuBLAS)
MATMUL = 700e12
# bf16 attention among 32760 tokens, 12 heads of 128 (MLX 0.32.4)
ATTENTION = 583e12
# bf16 conv3d (MLX 0.32.4); wide ones reach 750
CONVOLUTION = 480e12
# a copy in device memory, bytes read plus bytes written
BANDWIDTH = 3.0e12


def step_seconds(expert: Expert) -> float:
    """Return the time of all products and attention of a step at their ceilings, in seconds."""
    c = expert.config
    one = 4.0 * expert.tokens * c.dim * (expert.tokens + c.text_len)
    attention = expert.passes * expert.block_count * one
    return (expert.flops - attention) / MATMUL + attention / ATTENTION
