"""What a stage needs, in memory and in arithmetic, and how it is run within a limit of memory.

Numbers that follow from dimensions and sizes of files; the device is asked what it recommends, and
whether its memory is the host's: then the host's arrays count too. Bytes and floating point
operations throughout; a multiplication and an addition are two. Interpreter, libraries and what an
allocator keeps of freed memory do not count.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import TypeVar

from wanpipe.errors import UsageError
from wanpipe.models import tuning, vae_cost
from wanpipe.models.config import DiTConfig, T5Config, VAEConfig
from wanpipe.models.geometry import OVERLAP, TILE, Triple
from wanpipe.models.tiling import host_bytes
from wanpipe.runtime.report import Report
from wanpipe.runtime.units import amount
from wanpipe.store.publish import WAITING

FULL = 4  # bytes of a float32
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
IMAGE_TOKENS = 257  # of CLIP
FILLING = 500_000  # positions of one frame with which the last layers of a VAE fill a GPU
STREAMED = "its blocks are read from the disk at every step"
APART = "its two passes go one after the other"

WAITING_SLICES = 4  # slices of frames, of four each, that may wait for the encoder of a video


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a way of running something takes: `peak` bytes of memory at most, and the `flops` of one
    unit of work, which is a step, a prompt or a film.

    `largest` are those of the largest array. `way` says in words what this way does to need less;
    empty for the plain one. `host` are the bytes of `peak` that are beside the network: arrays of
    the host, where memory is unified, else none.
    """

    peak: int
    flops: float
    largest: int
    way: str = ""
    host: int = 0

    @property
    def limit(self) -> int:
        """Where MLX is to wait for what is under way: the array that it makes then comes on top."""
        return self.peak - self.host - self.largest


@dataclass(frozen=True, kw_only=True)
class ExpertNeed(Need):
    """What a way of running a transformer takes: with its blocks `streamed` from the disk, its
    passes `apart`.
    """

    streamed: bool
    apart: bool


@dataclass(frozen=True, kw_only=True)
class FilmNeed(Need):
    """What a way of decoding takes: with its last layers on `at_once` frames together, of whole
    frames or of tiles.
    """

    at_once: int
    tiled: bool


Kind = TypeVar("Kind", bound=Need)


@dataclass(frozen=True, kw_only=True)
class Expert:
    """A transformer as it is to be run: `bytes` of its file, bytes of a number in its products as
    `stored` and as `computed`, the tokens of `texts`, which are the prompt and with guidance the
    negative prompt, and the latent's size (F, H, W). `arrays` are those of a step's entry at most:
    with UniPC latent, x0 and two of the solver; the step cache adds two.
    """

    config: DiTConfig
    bytes: int
    stored: int
    computed: int
    texts: tuple[int, ...]
    latent: Triple
    arrays: int = 4

    @property
    def passes(self) -> int:
        """Passes through all blocks in a step: one for every text."""
        return len(self.texts)

    @property
    def tokens(self) -> int:
        """Tokens that the latent is cut into."""
        return prod(self.latent) // prod(self.config.patch)

    @property
    def stem(self) -> int:
        """Weights beside the blocks, as computed; what the official code keeps in float32 stays."""
        c = self.config
        patch = prod(c.patch)
        full = c.dim * (patch * (c.in_dim + c.out_dim) + c.freq_dim + 7 * c.dim)
        image = 0 if c.clip_dim is None else c.clip_dim * (c.clip_dim + c.dim)
        return full * FULL + (c.dim * (c.text_dim + c.dim) + image) * self.computed

    @property
    def blocks(self) -> int:
        """Weights of all blocks as computed."""
        return (self.bytes - self.stem) * max(1, self.computed // self.stored)

    @property
    def kept(self) -> int:
        """Keys and values of the prompts' tokens in all blocks, which all steps share."""
        image = IMAGE_TOKENS if self.config.clip_dim else 0
        # and of one more token, which stands for all that would fill the text up
        rows = sum(min(tokens + 1, self.config.text_len) + image for tokens in self.texts)
        return self.config.layers * 2 * rows * self.config.dim * self.computed

    @property
    def stream(self) -> int:
        """The residual stream of one pass."""
        return self.tokens * self.config.dim * FULL

    @property
    def hidden(self) -> int:
        """The widest array of a block: one part of the layer between those that feed forward."""
        return tuning.ffn_chunk(self.tokens) * self.config.ffn_dim * self.computed

    @property
    def row(self) -> int:
        """One number of every channel of every token, as products take them."""
        return self.tokens * self.config.dim * self.computed

    @property
    def work(self) -> int:
        """What is in memory beside the streams while one stretch of a block is at work and others
        are prepared, hidden layers included. The counts were fitted to what an H100 took; other
        devices free no later.
        """
        return (6 + 3 * tuning.eval_depth(self.tokens, self.config.dim)) * self.row

    @property
    def tables(self) -> int:
        """Cosines and sines of the rotation."""
        return self.tokens * self.config.dim // self.config.heads // 2 * 3 * FULL

    @property
    def beside(self) -> int:
        """What is in memory beside the network: the start noise, the state before the step, steps
        that wait to be published and the one that is written, and an image's channels.
        """
        c, size = self.config, prod(self.latent)
        steps = 1 + self.arrays + (1 + WAITING) * self.arrays
        writing = FULL  # a chunk's compressed bytes, of the array at work
        return size * (c.out_dim * (steps * FULL + writing) + (c.in_dim - c.out_dim) * FULL)

    @property
    def flops(self) -> float:
        """Arithmetic of one step: linear layers and attention of all blocks, of all passes."""
        c, tokens = self.config, self.tokens
        linear = 2.0 * tokens * c.dim * (6 * c.dim + 2 * c.ffn_dim)
        attention = 4.0 * tokens * c.dim * (tokens + c.text_len)
        return self.passes * c.layers * (linear + attention)

    def ways(self) -> list[ExpertNeed]:
        """All that it can be run in, the fastest first: all blocks in memory, or three of them, the
        one at work, the next, and one that is read from the disk; two passes going through a block
        together, or one after the other, each through all blocks.
        """
        both = (False, True)
        orders = both if self.passes == 2 else (False,)
        return [self._way(streamed, apart) for streamed in both for apart in orders]

    def _way(self, streamed: bool, apart: bool) -> ExpertNeed:
        alone = apart or self.passes == 1
        # a stream that is in memory while the other is at work waits with what its block gave
        streams = self.stream + self.work - self.row if alone else 2 * self.stream + self.work
        blocks = self.kept + self.blocks
        if streamed:  # of the text only what the block at work needs
            blocks = -(-(self.kept + 3 * self.blocks) // self.config.layers)
        words = [word for word, chosen in ((STREAMED, streamed), (APART, apart)) if chosen]
        need = ExpertNeed(
            peak=self.stem + self.tables + streams + blocks,
            flops=self.flops,
            largest=max(self.stream, self.hidden),
            way=" and ".join(words),
            streamed=streamed,
            apart=apart,
        )
        return _with_host(need, self.beside)


def text(config: T5Config, blocks: int, lengths: Sequence[int]) -> Need:
    """What T5 needs for prompts of so many tokens each; `blocks` are the bytes of its weights as
    computed, of which three blocks are in memory. Scores are float32.
    """
    longest, rows = max(lengths), sum(lengths) * config.dim * FULL
    scores = config.heads * longest**2 * FULL
    gated = 3 * longest * config.ffn_dim * FULL
    weights = config.layers * config.dim * (4 * config.attention_dim + 3 * config.ffn_dim)
    peak = -(-3 * blocks // config.layers) + 2 * rows + max(scores, gated)
    need = Need(peak=peak, flops=2.0 * weights * sum(lengths), largest=max(scores, gated // 3))
    return _with_host(need, rows)


def film(config: VAEConfig, latent: Triple, computed: int, stacks: bool) -> list[FilmNeed]:
    """What decoding a latent (F, H, W) takes: with the last layers on two frames at once where one
    is small, on one, and in overlapping tiles. `stacks` is that of `vae_cost.cost`.
    """
    sides = [side // config.stride[1] for side in (TILE, TILE - OVERLAP)]
    tile = (latent[0], min(sides[0], latent[1]), min(sides[0], latent[2]))
    rows, columns = (1 + -(-max(side - sides[0], 0) // sides[1]) for side in latent[1:])
    latents = 3 * config.z_dim * prod(latent) * FULL  # as read, on the device, and scaled
    frame = 3 * prod(latent[1:]) * config.stride[1] ** 2
    # fours of frames: one computed, one that waits, one that is written, and those for the video
    written = 4 * frame * (3 + WAITING_SLICES)
    blended = 4 * 3 * prod(tile[1:]) * config.stride[1] ** 2 * 2 * FULL  # as decoded, and weighed
    summed = host_bytes(latent, config.stride[1]) + blended
    whole_film = (4 * (latent[0] - 1) + 1) * frame

    def half(size: Triple, at_once: int, way: str, tiles: int = 0) -> FilmNeed:
        plan = vae_cost.cost(config, "decoder", size, computed, at_once, stacks)
        need = FilmNeed(**asdict(_vae(plan, way, tiles or 1)), at_once=at_once, tiled=tiles > 0)
        return _with_host(need, latents + (max(summed, whole_film + written) if tiles else written))

    one = half(latent, 1, "its last layers take frame by frame")
    if prod(latent[1:]) * prod(config.stride[1:]) // config.patch_size**2 > FILLING:
        whole = [replace(one, way="")]
    else:
        whole = [half(latent, 2, ""), one]
    return [*whole, half(tile, 2, "frames are decoded in overlapping tiles", rows * columns)]


def image(config: VAEConfig, latent: Triple, computed: int, stacks: bool, clip: int) -> Need:
    """What encoding a clip to latents (F, H, W) takes, and CLIP of so many bytes after it."""
    need = _vae(vae_cost.cost(config, "encoder", latent, computed, stack_frames=stacks), "", 1)
    pixels = 3 * prod(latent[1:]) * config.stride[1] ** 2 * (1 + FULL)  # bytes, and float32
    # the condition: mask and latent, in parts, joined, and as written
    joined = 3 * (4 + config.z_dim) * prod(latent) * FULL
    return _with_host(replace(need, peak=max(need.peak, clip)), pixels + joined)


def _vae(plan: vae_cost.Cost, way: str, times: int) -> Need:
    """What one half of a VAE takes; a fifth of the work on top is what an H100 took."""
    peak = plan.weights + plan.cache + 6 * plan.activations // 5
    return Need(peak=peak, flops=plan.flops * times, largest=plan.largest, way=way)


def _with_host(need: Kind, host: int) -> Kind:
    """Count bytes that are beside a network too, where the host's memory is the device's."""
    from wanpipe.backend.device import is_unified

    return replace(need, peak=need.peak + host, host=host) if is_unified() else need


def choose(stage: str, ways: Sequence[Kind], memory: int | None, report: Report) -> Kind:
    """Return the first of `ways` that keeps within `memory` bytes, or without within what the
    device recommends, and say so where it is not the plain one.

    Where none does: raises UsageError for a `memory` that was asked for; else says so and returns
    the least.
    """
    from wanpipe.backend.device import recommended_memory

    allowed = recommended_memory() if memory is None else memory
    fitting = [need for need in ways if need.peak <= allowed]
    need = fitting[0] if fitting else min(ways, key=lambda need: need.peak)
    if not fitting:
        least = f"{stage} needs {amount(need.peak, 'B')} at this size"
        if memory is not None:
            raise UsageError(
                f"{least}, more than --memory {amount(allowed, 'B')}; make width, height or "
                "num-frames smaller"
            )
        line = f"{least}, more than the {amount(allowed, 'B')} that this device recommends"
        report.event("memory", component=stage, text=line)
    elif need.way:
        more = f"{amount(ways[0].peak, 'B')} would be more than {amount(allowed, 'B')}"
        report.event("memory", component=stage, text=f"{stage}: {need.way}, since {more}")
    return need
