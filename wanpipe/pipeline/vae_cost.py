"""Analytic FLOP and memory model of the VAE encoder and decoder, per chunk of frames, and of the
tiny decoder.

Needs only a config, and loads no array library. Models a GPU, where each kernel writes
one array and the arrays of an evaluation are freed after it. The workspace of convolutions is not
included. Sizes count values unless they are in bytes; a multiply-add is two operations.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Literal

from wanpipe.models.config import (
    DIM_MULT,
    TEMPORAL_DOWNSAMPLE,
    TINY_BLOCKS,
    TINY_GROWTH,
    TinyVAEConfig,
    VAEConfig,
)
from wanpipe.models.tuning import stacks_frames

FLOAT32 = 4  # bytes
Part = Literal["decoder", "encoder"]
Shape = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Op:
    """A convolution, matrix product or attention of one chunk, and the memory of its evaluation.

    The input has `shape` (T, H, W, C), without cached frames; the output has `outputs` channels at
    `positions`. `parameters` are weights, `cached` the values that it caches for the next chunk,
    `live` the values alive during its evaluation, and `float32` the values among them that are
    float32 whatever the dtype. The op runs `repeats` times per chunk.
    """

    kind: str
    shape: Shape
    outputs: int
    kernel: tuple[int, ...]
    positions: int
    live: int
    largest: int
    cached: int = 0
    parameters: int = 0
    float32: int = 0
    repeats: int = 1

    @property
    def flops(self) -> float:
        """Operations of one run."""
        if self.kind == "attention":
            return 4.0 * self.shape[0] * prod(self.shape[1:3]) ** 2 * self.shape[3]
        return 2.0 * self.positions * self.outputs * prod(self.kernel) * self.shape[3]


@dataclass
class ChunkTrace:
    """Record the ops of one chunk, and track its shape (T, H, W, C) from layer to layer.

    `held` values stay alive in addition to those of each op. `first` marks the first chunk, which
    has one frame and no cached frames. With `stack_frames`, narrow convolutions stack three frames
    as channels, as on CUDA.
    """

    T: int
    H: int
    W: int
    C: int
    first: bool
    stack_frames: bool
    held: int = 0
    repeats: int = 1
    ops: list[Op] = field(default_factory=list)

    @property
    def frame(self) -> int:
        """Positions of one frame."""
        return self.H * self.W

    @property
    def size(self) -> int:
        """Values of the chunk."""
        return self.T * self.frame * self.C

    def record(
        self, kind: str, outputs: int, kernel: tuple[int, ...], live: int, **more: int
    ) -> None:
        """Record an op with `outputs` channels, by default at as many positions as its input."""
        positions = more.pop("positions", self.T * self.frame)
        parameters = more.pop("parameters", self.C * outputs * prod(kernel) + outputs)
        largest = max(self.size, positions * outputs, more.pop("largest", 0))
        op = Op(
            kind=kind, shape=(self.T, self.H, self.W, self.C), outputs=outputs, kernel=kernel,
            positions=positions, largest=largest, live=live + self.held, parameters=parameters,
            repeats=self.repeats, **more,
        )  # fmt: skip
        self.ops.append(op)

    def causal_conv(self, outputs: int, held: int, float32: int = 0) -> None:
        """Record a causal convolution, with or without norm and SiLU, while `held` is alive too.

        Two evaluations are in memory: the convolution with its sum, and the norm that concatenates
        frames before or after it.
        """
        cached, produced = 2 * self.frame * self.C, self.T * self.frame * outputs
        joined, next_joined = self.conv_input(self.C, outputs), self.conv_input(outputs, outputs)
        live = joined + 2 * produced + max(2 * self.size, next_joined) + held
        self.record(
            "frame" if self.first else "causal", outputs, (3, 3) if self.first else (3, 3, 3), live,
            cached=cached, parameters=27 * self.C * outputs + outputs, float32=float32,
            largest=joined,
        )  # fmt: skip
        self.C = outputs

    def conv_input(self, inputs: int, outputs: int) -> int:
        """Return the values that a causal convolution reads, cached frames included."""
        stacked = self.stack_frames and not self.first and stacks_frames(inputs, outputs)
        return (3 * self.T if stacked else self.T + 2) * self.frame * inputs

    def residual_block(self, outputs: int) -> None:
        """Record a residual block."""
        x, inputs = self.size, self.C
        self.causal_conv(outputs, 0)
        shortcut = self.T * self.frame * outputs if inputs != outputs else 0
        self.causal_conv(outputs, x + shortcut)
        if shortcut:
            self.C = inputs
            self.record("linear", outputs, (1,), 0)
            self.C = outputs

    def middle(self) -> None:
        """Record the bottleneck."""
        self.residual_block(self.C)
        scores = self.T * self.frame**2
        self.record("linear", 3 * self.C, (1,), 0)
        self.record("attention", self.C, (), 6 * self.size + 2 * scores, parameters=0)
        self.record("linear", self.C, (1,), 0)
        self.residual_block(self.C)

    def upsample(self, outputs: int, temporal: bool) -> None:
        """Record layers that double rows, columns and, if `temporal`, frames."""
        x, cached = self.size, 2 * self.frame * self.C if temporal else 0
        if temporal and not self.first:
            joined = cached + x
            self.record("time", 2 * self.C, (3, 1, 1), joined + 5 * x, cached=cached)
            self.T *= 2
        elif temporal:
            self.record("time", 2 * self.C, (3, 1, 1), 0, cached=cached, positions=0)
        earlier = 2 * self.size + cached if temporal and not self.first else 0
        positions = self.T * (self.H + 1) * (self.W + 1)
        # CUDA's kernel adds the bias to a copy
        produced = 4 * outputs * (positions + (1 + self.stack_frames) * self.T * self.frame)
        kernels = (9 + 16) * self.C * outputs + outputs  # the 3x3 kernel, and four of 2x2 from it
        live = x + earlier + produced
        self.record("polyphase", 4 * outputs, (2, 2), live, positions=positions, parameters=kernels)
        self.H, self.W, self.C = 2 * self.H, 2 * self.W, outputs

    def downsample(self, temporal: bool) -> None:
        """Record layers that halve rows, columns and, if `temporal`, frames."""
        positions = self.T * self.frame // 4
        live = self.size + positions * self.C
        self.record("down", self.C, (3, 3), live, positions=positions)
        self.H, self.W = self.H // 2, self.W // 2
        if temporal:
            cached, T = self.frame * self.C, 1 if self.first else self.T // 2
            live = 5 * self.size + cached + 2 * T * cached
            positions = 0 if self.first else T * self.frame
            self.record("time", self.C, (3, 1, 1), live, cached=cached, positions=positions)
            self.T = T


def chunk_ops(
    config: VAEConfig | TinyVAEConfig,
    part: Part,
    shape: tuple[int, int, int],
    first: bool = False,
    at_once: int = 2,
    stack_frames: bool = False,
) -> list[Op]:
    """List the ops of one chunk for a latent (F, H, W): the `first` chunk, or any later one.

    `at_once` is that of `Decoder.frames`; the encoder and the tiny decoder ignore it.
    """
    if isinstance(config, TinyVAEConfig):
        return _tiny(config, shape[1], shape[2], (first, stack_frames)).ops
    trace = _decoder if part == "decoder" else _encoder
    return trace(config, shape[1], shape[2], (first, stack_frames), at_once).ops


def _decoder(
    config: VAEConfig, H: int, W: int, flags: tuple[bool, bool], at_once: int
) -> ChunkTrace:
    base, patch = config.decoder_dim, config.patch_size
    trace = ChunkTrace(1, H, W, config.z_dim, *flags)
    trace.record("linear", config.z_dim, (1,), 0)
    trace.causal_conv(DIM_MULT[-1] * base, 0)
    trace.middle()
    for level in reversed(range(len(DIM_MULT))):
        grow, temporal = level > 0, level > 0 and TEMPORAL_DOWNSAMPLE[level - 1]
        if at_once < trace.T and not any(TEMPORAL_DOWNSAMPLE[:level]):
            frames = 2 * trace.T * H * W * 3 * prod(config.stride[1:])  # float32: counted twice
            trace.held, trace.repeats = trace.size + frames, trace.T // at_once
            trace.T = at_once
        outputs, entered = base * DIM_MULT[level], trace.size
        held = trace.held
        if config.version == "2.2" and grow:
            trace.held += entered
        for _ in range(3):
            trace.residual_block(outputs)
        if grow:
            trace.upsample(outputs if config.version == "2.2" else outputs // 2, temporal)
        trace.held = held
    pixels = trace.T * trace.frame * 3 * patch**2
    trace.causal_conv(3 * patch**2, 0, float32=4 * pixels)
    return trace


def _encoder(
    config: VAEConfig, H: int, W: int, flags: tuple[bool, bool], at_once: int
) -> ChunkTrace:
    base, patch = config.encoder_dim, config.patch_size
    sides = (H * config.stride[1] // patch, W * config.stride[2] // patch)
    trace = ChunkTrace(1 if flags[0] else 4, *sides, 3 * patch**2, *flags)
    trace.causal_conv(base, 0, float32=3 * trace.size)
    for level, factor in enumerate(DIM_MULT):
        shrink = level < len(TEMPORAL_DOWNSAMPLE)
        temporal = (*TEMPORAL_DOWNSAMPLE, False)[level]
        if config.version == "2.2":
            area, T = (4, -(-trace.T // 2) if temporal else trace.T) if shrink else (1, trace.T)
            trace.held = T * trace.frame // area * base * factor
        for _ in range(2):
            trace.residual_block(base * factor)
        if shrink:
            trace.downsample(temporal)
        trace.held = 0
    trace.middle()
    trace.causal_conv(2 * config.z_dim, 0)
    trace.record("linear", 2 * config.z_dim, (1,), 0)
    return trace


def _tiny(config: TinyVAEConfig, H: int, W: int, flags: tuple[bool, bool]) -> ChunkTrace:
    """Trace the tiny decoder. Two blocks, or two halves of its last frames, are in flight."""
    trace, widths = ChunkTrace(1, H, W, config.z_dim, *flags), config.widths
    trace.record("frame", widths[0], (3, 3), trace.size + 2 * trace.frame * widths[0])
    for level, frames in enumerate(TINY_GROWTH):
        trace.C, outputs = widths[level], widths[level + 1]
        for _ in range(TINY_BLOCKS):
            x, memory = trace.size, trace.frame * trace.C
            live = 2 * (8 * x + memory)
            trace.C *= 2  # a frame, and the one before it
            trace.record("frame", widths[level], (3, 3), live, cached=memory, largest=2 * x)
            trace.C = widths[level]
            for _ in range(2):
                trace.record("frame", trace.C, (3, 3), live)
        if level == len(TINY_GROWTH) - 1:  # one frame after another
            trace.repeats, trace.held = trace.T, 2 * trace.size
            trace.T = 1
        channels, positions = 4 * frames * outputs, trace.T * (trace.H + 1) * (trace.W + 1)
        weights = trace.C * (frames * trace.C + 9 * outputs + 4 * channels)  # and made of them
        live = 2 * (trace.size + 3 * positions * channels)
        trace.record("polyphase", channels, (2, 2), live, positions=positions, parameters=weights)
        trace.T, trace.H, trace.W = trace.T * frames, 2 * trace.H, 2 * trace.W
    trace.C, colors = widths[-1], 3 * config.patch_size**2
    pixels = trace.T * trace.frame * colors
    trace.record("frame", colors, (3, 3), 4 * trace.size, float32=2 * trace.repeats * 3 * pixels)
    return trace


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Bytes of one part of a VAE, and the operations for a whole video.

    `cache` are the frames cached from chunk to chunk, `activations` the arrays alive in the largest
    evaluation, and `largest` the largest of them.
    """

    weights: int
    cache: int
    activations: int
    largest: int
    flops: float

    @property
    def peak(self) -> int:
        """Peak memory in bytes."""
        return self.weights + self.cache + self.activations


@lru_cache(64)
def cost(
    config: VAEConfig | TinyVAEConfig,
    part: Part,
    shape: tuple[int, int, int],
    itemsize: int,
    at_once: int = 2,
    stack_frames: bool = False,
) -> Cost:
    """Return the cost of a latent (F, H, W), of a whole video or a tile, at `itemsize` bytes.

    `at_once` is that of `Decoder.frames`.
    """
    first = chunk_ops(config, part, shape, True)
    later = chunk_ops(config, part, shape, False, at_once, stack_frames)
    chunks = [first, *([later] if shape[0] > 1 else [])]
    ops = [op for chunk in chunks for op in chunk]
    return Cost(
        weights=sum(op.parameters for op in first) * itemsize,
        cache=sum(op.cached for op in first) * itemsize,
        activations=max(op.live * itemsize + op.float32 * FLOAT32 for op in ops),
        largest=max(op.largest for op in ops) * itemsize,
        flops=_flops(first) + (shape[0] - 1) * _flops(later),
    )


def _flops(chunk: list[Op]) -> float:
    return sum(op.flops * op.repeats for op in chunk)
