"""A CUDA kernel for the causal 3x3x3 convolutions of few channels, for Hopper GPUs.

For 96 channels it takes about half of cuDNN's time on an H100. It adds bias and residual without
another pass over memory. It uses wgmma, the tensor cores' asynchronous products, which only
architecture sm_90a has. Knows no model.

A thread block computes tiles of 16 x 32 positions of one frame, for 96 or 32 output channels. Two
warpgroups multiply; they read from two ring buffers in shared memory. Three warps fill the first
one with pixels: a stage has 16 channels of one input frame, with a halo of one pixel. One thread
fills the second one with weights: a stage has those of one of the nine taps. All taps read the same
pixels, each from another first address: to the tensor cores, a matrix is made of rows of 8
positions x 16 bytes, and such a row may begin at any position. Both buffers are filled for the next
tile while a result is written.
"""

from functools import cache

import mlx.core as mx

from wanpipe.backend import cuda_driver
from wanpipe.backend.cuda_conv_source import ADD, FUNCTIONS, INSTRUCTIONS, KERNEL, LOAD
from wanpipe.backend.cuda_launch import Kernel, launch
from wanpipe.backend.device import architecture

WIDTHS = (96, 32)  # channels that a block may compute
DEPTH = 16  # channels that one product sums over, and those of a stage
ROWS, COLUMNS = 16, 32  # positions that a block computes
PIXEL_STAGES, WEIGHT_STAGES = 4, 48  # of the ring buffers
THREADS = 384  # two warpgroups that multiply, and one that loads
KINDS = {mx.bfloat16: "bf16", mx.float16: "f16"}

PIXEL_BYTES = 2 * DEPTH * (ROWS + 2) * (COLUMNS + 2)  # of a stage
WEIGHT_BYTES = 2 * DEPTH * max(WIDTHS)
SHARED_BYTES = (
    PIXEL_STAGES * PIXEL_BYTES
    + WEIGHT_STAGES * WEIGHT_BYTES
    + 16 * (PIXEL_STAGES + WEIGHT_STAGES)  # two barriers of 8 bytes for each stage
)


def computes(dtype: mx.Dtype) -> bool:
    """Return whether this GPU has the kernel for numbers of this kind."""
    return architecture() == "sm_90" and dtype in KINDS


def tile_weight(weight: mx.array) -> mx.array:
    """Put a weight (O, 3, 3, 3, C) in the order in which the kernel reads it.

    Returns (blocks, 3 frames, C / 16, 9 taps, 2, 96 or 32, 8): the outputs of a block side by side,
    of 8 inputs each. Adds zeros where O or C does not fill the last block.
    """
    outputs, *_, inputs = weight.shape
    width = next(width for width in WIDTHS if outputs % width == 0 or width == WIDTHS[-1])
    blocks, chunks = -(-outputs // width), -(-inputs // DEPTH)
    more = [(0, blocks * width - outputs), *[(0, 0)] * 3, (0, chunks * DEPTH - inputs)]
    parts = mx.pad(weight, more).reshape(blocks, width, 3, 9, chunks, 2, DEPTH // 2)
    return mx.contiguous(parts.transpose(0, 2, 4, 3, 5, 1, 6))


def convolve(x: mx.array, weight: mx.array, bias: mx.array, residual: mx.array | None) -> mx.array:
    """Convolve (T + 2, H, W, C) over frames, rows and columns, with zeros around the frames.

    `weight` is that of `tile_weight`. Adds the bias (O) and the optional `residual` (T, H, W, O),
    which needs whole blocks of outputs. Sums in float32, and rounds once before the residual is
    added and once after. Returns (T, H, W, O).
    """
    blocks, _, chunks, *_, width, _ = weight.shape
    frames, rows, columns, _ = x.shape
    outputs, inputs = blocks * width, chunks * DEPTH
    assert residual is None or residual.shape[-1] == outputs, (residual.shape, outputs)
    bias, wanted = bias.astype(x.dtype), bias.size
    if outputs > wanted:
        bias = mx.pad(bias, (0, outputs - wanted))
    if inputs > x.shape[-1]:
        x = mx.pad(x, [*[(0, 0)] * 3, (0, inputs - x.shape[-1])])
    more = {} if residual is None else {"residual": residual}
    [out] = launch(
        kernel(KINDS[x.dtype], width, residual is not None),
        inputs={"x": x, "weight": weight, "bias": bias, **more},
        outputs={"out": ((frames - 2, rows, columns, outputs), x.dtype)},
        scalars={
            "frames": frames - 2, "height": rows, "width": columns,
            "inputs": inputs, "outputs": outputs,
        },
        template={
            "T": x.dtype, "DEPTH": DEPTH, "ROWS": ROWS, "COLUMNS": COLUMNS,
            "PIXEL_STAGES": PIXEL_STAGES, "WEIGHT_STAGES": WEIGHT_STAGES,
        },
        blocks=cuda_driver.multiprocessors(),
        threads=THREADS,
    )  # fmt: skip
    return out[..., :wanted]


@cache
def kernel(kind: str, width: int, with_residual: bool) -> Kernel:
    """Return the kernel for numbers of this kind, which PTX calls bf16 or f16.

    `width` counts the outputs of a block.
    """
    sums = [f"%{number}" for number in range(width // 2)]
    places = f"{{{', '.join(sums)}}}, %{len(sums)}, %{len(sums) + 1}"
    operands = ", ".join(f'"+f"(sum[{number}])' for number in range(len(sums)))
    instructions = INSTRUCTIONS.replace("PLACES", places).replace("OPERANDS", operands)

    def filled(text: str) -> str:
        return text.replace("OUTPUTS", str(width)).replace("KIND", kind)

    return Kernel(
        "convolve",
        filled(source(with_residual)),
        functions=filled(instructions) + FUNCTIONS,
        shared=SHARED_BYTES,
        specific=True,
    )


def source(with_residual: bool) -> str:
    """Return the body of the kernel, for OUTPUTS outputs of a block."""
    load, add = (LOAD, ADD) if with_residual else ("", "")
    return KERNEL.replace("LOAD", load).replace("ADD", add)
