"""Times a denoising step with guidance, for full-size transformers with random weights.

    python -m bench.dit [NAME...]                       resident, bfloat16
    python -m bench.dit 14b --bits 4 --streamed         quantized, blocks read at every step
    python -m bench.dit 1.3b --torch --compile          compare with diffusers
    python -m bench.dit 1.3b vace-1.3b                  VACE, and the same size without it
    python -m bench.dit 1.3b --one-pass --nag           guidance 1, with NAG
    python -m bench.dit 1.3b --parts                    time the pieces of a block

NAME is a key of DITS in bench/sizes.py; the default is `1.3b` and `14b`. A step runs both guidance
passes; the text is embedded beforehand. `limit` is the time at the ceilings of bench/limits.py,
`expected` the plan of wanpipe.pipeline.budget. Streamed blocks are read from the page cache.
"""

import gc
import tempfile
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import mlx.core as mx
from msgspec import UNSET
from msgspec.structs import replace

from bench import limits, parts
from bench.peer import run_diffusers
from bench.sizes import DITS, with_layers
from bench.weights import Random, Rows, measure, parser, read_plainly
from wanpipe.backend.device import compute_dtype, memory_limit, mlx_dtype
from wanpipe.checkpoints.rules import dit as rules
from wanpipe.models.config import DiTConfig, Quantization
from wanpipe.models.dit import DiT
from wanpipe.models.geometry import Triple
from wanpipe.pipeline.budget import ITEMSIZE, Expert
from wanpipe.sampling.nag import Nag
from wanpipe.weights.stream import load_streamed

DEFAULT = ("1.3b", "14b")
GROUP = 64
SMALL: Triple = (3, 8, 12)
LENGTHS = (60, 130)  # tokens of the prompt and of the negative prompt


def small(config: DiTConfig) -> DiTConfig:
    """Return a tiny network of the same kind."""
    clip = None if config.clip_dim is None else 64
    return replace(
        with_layers(config, 3),
        dim=256,
        ffn_dim=512,
        heads=2,
        text_dim=64,
        text_len=160,
        clip_dim=clip,
    )


def chosen_size(name: str, args: Namespace) -> tuple[DiTConfig, Triple]:
    """Return the dimensions and the latent of a network, changed by the options."""
    config, latent = DITS[name]
    if args.small:
        config, latent = small(config), SMALL
    return (config if args.layers is None else with_layers(config, args.layers)), latent


def budgeted(config: DiTConfig, latent: Triple, size: int, args: Namespace) -> Expert:
    """Return the expert that denoise plans for."""
    computed = ITEMSIZE[compute_dtype("bfloat16")]
    return Expert(
        config=config,
        bytes=size,
        stored=ITEMSIZE["bfloat16"] if args.bits is None else computed,
        computed=computed,
        texts=LENGTHS[:1] if args.one_pass else LENGTHS,
        latent=latent,
        nag=LENGTHS[1] if args.nag else None,
    )


def stepper(
    network: DiT,
    latent: Triple,
    sequential: bool = False,
    one_pass: bool = False,
    nag: Nag | None = None,
) -> Callable[[], None]:
    """Return a function that runs one step: both passes together, one after the other, or one."""
    config = network.config
    channels = 16 if config.in_dim == 36 else config.in_dim
    x = mx.random.normal((channels, *latent))
    y = mx.random.normal((config.in_dim - channels, *latent)) if config.in_dim == 36 else None
    clip = (
        None if config.clip_dim is None else mx.random.normal((config.clip_tokens, config.clip_dim))
    )
    context = None
    if config.vace_in_dim is not UNSET:
        context = mx.random.normal((config.vace_in_dim, *latent))
    conditions = []
    for length in LENGTHS:
        text = mx.random.normal((length, config.text_dim))
        conditions.append(network.condition(text, clip))
    mx.eval(x, context, [condition.text for condition in conditions])
    if nag is not None:
        conditions[0].negative, conditions[0].nag = conditions[1].text, nag
    if one_pass:
        del conditions[1]

    batches = [[condition] for condition in conditions] if sequential else [conditions]

    def step() -> None:
        mx.eval([network(x, [500.0], batch, y, context=context) for batch in batches])

    return step


def loaded(random: Random, config: DiTConfig, args: Namespace, folder: Path, rows: Rows) -> DiT:
    """Make the network, resident or streaming its blocks from a file."""
    dtype = mlx_dtype(compute_dtype("bfloat16"))
    if not args.streamed:
        return random.fill(DiT(config), dtype)
    path = folder / "model.safetensors"
    random.write(path)
    network = load_streamed(DiT(config), path, dtype)
    reading = measure(lambda: read_blocks(network), repeats=args.repeats, warm=1)
    blocks = ("blocks.", "vace_blocks.")
    size = sum(one.nbytes for one in random.specs if one.name.startswith(blocks))
    rows.print(
        "reading",
        file_gb=random.bytes / 1e9,
        file_plainly=read_plainly(path),
        blocks_gb=size / 1e9,
        blocks_read=reading.seconds,
        gb_per_second=size / reading.seconds / 1e9,
    )
    return network


def read_blocks(network: DiT) -> None:
    """Read every block like a step, and compute nothing."""
    for _ in network.blocks:
        pass


def bench(name: str, args: Namespace, rows: Rows) -> None:
    """Measure one network, and diffusers' if --torch is given."""
    config, latent = chosen_size(name, args)
    spec = None if args.bits is None else Quantization(bits=args.bits, group_size=GROUP)
    random = Random(DiT(config), rules.RULES, spec)
    expert = budgeted(config, latent, random.bytes, args)
    chosen = (args.streamed, args.sequential_cfg)
    need = next(way for way in expert.plans() if (way.streamed, way.sequential_cfg) == chosen)
    with tempfile.TemporaryDirectory() as folder:
        network = loaded(random, config, args, Path(folder), rows)
        nag = Nag(scale=11) if args.nag else None
        step = stepper(network, latent, args.sequential_cfg, args.one_pass, nag)
        with nullcontext() if args.unlimited else memory_limit(need.limit):
            timing = measure(step, args.repeats)
    limit = limits.step_seconds(expert)
    rows.print(
        f"dit {name}",
        bits=args.bits or 16,
        streamed=args.streamed,
        sequential_cfg=args.sequential_cfg,
        one_pass=args.one_pass,
        nag=args.nag,
        memory_limit=not args.unlimited,
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
    if args.torch:
        for compiled in (False, True) if args.compile else (False,):
            compare(name, args, compiled, timing.seconds, rows)


def compare(name: str, args: Namespace, compiled: bool, ours: float, rows: Rows) -> None:
    """Time diffusers' network of the same size in a process of its own."""
    config, latent = chosen_size(name, args)
    sizes = {"dim": config.dim, "ffn_dim": config.ffn_dim, "heads": config.heads}
    sizes |= {"layers": config.layers, "in_dim": config.in_dim, "out_dim": config.out_dim}
    sizes |= {"text_dim": config.text_dim, "text_len": config.text_len}
    if config.vace_layers is not UNSET:
        sizes |= {"vace_layers": config.vace_layers, "vace_in_dim": config.vace_in_dim}
    task = {"config": sizes, "latent": latent, "compiled": compiled, "repeats": args.repeats}
    subject = f"diffusers {name}{', compiled' if compiled else ''}"
    if config.clip_dim is not None:
        rows.print(subject, skipped="networks with image tokens are not compared")
        return
    rows.print(subject, **run_diffusers("step", task, ours, cpu=args.small))


def main() -> None:
    """Measure the named networks."""
    options = parser(__doc__)
    options.add_argument("names", nargs="*", metavar="NAME", help=", ".join(DITS))
    options.add_argument("--bits", type=int, choices=(4, 8), help=f"Quantize in groups of {GROUP}.")
    options.add_argument("--streamed", action="store_true", help="Read the blocks at every step.")
    options.add_argument("--sequential-cfg", action="store_true", help="Run one pass at a time.")
    options.add_argument("--one-pass", action="store_true", help="Run the prompt alone.")
    options.add_argument("--nag", action="store_true", help="Guide attention, too.")
    options.add_argument("--unlimited", action="store_true", help="Set no memory limit for MLX.")
    options.add_argument("--layers", type=int, help="Number of blocks, if not all.")
    options.add_argument("--torch", action="store_true", help="Also time diffusers.")
    options.add_argument(
        "--compile", action="store_true", help="With --torch: also time it compiled."
    )
    options.add_argument("--parts", action="store_true", help="Time the pieces of a block instead.")
    args = options.parse_args()
    names = args.names or DEFAULT
    if unknown := [name for name in names if name not in DITS]:
        options.error(f"unknown network {', '.join(unknown)}; use {', '.join(DITS)}")
    mx.random.seed(0)
    rows = Rows(args.json)
    rows.print_machine()
    for name in names:
        config, latent = chosen_size(name, args)
        work = partial(bench, name, args, rows)
        if args.parts:
            work = partial(parts.bench, name, config, latent, args.repeats, rows)
        work()
        gc.collect()
        mx.clear_cache()


if __name__ == "__main__":
    main()
