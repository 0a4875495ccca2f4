"""What one H100 allows: measured ceilings, and the time of a step that follows from them.

At 700 TFLOP/s in the products a step with guidance at 832x480, 81 frames takes at least 0.924 s
(1.3B) and 5.30 s (14B); at 654, the slowest product measured, 0.940 and 5.46 s. Norms, activations
and additions are not in it.
"""

from wanpipe.pipeline.budget import Expert

# bf16 products of a block's shapes: 654 to 740 TFLOP/s (MLX 0.32.4, cuBLAS), mean
MATMUL = 700e12
# bf16 attention among 32760 tokens, 12 heads of 128 (MLX 0.32.4)
ATTENTION = 583e12
# bf16 conv3d as it was first measured (MLX 0.32.4); wide ones have since reached 750
CONVOLUTION = 480e12
# a copy within device memory, counting bytes read and bytes written
BANDWIDTH = 3.0e12


def step_seconds(expert: Expert) -> float:
    """Least seconds of one step: all products of all blocks, and attention, at their ceilings."""
    c = expert.config
    one = 4.0 * expert.tokens * c.dim * (expert.tokens + c.text_len)
    attention = expert.passes * c.layers * one
    return (expert.flops - attention) / MATMUL + attention / ATTENTION
