"""The layers of both VAEs as a chunk of frames meets them: their sizes, arithmetic and memory.

Follows from a VAEConfig alone and loads no array library. What a GPU takes, where each kernel makes
one array and what one evaluation makes is freed after it; a convolution's own workspace is not in.
Sizes are numbers of values; a multiplication and an addition are two operations.
"""

from dataclasses import dataclass, field
from math import prod
from typing import Literal

from wanpipe.models.config import VAEConfig

WIDTHS = (1, 2, 4, 4)  # channels of each level, in base widths
TEMPORAL = (False, True, True)  # whether the step to the next level halves the frames too
PATCH = {"2.1": 1, "2.2": 2}  # pixels per side that one position of the first layer holds
NARROW = 128  # channels below which cuDNN is twice as fast with three frames as channels of one
FULL = 4  # bytes of a float32
Half = Literal["decoder", "encoder"]
Shape = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One convolution or product of a chunk, or attention, and what is alive in its evaluation.

    Takes `shape` (T, H, W, C), frames before it not counted, and gives `places` positions of
    `outputs` channels. `parameters` are kept; `left` are the values of the frames it leaves; `full`
    are the float32 ones among those alive. Runs `times` times a chunk.
    """

    kind: str
    shape: Shape
    outputs: int
    kernel: tuple[int, ...]
    places: int
    alive: int
    largest: int
    left: int = 0
    parameters: int = 0
    full: int = 0
    times: int = 1

    @property
    def flops(self) -> float:
        """Arithmetic of one run."""
        if self.kind == "attention":
            return 4.0 * self.shape[0] * prod(self.shape[1:3]) ** 2 * self.shape[3]
        return 2.0 * self.places * self.outputs * prod(self.kernel) * self.shape[3]


@dataclass
class Walk:
    """Where a chunk is on its way: T frames of H x W positions with C channels, and its steps.

    `beside` are values that stay alive beside those of the steps; `first` is whether the chunk is
    the first, which has one frame and nothing before it; `stacks` is whether narrow convolutions
    take three frames as channels, as on CUDA.
    """

    T: int
    H: int
    W: int
    C: int
    first: bool
    stacks: bool
    beside: int = 0
    times: int = 1
    steps: list[Step] = field(default_factory=list)

    @property
    def frame(self) -> int:
        """Positions of a frame."""
        return self.H * self.W

    @property
    def size(self) -> int:
        """Values of the chunk."""
        return self.T * self.frame * self.C

    def add(
        self, kind: str, outputs: int, kernel: tuple[int, ...], alive: int, **more: int
    ) -> None:
        """Note a step that gives `outputs` channels, by default at as many positions."""
        places = more.pop("places", self.T * self.frame)
        parameters = more.pop("parameters", self.C * outputs * prod(kernel) + outputs)
        largest = max(self.size, places * outputs, more.pop("largest", 0))
        shape = (self.T, self.H, self.W, self.C)
        step = Step(
            kind=kind, shape=shape, outputs=outputs, kernel=kernel, places=places, largest=largest,
            alive=alive + self.beside, parameters=parameters, times=self.times, **more,
        )  # fmt: skip
        self.steps.append(step)

    def causal(self, outputs: int, beside: int, full: int = 0) -> None:
        """A causal convolution after norm and SiLU, or without, while `beside` is alive too.

        Two stretches of evaluation are in memory: the convolution with its sum, and before it or
        after it a norm that joins frames.
        """
        left, made = 2 * self.frame * self.C, self.T * self.frame * outputs
        joined, following = self.joined(self.C, outputs), self.joined(outputs, outputs)
        alive = joined + 2 * made + max(2 * self.size, following) + beside
        self.add(
            "frame" if self.first else "causal", outputs, (3, 3) if self.first else (3, 3, 3),
            alive, left=left, parameters=27 * self.C * outputs + outputs, full=full, largest=joined,
        )  # fmt: skip
        self.C = outputs

    def joined(self, inputs: int, outputs: int) -> int:
        """Values of the frames that a causal convolution reads, those before them included."""
        stacked = self.stacks and not self.first and inputs < NARROW <= 2 * outputs
        return (3 * self.T if stacked else self.T + 2) * self.frame * inputs

    def block(self, outputs: int) -> None:
        """A residual block."""
        x, inputs = self.size, self.C
        self.causal(outputs, 0)
        shortcut = self.T * self.frame * outputs if inputs != outputs else 0
        self.causal(outputs, x + shortcut)
        if shortcut:
            self.C = inputs
            self.add("linear", outputs, (1,), 0)
            self.C = outputs

    def middle(self) -> None:
        """The narrowest part."""
        self.block(self.C)
        scores = self.T * self.frame**2
        self.add("linear", 3 * self.C, (1,), 0)
        self.add("attention", self.C, (), 6 * self.size + 2 * scores, parameters=0)
        self.add("linear", self.C, (1,), 0)
        self.block(self.C)

    def up(self, outputs: int, temporal: bool) -> None:
        """Double rows, columns and, if `temporal`, frames."""
        x, left = self.size, 2 * self.frame * self.C if temporal else 0
        if temporal and not self.first:
            joined = left + x
            self.add("time", 2 * self.C, (3, 1, 1), joined + 5 * x, left=left)
            self.T *= 2
        elif temporal:
            self.add("time", 2 * self.C, (3, 1, 1), 0, left=left, places=0)
        earlier = 2 * self.size + left if temporal and not self.first else 0
        places = self.T * (self.H + 1) * (self.W + 1)
        # CUDA's kernel adds the bias to a copy
        made = 4 * outputs * (places + (1 + self.stacks) * self.T * self.frame)
        kernels = (9 + 16) * self.C * outputs + outputs  # the official one and its phases
        alive = x + earlier + made
        self.add("phases", 4 * outputs, (2, 2), alive, places=places, parameters=kernels)
        self.H, self.W, self.C = 2 * self.H, 2 * self.W, outputs

    def down(self, temporal: bool) -> None:
        """Halve rows, columns and, if `temporal`, frames."""
        places = self.T * self.frame // 4
        self.add("down", self.C, (3, 3), self.size + places * self.C, places=places)
        self.H, self.W = self.H // 2, self.W // 2
        if temporal:
            left, T = self.frame * self.C, 1 if self.first else self.T // 2
            alive = 5 * self.size + left + 2 * T * left
            made = 0 if self.first else T * self.frame
            self.add("time", self.C, (3, 1, 1), alive, left=left, places=made)
            self.T = T


def steps(
    config: VAEConfig,
    half: Half,
    shape: tuple[int, int, int],
    first: bool = False,
    at_once: int = 2,
    stacks: bool = False,
) -> list[Step]:
    """List the steps of one chunk for latents (F, H, W): the first, or any other.

    The decoder takes `at_once` frames together where there are four.
    """
    walk = _decoder if half == "decoder" else _encoder
    return walk(config, shape[1], shape[2], (first, stacks), at_once).steps


def _decoder(config: VAEConfig, H: int, W: int, kind: tuple[bool, bool], at_once: int) -> Walk:
    base, patch = config.decoder_dim, PATCH[config.version]
    way = Walk(1, H, W, config.z_dim, *kind)
    way.add("linear", config.z_dim, (1,), 0)
    way.causal(WIDTHS[-1] * base, 0)
    way.middle()
    for level in reversed(range(len(WIDTHS))):
        grow, temporal = level > 0, level > 0 and TEMPORAL[level - 1]
        if at_once < way.T and not any(TEMPORAL[:level]):
            frames = 2 * way.T * H * W * 3 * prod(config.stride[1:])  # float32, hence twice
            way.beside, way.times, way.T = way.size + frames, way.T // at_once, at_once
        outputs, entered = base * WIDTHS[level], way.size
        shared = way.beside
        if config.version == "2.2" and grow:
            way.beside += entered
        for _ in range(3):
            way.block(outputs)
        if grow:
            way.up(outputs if config.version == "2.2" else outputs // 2, temporal)
        way.beside = shared
    pixels = way.T * way.frame * 3 * patch**2
    way.causal(3 * patch**2, 0, full=4 * pixels)
    return way


def _encoder(config: VAEConfig, H: int, W: int, kind: tuple[bool, bool], at_once: int) -> Walk:
    base, patch = config.encoder_dim, PATCH[config.version]
    sides = (H * config.stride[1] // patch, W * config.stride[2] // patch)
    way = Walk(1 if kind[0] else 4, *sides, 3 * patch**2, *kind)
    way.causal(base, 0, full=3 * way.size)
    for level, width in enumerate(WIDTHS):
        shrink, temporal = level < len(TEMPORAL), (*TEMPORAL, False)[level]
        if config.version == "2.2":
            side, frames = (4, -(-way.T // 2) if temporal else way.T) if shrink else (1, way.T)
            way.beside = frames * way.frame // side * base * width
        for _ in range(2):
            way.block(base * width)
        if shrink:
            way.down(temporal)
        way.beside = 0
    way.middle()
    way.causal(2 * config.z_dim, 0)
    way.add("linear", 2 * config.z_dim, (1,), 0)
    return way


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one half of a VAE takes, in bytes: weights, the frames kept from chunk to chunk, what is
    alive in its largest evaluation, and the largest array of that. `flops` are those of the video.
    """

    weights: int
    past: int
    work: int
    largest: int
    flops: float

    @property
    def peak(self) -> int:
        """Memory at its highest."""
        return self.weights + self.past + self.work


def plan(
    config: VAEConfig,
    half: Half,
    shape: tuple[int, int, int],
    width: int,
    at_once: int = 2,
    stacks: bool = False,
) -> Plan:
    """Count what latents (F, H, W) of a whole video, or of a tile, take at `width` bytes a number.

    `at_once` is that of the decoder's `frames`.
    """
    begin = steps(config, half, shape, True)
    rest = steps(config, half, shape, False, at_once, stacks)
    chunks = [begin, *([rest] if shape[0] > 1 else [])]
    every = [step for chunk in chunks for step in chunk]
    return Plan(
        weights=sum(step.parameters for step in begin) * width,
        past=sum(step.left for step in begin) * width,
        work=max(step.alive * width + step.full * FULL for step in every),
        largest=max(step.largest for step in every) * width,
        flops=_flops(begin) + (shape[0] - 1) * _flops(rest),
    )


def _flops(chunk: list[Step]) -> float:
    return sum(step.flops * step.times for step in chunk)
