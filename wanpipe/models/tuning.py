"""Measured thresholds that the networks and the memory plans share. Loads no array library."""

from typing import Literal

# the convolutions that a device has: MLX's alone; on CUDA, also those of frames stacked as
# channels; on a Hopper GPU, also those of `backend.cuda_conv`
Convolutions = Literal["mlx", "cuda", "hopper"]

FILL_GPU = 8192  # tokens; a quarter of them still fills a GPU
LONG_MATMUL = 1e12  # floating point operations; 1.4 ms on an H100
STACK_BELOW = 128  # channels; below, cuDNN is twice as fast with three frames stacked as channels


def ffn_chunk(tokens: int) -> int:
    """Return the tokens per chunk of the feed-forward layer: a quarter if that fills a GPU."""
    return -(-tokens // 4) if tokens >= FILL_GPU else tokens


def eval_depth(tokens: int, dim: int) -> int:
    """Return the number of evaluations to keep in flight.

    1 if a matmul outlasts the host's wake-up latency, else 3.
    """
    return 1 if 2 * tokens * dim**2 > LONG_MATMUL else 3


def convolutions(itemsize: int) -> Convolutions:
    """Return which convolutions this device has for numbers of so many bytes."""
    from wanpipe.backend.device import architecture, is_cuda

    if not is_cuda():
        return "mlx"
    return "hopper" if architecture() == "sm_90" and itemsize == 2 else "cuda"


def multiplies_tiles(inputs: int, outputs: int, device: Convolutions) -> bool:
    """Return whether a causal convolution is fastest with the kernel of `backend.cuda_conv`.

    With more outputs, cuDNN is as fast. The last layers have at most 12, the first ones inputs.
    """
    narrow = outputs in (96, 192) and inputs % 16 == 0
    return device == "hopper" and (narrow or min(inputs, outputs) <= 12)


def stacks_frames(inputs: int, outputs: int, device: Convolutions) -> bool:
    """Return whether a causal convolution is faster with frames stacked as channels."""
    narrow = inputs < STACK_BELOW <= 2 * outputs
    return device != "mlx" and narrow and not multiplies_tiles(inputs, outputs, device)
