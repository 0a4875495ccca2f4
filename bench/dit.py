"""Times one denoising step with guidance of the transformers at full size, with random weights.

    python -m bench.dit [NAME...]                       resident, bfloat16
    python -m bench.dit 14b --bits 4 --streamed         quantised, blocks read at every step
    python -m bench.dit 1.3b --torch --compile          beside diffusers on the same machine
    python -m bench.dit 1.3b --parts                    where a block's time goes

Names: those of DITS in bench/sizes.py; without one, `1.3b` and `14b`. A step takes both guidance
passes, text embedded before. `limit` follows from ceilings (bench/limits.py), `expected` from
wanpipe.pipeline.budget. Streamed blocks come from a file in the page cache.
"""

import gc
import tempfile
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import mlx.core as mx
from msgspec.structs import replace

from bench import limits, parts
from bench.peer import beside
from bench.sizes import DITS
from bench.weights import Random, Rows, measure, parser, read_plainly
from wanpipe.backend.device import compute_dtype, memory_limit, mlx_dtype
from wanpipe.checkpoints.rules import dit as rules
from wanpipe.models.config import DiTConfig, Quantization
from wanpipe.models.dit import Block, DiT
from wanpipe.models.geometry import Triple
from wanpipe.pipeline.budget import ITEMSIZE, Expert
from wanpipe.weights.stream import load_streamed

DEFAULT = ("1.3b", "14b")
GROUP = 64
SMALL: Triple = (3, 8, 12)
LENGTHS = (60, 130)  # rows of the prompt and of the negative prompt


def small(config: DiTConfig) -> DiTConfig:
    """Make a network tiny, and leave its kind."""
    clip = None if config.clip_dim is None else 64
    return replace(
        config, dim=256, ffn_dim=512, heads=2, layers=3, text_dim=64, text_len=160, clip_dim=clip
    )


def chosen_size(name: str, asked: Namespace) -> tuple[DiTConfig, Triple]:
    """Dimensions and latent of a network, as the options change them."""
    config, latent = DITS[name]
    if asked.small:
        config, latent = small(config), SMALL
    return (config if asked.layers is None else replace(config, layers=asked.layers)), latent


def budgeted(config: DiTConfig, latent: Triple, size: int, quantised: bool) -> Expert:
    """What denoise says of an expert of these sizes."""
    computed = ITEMSIZE[compute_dtype("bfloat16")]
    stored = computed if quantised else ITEMSIZE["bfloat16"]
    return Expert(
        config=config, bytes=size, stored=stored, computed=computed, texts=LENGTHS, latent=latent
    )


def stepper(network: DiT, latent: Triple, apart: bool = False) -> Callable[[], None]:
    """Return what takes one step: both passes, together or `apart`, evaluated."""
    config = network.config
    channels = 16 if config.in_dim == 36 else config.in_dim
    x = mx.random.normal((channels, *latent))
    y = mx.random.normal((config.in_dim - channels, *latent)) if config.in_dim == 36 else None
    clip = None if config.clip_dim is None else mx.random.normal((257, config.clip_dim))
    conditions = []
    for length in LENGTHS:
        text = mx.random.normal((length, config.text_dim))
        conditions.append(network.condition(text, clip))
    mx.eval(x, [condition.text for condition in conditions])

    turns = [[condition] for condition in conditions] if apart else [conditions]

    def step() -> None:
        mx.eval([network(x, [500.0], turn, y) for turn in turns])

    return step


def loaded(random: Random, config: DiTConfig, asked: Namespace, folder: Path, rows: Rows) -> DiT:
    """Make the network: filled in memory, or reading its blocks from a file."""
    dtype = mlx_dtype(compute_dtype("bfloat16"))
    if not asked.streamed:
        return random.fill(DiT(config), dtype)
    path = folder / "model.safetensors"
    random.write(path)
    network = load_streamed(DiT(config), path, dtype, lambda: Block(config))
    reading = measure(lambda: read_blocks(network), repeats=asked.repeats, warm=1)
    size = sum(slot.nbytes for slot in random.slots if slot.name.startswith("blocks."))
    rows.tell(
        "reading",
        file_gb=random.bytes / 1e9,
        file_plainly=read_plainly(path),
        blocks_gb=size / 1e9,
        blocks_read=reading.seconds,
        gb_per_second=size / reading.seconds / 1e9,
    )
    return network


def read_blocks(network: DiT) -> None:
    """Read every block as a step does, and compute nothing."""
    for _ in network.blocks:
        pass


def bench(name: str, asked: Namespace, rows: Rows) -> None:
    """Measure one network, and diffusers' where that is asked for."""
    config, latent = chosen_size(name, asked)
    spec = None if asked.bits is None else Quantization(bits=asked.bits, group_size=GROUP)
    random = Random(DiT(config), rules.ROWS, spec)
    expert = budgeted(config, latent, random.bytes, spec is not None)
    chosen = (asked.streamed, asked.apart)
    need = next(way for way in expert.ways() if (way.streamed, way.apart) == chosen)
    with tempfile.TemporaryDirectory() as folder:
        network = loaded(random, config, asked, Path(folder), rows)
        step = stepper(network, latent, asked.apart)
        with nullcontext() if asked.unlimited else memory_limit(need.limit):
            timing = measure(step, asked.repeats)
    limit = limits.step_seconds(expert)
    rows.tell(
        f"dit {name}",
        bits=asked.bits or 16,
        streamed=asked.streamed,
        apart=asked.apart,
        memory_limit=not asked.unlimited,
        layers=config.layers,
        tokens=expert.tokens,
        seconds=timing.seconds,
        shortest=timing.shortest,
        tflops=expert.flops / timing.seconds / 1e12,
        limit=limit,
        of_limit=timing.seconds / limit,
        peak_gb=timing.peak / 1e9,
        expected_gb=need.peak / 1e9,
        peak_over_expected_percent=100 * (timing.peak / need.peak - 1),
    )
    del network, step
    gc.collect()
    mx.clear_cache()
    if asked.torch:
        for compiled in (False, True) if asked.compile else (False,):
            compare(name, asked, compiled, timing.seconds, rows)


def compare(name: str, asked: Namespace, compiled: bool, ours: float, rows: Rows) -> None:
    """Time diffusers' network of the same size in a process of its own."""
    config, latent = chosen_size(name, asked)
    sizes = {"dim": config.dim, "ffn_dim": config.ffn_dim, "heads": config.heads}
    sizes |= {"layers": config.layers, "in_dim": config.in_dim, "out_dim": config.out_dim}
    sizes |= {"text_dim": config.text_dim, "text_len": config.text_len}
    task = {"config": sizes, "latent": latent, "compiled": compiled, "repeats": asked.repeats}
    subject = f"diffusers {name}{', compiled' if compiled else ''}"
    if config.clip_dim is not None:
        rows.tell(subject, skipped="image tokens are not measured there")
        return
    rows.tell(subject, **beside("step", task, ours, cpu=asked.small))


def main() -> None:
    """Measure the networks that are named."""
    options = parser(__doc__)
    options.add_argument("names", nargs="*", metavar="NAME", help=", ".join(DITS))
    options.add_argument("--bits", type=int, choices=(4, 8), help=f"in groups of {GROUP}")
    options.add_argument("--streamed", action="store_true", help="blocks read at every step")
    options.add_argument("--apart", action="store_true", help="one pass after the other")
    options.add_argument("--unlimited", action="store_true", help="no limit of memory for MLX")
    options.add_argument("--layers", type=int, help="fewer blocks than the network has")
    options.add_argument("--torch", action="store_true", help="diffusers' network too")
    options.add_argument("--compile", action="store_true", help="with --torch: compiled too")
    options.add_argument("--parts", action="store_true", help="the pieces of a block instead")
    asked = options.parse_args()
    names = asked.names or DEFAULT
    if unknown := [name for name in names if name not in DITS]:
        options.error(f"names must be {', '.join(DITS)}, got {', '.join(unknown)}")
    mx.random.seed(0)
    rows = Rows(asked.json)
    rows.start()
    for name in names:
        config, latent = chosen_size(name, asked)
        work = partial(bench, name, asked, rows)
        if asked.parts:
            work = partial(parts.bench, name, config, latent, asked.repeats, rows)
        work()
        gc.collect()
        mx.clear_cache()


if __name__ == "__main__":
    main()
