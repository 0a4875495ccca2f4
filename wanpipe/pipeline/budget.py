"""Memory plans: the ways to run a network, the memory of each, and the choice of one that fits.

Plans are computed from dimensions and file sizes. Units are bytes and floating point operations; a
multiplication and an addition are two. On unified memory, the host's arrays count too. The
interpreter, libraries and an allocator's freed memory do not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TypeVar

from msgspec import UNSET

from wanpipe.backend.ways import ALONE, Way
from wanpipe.errors import UsageError
from wanpipe.models import tuning
from wanpipe.models.config import DiTConfig, T5Config, TinyVAEConfig, VAEConfig, context_channels
from wanpipe.models.geometry import OVERLAP, TILE, Triple
from wanpipe.models.vae.tiling import host_bytes
from wanpipe.pipeline import vae_cost
from wanpipe.runtime.report import Report
from wanpipe.runtime.units import format_si
from wanpipe.store.publish import QUEUE_LIMIT

FULL = 4  # bytes of a float32
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
FILLING = 500_000  # positions of one frame from which the last layers of a VAE fill a GPU
STREAMED = "its blocks are read from disk at every step"
SEQUENTIAL = "its two guidance passes run one after the other"

WAITING_SLICES = 4  # slices of four frames that may wait for the video encoder


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """A way to run a network: at most `peak` bytes, and `flops` for each step, prompt or video.

    `largest` is the size of the largest array. `strategy` says how the plan saves memory; it is
    empty for the fastest plan. `host` is the part of `peak` that is the host's, on unified memory.
    `way` says how several devices divide the work; `peak` is that of each, `flops` is of all.
    """

    peak: int
    flops: float
    largest: int
    strategy: str = ""
    host: int = 0
    way: Way = ALONE

    @property
    def limit(self) -> int:
        """The memory at which MLX must wait for pending work; its next array comes on top."""
        return self.peak - self.host - self.largest


@dataclass(frozen=True, kw_only=True)
class ExpertPlan(MemoryPlan):
    """A way to run a transformer: with blocks `streamed` from disk, with `sequential_cfg`, both, or
    neither. Sequential CFG runs the conditional and the unconditional pass one after the other.
    """

    streamed: bool
    sequential_cfg: bool


@dataclass(frozen=True, kw_only=True)
class DecodePlan(MemoryPlan):
    """A way to decode: the last layers take `at_once` frames together, whole or in tiles."""

    at_once: int
    tiled: bool


Kind = TypeVar("Kind", bound=MemoryPlan)


@dataclass(frozen=True, kw_only=True)
class Expert:
    """The dimensions and sizes of a transformer.

    `bytes` is the size of its file. `stored` and `computed` are the bytes of a number in its matrix
    products. `texts` has the tokens of the prompt and, with guidance, of the negative prompt. `nag`
    has those of a negative prompt that acts in the attention to the prompt; None without one.
    `latent` is (F, H, W), with the frames of VACE's references. `arrays` is the most that a step's
    entry has: with UniPC latent, x0 and two of the solver; the step cache adds two. `shares` is how
    many devices share the tokens; plans are those of one of them.
    """

    config: DiTConfig
    bytes: int
    stored: int
    computed: int
    texts: tuple[int, ...]
    latent: Triple
    arrays: int = 4
    shares: int = 1
    nag: int | None = None

    @property
    def passes(self) -> int:
        """Passes through all blocks in a step: one for each text."""
        return len(self.texts)

    @property
    def tokens(self) -> int:
        """Tokens of the latent, L."""
        return prod(self.latent) // prod(self.config.patch)

    @property
    def own(self) -> int:
        """Tokens that one device computes, l."""
        return -(-self.tokens // self.shares)

    @property
    def stem(self) -> int:
        """Weights outside the blocks, as computed. Those that are officially float32 stay so."""
        c = self.config
        patch = prod(c.patch)
        channels = c.in_dim + c.out_dim + self.context_channels
        full = c.dim * (patch * channels + c.freq_dim + 7 * c.dim)
        image = 0 if c.clip_dim is None else c.clip_dim * (c.clip_dim + c.dim)
        if c.clip_dim is not None and c.clip_positions is not UNSET:
            full += c.clip_positions * c.clip_dim
        return full * FULL + (c.dim * (c.text_dim + c.dim) + image) * self.computed

    @property
    def context_channels(self) -> int:
        """Channels of VACE's context; 0 without VACE."""
        return 0 if self.config.vace_in_dim is UNSET else self.config.vace_in_dim

    @property
    def block_count(self) -> int:
        """Blocks of the video and, with VACE, of the context."""
        return self.config.layers + self.config.vace_count

    @property
    def projections(self) -> int:
        """Matrices of VACE blocks that other blocks lack: each has one, the first has two."""
        return self.config.vace_count + 1 if self.config.vace_count else 0

    @property
    def blocks(self) -> int:
        """Weights of all blocks, as computed."""
        return (self.bytes - self.stem) * max(1, self.computed // self.stored)

    @property
    def kv_cache(self) -> int:
        """Keys and values of the text tokens in all blocks, shared by all steps."""
        image = self.config.clip_tokens
        # and one more token, which stands for all padding
        rows = sum(min(tokens + 1, self.config.text_len) + image for tokens in self.texts)
        rows += 0 if self.nag is None else min(self.nag + 1, self.config.text_len)
        return self.block_count * 2 * rows * self.config.dim * self.computed

    @property
    def stream(self) -> int:
        """The residual stream of one pass."""
        return self.own * self.config.dim * FULL

    @property
    def hidden(self) -> int:
        """The widest array of a block: one chunk of the feed-forward layer's hidden values."""
        return tuning.ffn_chunk(self.own) * self.config.ffn_dim * self.computed

    @property
    def row(self) -> int:
        """One array (l, D), as matrix products take it."""
        return self.own * self.config.dim * self.computed

    @property
    def gathered(self) -> int:
        """Keys and values of all tokens, if devices share them: as gathered, and as padded."""
        whole = self.tokens * self.config.dim * self.computed
        return 4 * whole if self.shares > 1 else 0

    @property
    def work(self) -> int:
        """Activations of the running part of a block, and of the parts queued behind it.

        The counts were fitted to an H100. Other devices free memory no later.
        """
        waiting = tuning.eval_depth(self.own, self.config.dim)
        return (6 + 3 * waiting) * self.row + self.gathered

    @property
    def tables(self) -> int:
        """Cosines and sines of RoPE; where devices share tokens, of all and of a device's own."""
        rows = self.tokens + (self.own if self.shares > 1 else 0)
        return rows * self.config.dim // self.config.heads // 2 * 3 * FULL

    @property
    def host_arrays(self) -> int:
        """The host's arrays: start noise, the states before this step and one of another seed,
        steps that wait for the disk or are written, and the channels of an image or of a context.
        """
        c, size = self.config, prod(self.latent)
        steps = 1 + (3 + QUEUE_LIMIT) * self.arrays
        writing = FULL  # a chunk's compressed bytes, of the array at work
        given = c.in_dim - c.out_dim + self.context_channels
        return size * (c.out_dim * (steps * FULL + writing) + given * FULL)

    @property
    def flops(self) -> float:
        """Arithmetic of one step: linear layers and attention of all blocks and passes."""
        c, tokens = self.config, self.tokens
        linear = 2.0 * tokens * c.dim * (6 * c.dim + 2 * c.ffn_dim)
        attention = 4.0 * tokens * c.dim * (tokens + c.text_len)
        projections = 2.0 * tokens * c.dim**2 * self.projections
        passes = self.passes * (self.block_count * (linear + attention) + projections)
        text = 4.0 * tokens * c.dim * c.text_len
        return passes + (0 if self.nag is None else self.block_count * text)

    def plans(self) -> list[ExpertPlan]:
        """Return all plans, the fastest first.

        All blocks are in memory, or three of them: one that runs, the next, and one being read.
        Both passes go through a block together, or one pass runs after the other.
        """
        both = (False, True)
        orders = both if self.passes == 2 else (False,)
        return [self._plan(streamed, sequential) for streamed in both for sequential in orders]

    def _plan(self, streamed: bool, sequential: bool) -> ExpertPlan:
        alone = sequential or self.passes == 1
        # the stream that waits for the other one keeps the output of its block
        streams = self.stream + self.work - self.row if alone else 2 * self.stream + self.work
        if self.context_channels:
            streams += self._context_streams(1 if alone else 2)
        blocks = self.kv_cache + self.blocks
        if streamed:  # of the text only the keys and values of the block that runs
            blocks = -(-self.kv_cache // self.block_count) + self._three_blocks
            if self.context_channels:  # on an H100 a hint stays while the next block is read
                blocks += self.row
        chosen = ((STREAMED, streamed), (SEQUENTIAL, sequential))
        words = [word for word, wanted in chosen if wanted]
        plan = ExpertPlan(
            peak=self.stem + self.tables + streams + blocks,
            flops=self.flops,
            largest=max(self.stream, self.hidden),
            strategy=" and ".join(words),
            streamed=streamed,
            sequential_cfg=sequential,
        )
        return _with_host(plan, self.host_arrays)

    def _context_streams(self, passes: int) -> int:
        """What VACE adds while a block runs: the stream of the context of each pass, the context as
        it was given, and the output of the main block, which waits for the hint.
        """
        given = prod(self.latent) * self.context_channels * FULL
        return passes * self.stream + given + self.row

    @property
    def _three_blocks(self) -> int:
        """The largest three blocks in a row. With VACE, two of them may have three projections."""
        c = self.config
        matrices = 8 * c.dim**2 + 2 * c.dim * c.ffn_dim  # of a block
        three = 3 * matrices + (3 * c.dim**2 if self.projections else 0)
        every = self.block_count * matrices + self.projections * c.dim**2
        return -(-self.blocks * three // every)


def text_plan(config: T5Config, blocks: int, lengths: Sequence[int]) -> MemoryPlan:
    """Return the plan of T5 for texts of these lengths in tokens.

    `blocks` is the size of all its blocks as computed; three are in memory. Scores are float32.
    """
    longest, rows = max(lengths), sum(lengths) * config.dim * FULL
    scores = config.heads * longest**2 * FULL
    gated = 3 * longest * config.ffn_dim * FULL
    weights = config.layers * config.dim * (4 * config.attention_dim + 3 * config.ffn_dim)
    peak = -(-3 * blocks // config.layers) + 2 * rows + max(scores, gated)
    plan = MemoryPlan(
        peak=peak, flops=2.0 * weights * sum(lengths), largest=max(scores, gated // 3)
    )
    return _with_host(plan, rows)


def decode_plans(
    config: VAEConfig | TinyVAEConfig, latent: Triple, computed: int, stacks: bool
) -> list[DecodePlan]:
    """Return the plans of decoding a latent (F, H, W), the fastest first.

    The last layers take two small frames at once, or one, or overlapping tiles. `stacks` is
    explained at `vae_cost.cost`.
    """
    sides = [side // config.stride[1] for side in (TILE, TILE - OVERLAP)]
    tile = (latent[0], min(sides[0], latent[1]), min(sides[0], latent[2]))
    rows, columns = (1 + -(-max(side - sides[0], 0) // sides[1]) for side in latent[1:])
    latents = 3 * config.z_dim * prod(latent) * FULL  # as read, on the device, and scaled
    frame = 3 * prod(latent[1:]) * config.stride[1] ** 2
    # slices of four frames: one computed, one waiting, one being written, those of the video, and
    # two more that are compressed
    written = 4 * frame * (5 + WAITING_SLICES)
    blended = 4 * 3 * prod(tile[1:]) * config.stride[1] ** 2 * 2 * FULL  # as decoded, and weighted
    summed = host_bytes(latent, config.stride[1]) + blended
    whole_video = (4 * (latent[0] - 1) + 1) * frame

    def plan_of(size: Triple, at_once: int, strategy: str, tiles: int = 0) -> DecodePlan:
        cost = vae_cost.cost(config, "decoder", size, computed, at_once, stacks)
        vae = vars(_vae_plan(cost, strategy, tiles or 1))
        plan = DecodePlan(**vae, at_once=at_once, tiled=tiles > 0)
        return _with_host(
            plan, latents + (max(summed, whole_video + written) if tiles else written)
        )

    if isinstance(config, TinyVAEConfig):
        return [plan_of(latent, 2, "")]
    one = plan_of(latent, 1, "its last layers take one frame at a time")
    if prod(latent[1:]) * prod(config.stride[1:]) // config.patch_size**2 > FILLING:
        whole = [replace(one, strategy="")]
    else:
        whole = [plan_of(latent, 2, ""), one]
    return [*whole, plan_of(tile, 2, "frames are decoded in overlapping tiles", rows * columns)]


def image_plan(
    config: VAEConfig, latent: Triple, computed: int, stacks: bool, clip: int, images: int = 1
) -> MemoryPlan:
    """Return the plan of encoding a video to (F, H, W) latents, then one or two images with CLIP.

    `clip` is the size of CLIP in bytes, 0 without it.
    """
    frame = 3 * prod(latent[1:]) * config.stride[1] ** 2
    pixels = images * frame * (1 + FULL)  # bytes, and float32
    return encode_plan(config, latent, computed, stacks, clip=clip, pixels=pixels)


def encode_plan(
    config: VAEConfig,
    latent: Triple,
    computed: int,
    stacks: bool,
    *,
    clip: int,
    pixels: int,
    times: int = 1,
) -> MemoryPlan:
    """Return the plan of encoding a video to (F, H, W) latents `times` times, then with CLIP.

    `clip` is the size of CLIP in bytes, 0 without it, and `pixels` that of the host's pixels.
    """
    cost = vae_cost.cost(config, "encoder", latent, computed, stack_frames=stacks)
    plan = _vae_plan(cost, "", times)
    # the condition or context: masks and latents, in parts, joined, and as written
    channels = 4 + config.z_dim if times == 1 else context_channels(config.z_dim)
    joined = 3 * channels * prod(latent) * FULL
    return _with_host(replace(plan, peak=max(plan.peak, clip)), pixels + joined)


def _vae_plan(cost: vae_cost.Cost, strategy: str, times: int) -> MemoryPlan:
    """Return the plan of an encoder or decoder. An H100 took a fifth more than the activations."""
    peak, flops = cost.weights + cost.cache + 6 * cost.activations // 5, cost.flops * times
    return MemoryPlan(peak=peak, flops=flops, largest=cost.largest, strategy=strategy)


def _with_host(plan: Kind, host: int) -> Kind:
    """Add the host's arrays to a plan if the device shares the host's memory."""
    from wanpipe.backend.device import is_unified

    return replace(plan, peak=plan.peak + host, host=host) if is_unified() else plan


def choose_plan(
    component: str,
    plans: Sequence[Kind],
    memory: int | None,
    report: Report,
    recommended: int | None = None,
) -> Kind:
    """Return the first plan that fits in `memory` bytes; report it unless it is the fastest.

    None means the working set that the device recommends, or `recommended` bytes. If no plan fits,
    raises UsageError for a given `memory`; otherwise reports that and returns the smallest plan.
    """
    from wanpipe.backend.device import recommended_memory

    if recommended is None:
        recommended = recommended_memory()
    allowed = recommended if memory is None else memory
    fitting = [plan for plan in plans if plan.peak <= allowed]
    plan = fitting[0] if fitting else min(plans, key=lambda plan: plan.peak)
    if not fitting:
        least = f"{component} needs {format_si(plan.peak, 'B')} at this size"
        if memory is not None:
            raise UsageError(
                f"{least}, more than --memory {format_si(allowed, 'B')}; make width, height or "
                "num-frames smaller"
            )
        line = f"{least}, more than the {format_si(allowed, 'B')} that this device recommends"
        report.event("memory", component=component, text=line)
    elif plan is not plans[0]:
        divided = "" if plan.way == plans[0].way else "its devices share the tokens"
        chosen = " and ".join(filter(None, (divided, plan.strategy)))
        fastest, limit = format_si(plans[0].peak, "B"), format_si(allowed, "B")
        because = f"because the fastest plan needs {fastest} (limit: {limit})"
        text = f"{component}: {chosen}, {because}"
        report.event("memory", component=component, text=text)
    return plan
