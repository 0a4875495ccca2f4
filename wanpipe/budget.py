"""What a stage needs, in memory and in arithmetic, and how it is run within a limit of memory.

Numbers that follow from dimensions and sizes of files; loads no array library. Bytes and floating
point operations throughout; a multiplication and an addition are two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from wanpipe.config import DiTConfig, T5Config
from wanpipe.errors import UsageError
from wanpipe.geometry import Triple
from wanpipe.report import Report
from wanpipe.words import amount

FULL = 4  # bytes of a float32
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
IMAGE_TOKENS = 257  # of CLIP


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a way of running something takes. MLX waits for what is under way before it goes beyond
    `limit`; the array it is making then, at most `largest`, comes on top.

    `way` says in words what this way does to need less; empty for the plain one. `flops` are those
    of one unit of work: a step, a prompt, a film.
    """

    limit: int
    largest: int
    flops: float
    way: str = ""

    @property
    def peak(self) -> int:
        """Memory at its highest."""
        return self.limit + self.largest


@dataclass(frozen=True, kw_only=True)
class Expert:
    """A transformer as it is to be run: `bytes` of its file, bytes of a number in its products as
    `stored` and as `computed`, `passes` with guidance 2, and the latent's size (F, H, W).
    """

    config: DiTConfig
    bytes: int
    stored: int
    computed: int
    passes: int
    latent: Triple

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
        """Keys and values of the prompts' tokens, which all steps share."""
        rows = self.config.text_len + (IMAGE_TOKENS if self.config.clip_dim else 0)
        return self.passes * self.config.layers * 2 * rows * self.config.dim * self.computed

    @property
    def stream(self) -> int:
        """The residual stream of one pass."""
        return self.tokens * self.config.dim * FULL

    @property
    def hidden(self) -> int:
        """The widest array of a block: between the two layers of the feed forward."""
        return self.tokens * self.config.ffn_dim * self.computed

    @property
    def work(self) -> int:
        """What is alive while a block works on one pass, beside its stream: queries, keys and
        values on their way through norm and rotation, or the hidden layer between its neighbours.
        """
        row = self.tokens * self.config.dim * self.computed
        return max(5 * row, 2 * row + self.hidden)

    @property
    def tables(self) -> int:
        """Cosines and sines of the rotation."""
        return self.tokens * self.config.dim // self.config.heads // 2 * 3 * FULL

    @property
    def flops(self) -> float:
        """Arithmetic of one step: linear layers and attention of all blocks, of all passes."""
        c, tokens = self.config, self.tokens
        linear = 2.0 * tokens * c.dim * (6 * c.dim + 2 * c.ffn_dim)
        attention = 4.0 * tokens * c.dim * (tokens + c.text_len)
        return self.passes * c.layers * (linear + attention)

    def ways(self) -> list[Need]:
        """With all blocks in memory; and with two, the others on the disk."""
        rest = self.stem + self.kept + self.tables + self.passes * self.stream + self.work
        largest, pair = max(self.stream, self.hidden), -(-2 * self.blocks // self.config.layers)
        streamed = "its blocks are read from the disk at every step"
        return [
            Need(limit=rest + self.blocks, largest=largest, flops=self.flops),
            Need(limit=rest + pair, largest=largest, flops=self.flops, way=streamed),
        ]


def text(config: T5Config, blocks: int, lengths: Sequence[int]) -> Need:
    """What T5 needs for prompts of so many tokens each; `blocks` are the bytes of its weights as
    computed, of which two blocks are in memory. Scores are float32.
    """
    longest, rows = max(lengths), sum(lengths) * config.dim * FULL
    scores = config.heads * longest**2 * FULL
    gated = 3 * longest * config.ffn_dim * FULL
    weights = config.layers * config.dim * (4 * config.attention_dim + 3 * config.ffn_dim)
    return Need(
        limit=-(-2 * blocks // config.layers) + 2 * rows + max(3 * scores, gated),
        largest=scores,
        flops=2.0 * weights * sum(lengths),
    )


def choose(stage: str, ways: Sequence[Need], allowed: int, asked: bool, report: Report) -> Need:
    """Return the first of `ways` that keeps within `allowed` bytes, and say so where it is not the
    plain one.

    Where none does: raises UsageError if the limit was `asked` for; else says so and returns the
    least.
    """
    fitting = [need for need in ways if need.peak <= allowed]
    need = fitting[0] if fitting else min(ways, key=lambda need: need.peak)
    if not fitting:
        least = f"{stage} needs {amount(need.peak, 'B')} at this size"
        if asked:
            raise UsageError(
                f"{least}, more than --memory {amount(allowed, 'B')}; make width, height or "
                "num-frames smaller"
            )
        report.remark(f"{least}, more than the {amount(allowed, 'B')} that this device recommends")
    elif need.way:
        more = f"{amount(ways[0].peak, 'B')} would be more than {amount(allowed, 'B')}"
        report.remark(f"{stage}: {need.way}, since {more}")
    return need
