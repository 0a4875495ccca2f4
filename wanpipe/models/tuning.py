"""Measured thresholds that the networks and the memory plans share. Loads no array library."""

FILL_GPU = 8192  # tokens; a quarter of them still fills a GPU
LONG_MATMUL = 1e12  # floating point operations; 1.4 ms on an H100
FEW = 12  # channels of pixels, or of patches of 2x2 pixels
STACK_BELOW = 128  # channels; below, cuDNN is twice as fast with three frames stacked as channels


def ffn_chunk(tokens: int) -> int:
    """Return the tokens per chunk of the feed-forward layer: a quarter if that fills a GPU."""
    return -(-tokens // 4) if tokens >= FILL_GPU else tokens


def eval_depth(tokens: int, dim: int) -> int:
    """Return the number of evaluations to keep in flight.

    1 if a matmul outlasts the host's wake-up latency, else 3.
    """
    return 1 if 2 * tokens * dim**2 > LONG_MATMUL else 3


def stacks_frames(inputs: int, outputs: int) -> bool:
    """Return whether a causal convolution is faster on CUDA with frames stacked as channels."""
    return inputs < STACK_BELOW <= 2 * outputs


def multiplies_tiles(inputs: int, outputs: int) -> bool:
    """Return whether a causal convolution is fastest with the kernel of `backend.cuda_conv`.

    With more outputs, cuDNN is as fast. The first layers have few inputs, the last ones outputs.
    """
    first, last = inputs <= FEW and outputs % 32 == 0, outputs <= FEW and inputs % 16 == 0
    return first or last or (outputs in (96, 192) and inputs % 16 == 0)
