"""Times both VAEs at full size, with random weights.

    python -m bench.vae [--small] [--at-once N] [--unlimited] [--torch] [NAME ...]
    python -m bench.vae [--small] [--at-once N] --layers | --conv [NAME ...]
    python -m bench.vae [--small] --tiny [NAME ...]

Prints the median time of a decode, an encode, and an encode of an image-to-video clip, most of
which is gray. Each is held to the memory of its plan. The limit is the arithmetic at the ceiling of
bench/limits.py. `--torch` adds diffusers. `--layers` times every distinct layer alone. `--conv`
compares the implementations of every distinct 3x3x3 convolution. `--tiny` decodes with the VAE
and with the tiny one, in float32 on a CPU; CPU_SIZES are sizes for that.
"""

import statistics
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path

from bench import limits
from bench.peer import run_diffusers
from bench.sizes import HD, TI2V_HD, TINY, VAE_21, VAE_22, WIDE
from wanpipe.backend import cuda_conv
from wanpipe.backend.device import compute_dtype, describe, is_cuda, memory_limit, mlx_dtype
from wanpipe.models.config import VAEConfig
from wanpipe.models.layers import Linear
from wanpipe.models.tuning import multiplies_tiles
from wanpipe.models.vae import tiny, vae
from wanpipe.models.vae.blocks import AttentionBlock, Downsample, Norm, Upsample
from wanpipe.models.vae.causal_conv import SAME, CausalCache, CausalConv, convolve, sum_terms
from wanpipe.pipeline import budget
from wanpipe.pipeline.budget import ITEMSIZE, DecodePlan, MemoryPlan
from wanpipe.pipeline.vae_cost import Op, chunk_ops
from wanpipe.runtime.documents import to_builtins

REPEATS = 3
SIZES = {
    "2.1-832x480x81": (VAE_21, WIDE),
    "2.1-1280x720x81": (VAE_21, HD),
    "2.2-1280x704x121": (VAE_22, TI2V_HD),
}
CPU_SIZES = {"2.1-256x256x9": (VAE_21, (3, 32, 32)), "2.2-256x256x9": (VAE_22, (3, 16, 16))}
SMALL = {
    "2.1-small": (VAEConfig(version="2.1", encoder_dim=16, decoder_dim=16, z_dim=16), (3, 4, 6)),
    "2.2-small": (VAEConfig(version="2.2", encoder_dim=16, decoder_dim=16, z_dim=48), (2, 2, 4)),
}


def randomize(network: nn.Module) -> nn.Module:
    """Fill a network with normal bfloat16 weights, and norms with float32 gains of 1."""

    def draw(name: str, value: mx.array) -> mx.array:
        if name.endswith("gamma"):
            return mx.ones(value.shape)
        scale = (value.size // value.shape[0]) ** -0.5 if value.ndim > 1 else 0.02
        drawn = (mx.random.normal(value.shape) * scale).astype(mx.bfloat16)
        mx.eval(drawn)
        return drawn

    network.update(tree_map_with_path(draw, network.parameters()))
    return network


def clock(run: Callable[[], object], inner: int = 1) -> float:
    """Return the median seconds of `run` after a warm-up; `inner` calls are timed together."""

    def once() -> float:
        start = time.perf_counter()
        for _ in range(inner):
            mx.eval(run())
        mx.synchronize()
        return (time.perf_counter() - start) / inner

    once()
    mx.reset_peak_memory()
    return statistics.median(once() for _ in range(REPEATS))


def held(need: MemoryPlan, args: Namespace) -> AbstractContextManager[None]:
    """Limit MLX's memory to the plan, unless --unlimited is given."""
    return nullcontext() if args.unlimited else memory_limit(need.limit)


def decode_plan(config: VAEConfig, shape: tuple[int, int, int], args: Namespace) -> DecodePlan:
    """Return the decode plan with --at-once frames, by default the first one that a run uses."""
    plans = budget.decode_plans(config, shape, ITEMSIZE["bfloat16"], is_cuda())
    fitting = [need for need in plans if args.at_once in (None, need.at_once) and not need.tiled]
    if not fitting:
        raise SystemExit("--at-once 2 is only for small frames; omit it")
    return fitting[0]


def decode(name: str, config: VAEConfig, shape: tuple[int, int, int], args: Namespace) -> None:
    """Time a decode, slice by slice."""
    decoder = vae.Decoder(config)
    randomize(decoder)
    latent, need = mx.random.normal((config.z_dim, *shape)), decode_plan(config, shape, args)

    def run() -> None:
        for frames in decoder.frames(latent, need.at_once):
            mx.eval(frames)

    with held(need, args):
        seconds = clock(run)
        print_row(f"{name} decode", seconds, need)
    compare(name, "decode", config, (config.z_dim, *shape), seconds, args)


def encode(name: str, config: VAEConfig, shape: tuple[int, int, int], args: Namespace) -> None:
    """Time the encode of a video, and of an image followed by gray frames."""
    encoder = vae.Encoder(config)
    randomize(encoder)
    sides = [n * stride for n, stride in zip(shape[1:], config.stride[1:], strict=True)]
    image, four = mx.random.normal((1, *sides, 3)), mx.random.normal((4, *sides, 3))

    def clip(others: Callable[[], mx.array]) -> Iterator[mx.array]:
        yield image
        for _ in range(shape[0] - 1):
            yield others()

    need = budget.image_plan(config, shape, ITEMSIZE["bfloat16"], is_cuda(), 0)
    gray = mx.zeros_like(four)
    with held(need, args):
        seconds = clock(lambda: encoder.encode(clip(lambda: four + 0)))
        print_row(f"{name} encode", seconds, need)
        still = clock(lambda: encoder.encode(clip(lambda: gray)))
        print_row(f"{name} encode image, then gray", still, need)
    compare(name, "encode", config, (3, 4 * shape[0] - 3, *sides), seconds, args)


def decode_tiny(name: str, config: VAEConfig, shape: tuple[int, int, int], args: Namespace) -> None:
    """Time a decode with the VAE and with the tiny one, in the dtype that a run computes in."""
    dtype, latent = compute_dtype("bfloat16"), mx.random.normal((config.z_dim, *shape))
    times = []
    for part in (config, TINY[config.version]):
        network = vae.Decoder(part) if isinstance(part, VAEConfig) else tiny.Decoder(part)
        randomize(network).set_dtype(mlx_dtype(dtype))
        need = budget.decode_plans(part, shape, ITEMSIZE[dtype], is_cuda())[0]

        def run(network: vae.Decoder | tiny.Decoder = network) -> None:
            for frames in network.frames(latent):
                mx.eval(frames)

        with held(need, args):
            times.append(clock(run))
            label = "tiny decode" if times[1:] else "decode"
            print_row(f"{name} {label}, {dtype}", times[-1], need)
    print(f"| {name} decode, times tiny | | {times[0] / times[1]:.1f} | | | | |", flush=True)


def compare(
    name: str, half: str, config: VAEConfig, shape: Sequence[int], ours: float, args: Namespace
) -> None:
    """Print the time of diffusers for the same work, if --torch is given."""
    if args.torch:
        mx.clear_cache()  # diffusers needs the GPU's memory
        task = {**to_builtins(config), "half": half, "shape": shape, "repeats": 1}
        theirs = run_diffusers("coder", task, ours, cpu=args.small)
        row = f"skipped: {theirs.get('skipped')} | | | | |"
        if "seconds" in theirs:
            ratio = f"ours {theirs['ours_over_theirs']:.2f} of it"
            row = f" | {theirs['seconds']:.3f} s | | {ratio} | {theirs['peak_gb']:.2f} GB | |"
        print(f"| {name} {half}, diffusers | {row}", flush=True)


def print_row(name: str, seconds: float, need: MemoryPlan) -> None:
    """Print one row. A gray clip counts as if all its arithmetic were computed."""
    rate, times = need.flops / seconds / 1e12, seconds / (need.flops / limits.CONVOLUTION)
    memory = f"{mx.get_peak_memory() / 1e9:.2f} GB | {need.peak / 1e9:.2f} GB"
    row = f"{need.flops / 1e12:.1f} | {seconds:.3f} s | {rate:.1f} | {times:.2f} | {memory}"
    print(f"| {name} | {row} |", flush=True)


class Work(NamedTuple):
    """One layer: how often a chunk runs it, and its arithmetic and bytes."""

    name: str
    count: int
    run: Callable[[], object]
    flops: float
    bytes: int


def works(config: VAEConfig, shape: tuple[int, int, int], at_once: int) -> Iterator[Work]:
    """Yield every distinct layer of the decoder and the encoder, for a chunk after the first."""
    chunks = (
        chunk_ops(config, "decoder", shape, False, at_once),
        chunk_ops(config, "encoder", shape),
    )
    for half, chunk in zip(("decode", "encode"), chunks, strict=True):
        alike = Counter[tuple[object, ...]]()
        examples: dict[tuple[object, ...], Op] = {}
        for step in chunk:
            key = (step.kind, step.shape, step.outputs)
            alike[key] += step.repeats
            examples.setdefault(key, step)
        for key, step in examples.items():
            for name, run, flops, size in parts(step):
                sides = "x".join(map(str, step.shape))
                label = f"{half} {name} {sides} to {step.outputs}"
                yield Work(label, alike[key], run, flops, size)


def parts(step: Op) -> Iterator[tuple[str, Callable[[], object], float, int]]:
    """Split a step into kernels: name, function, arithmetic and bytes."""
    T, H, W, C = step.shape
    x = mx.random.normal(step.shape).astype(mx.bfloat16)
    made, weights = step.positions * step.outputs, step.parameters
    mx.eval(x)
    past = CausalCache()
    past.first = False
    if step.kind == "causal":
        norm, conv = Norm(C), randomize(CausalConv(C, step.outputs))
        joined = mx.random.normal((T + 2, H, W, C)).astype(mx.bfloat16)
        y = mx.random.normal((T, H, W, step.outputs)).astype(mx.bfloat16)
        mx.eval(joined, y)

        def join() -> mx.array:
            past.append(joined[:2])
            return past.concat(x, 2)

        yield "norm and SiLU", lambda: norm(x), 0.0, 4 * x.size
        yield "join", join, 0.0, 2 * (x.size + 2 * joined.size - x.size)
        yield (
            "conv",
            lambda: conv.without_bias(joined),
            step.flops,
            2 * (joined.size + made + weights),
        )
        yield "bias, residual", lambda: sum_terms(y, y, conv.bias, dtype=y.dtype), 0.0, 6 * y.size
    elif step.kind == "polyphase":
        up = randomize(Upsample(C, step.outputs // 4, False))
        yield "upsample", lambda: up(x, past), step.flops, 2 * (x.size + 3 * made + weights)
    elif step.kind == "down":
        down = randomize(Downsample(C, False))
        yield "downsample", lambda: down(x, past), step.flops, 2 * (x.size + made + weights)
    elif step.kind == "attention":
        block = randomize(AttentionBlock(C))
        flops = step.flops + 8.0 * T * H * W * C * C
        yield "attention", lambda: block(x), flops, 4 * x.size
    elif step.kind == "linear" and step.outputs != 3 * C:
        linear = randomize(Linear(C, step.outputs))
        yield "linear", lambda: linear(x), step.flops, 2 * (x.size + made + weights)


def layers(name: str, config: VAEConfig, shape: tuple[int, int, int], at_once: int) -> None:
    """Print a row for each distinct layer, and their total per chunk."""
    print(f"\n{name}, {at_once} frames at once: layers of one chunk\n")
    print("| layer | in a chunk | GFLOP | MB | ms | TFLOP/s | GB/s | of the limit |")
    print("|---|---|---|---|---|---|---|---|")
    total = least = 0.0
    for work in works(config, shape, at_once):
        seconds = clock(work.run, inner=10 if work.flops < 1e11 else 3)
        limit = max(work.flops / limits.CONVOLUTION, work.bytes / limits.BANDWIDTH)
        total, least = total + work.count * seconds, least + work.count * limit
        print(
            f"| {work.name} | {work.count} | {work.flops / 1e9:.2f} | {work.bytes / 1e6:.1f} "
            f"| {seconds * 1e3:.3f} | {work.flops / seconds / 1e12:.1f} "
            f"| {work.bytes / seconds / 1e9:.0f} | {seconds / limit:.2f} |",
            flush=True,
        )
    print(f"all, decode and encode: {total * 1e3:.1f} ms a chunk, limit {least * 1e3:.1f} ms")


def compare_convolutions(
    name: str, config: VAEConfig, shape: tuple[int, int, int], at_once: int
) -> None:
    """Time each distinct 3x3x3 convolution in four implementations.

    The kernel of backend.cuda_conv adds the bias too, and exists for some sizes on a Hopper GPU.
    """
    print(f"\n{name}: 3x3x3 convolutions, ms (TFLOP/s), and difference from conv3d\n")
    print("| convolution | conv3d | frames as channels | three conv2d | kernel | differences |")
    print("|---|---|---|---|---|---|")
    halves = (
        chunk_ops(config, "decoder", shape, False, at_once),
        chunk_ops(config, "encoder", shape),
    )
    every = [step for chunk in halves for step in chunk if step.kind == "causal"]
    for T, H, W, C, outputs in dict.fromkeys((*step.shape, step.outputs) for step in every):
        x = mx.random.normal((T + 2, H, W, C)).astype(mx.bfloat16)
        weight, bias = randomize(CausalConv(C, outputs)).weight, mx.zeros((outputs,))
        stacked = mx.contiguous(weight.transpose(0, 2, 3, 1, 4).reshape(outputs, 3, 3, 3 * C))
        taps = [mx.contiguous(weight[:, t : t + 1].squeeze(1)) for t in range(3)]
        mx.eval(x, weight, stacked, taps)

        def direct(x=x, weight=weight) -> mx.array:
            return convolve(x, weight, (1, 1, 1), ((0, 0), *SAME))

        def channels(x=x, stacked=stacked, T=T) -> mx.array:
            return convolve(
                mx.concatenate([x[t : t + T] for t in range(3)], -1), stacked, (1, 1), SAME
            )

        def sums(x=x, taps=taps, T=T) -> mx.array:
            terms = [convolve(x[t : t + T], tap, (1, 1), SAME) for t, tap in enumerate(taps)]
            return sum_terms(*terms, dtype=x.dtype)

        works: list[Callable[[], mx.array]] = [direct, channels, sums]
        if multiplies_tiles(C, outputs) and is_cuda() and cuda_conv.computes(x.dtype):
            tiled = cuda_conv.tile_weight(weight)
            works.append(partial(cuda_conv.convolve, x, tiled, bias, None))
        flops = 2.0 * T * H * W * 27 * C * outputs
        times = [clock(work, inner=3) for work in works]
        cells = [f"{seconds * 1e3:.2f} ({flops / seconds / 1e12:.1f})" for seconds in times]
        cells += [""] * (4 - len(cells))
        exact = direct().astype(mx.float32)
        off = [mx.linalg.norm(work() - exact) / mx.linalg.norm(exact) for work in works[1:]]
        cells.append(", ".join(f"{one.item():.1e}" for one in off))
        print(f"| {T}+2x{H}x{W}x{C} to {outputs} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Measure the named sizes, or all."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SIZES))
    parser.add_argument("--small", action="store_true", help="Use sizes for a CPU.")
    parser.add_argument("--at-once", type=int, choices=(1, 2), help="Frames decoded at a time.")
    parser.add_argument("--unlimited", action="store_true", help="Set no memory limit for MLX.")
    parser.add_argument("--torch", action="store_true", help="Also time diffusers.")
    parser.add_argument("--layers", action="store_true", help="Time every distinct layer alone.")
    parser.add_argument("--conv", action="store_true", help="Compare convolutions.")
    parser.add_argument("--tiny", action="store_true", help="Compare the VAE with the tiny one.")
    args = parser.parse_args()
    sizes = SMALL if args.small else SIZES
    named = {**sizes, **CPU_SIZES}
    print(f"{describe()}, mlx {mx.__version__}", flush=True)
    if not (args.layers or args.conv):
        print("| work | TFLOP | seconds | TFLOP/s | of the limit | peak | planned |")
        print("|---|---|---|---|---|---|---|", flush=True)
    for name in args.names or sizes:
        config, shape = named[name]
        if args.layers:
            layers(name, config, shape, decode_plan(config, shape, args).at_once)
        if args.conv:
            compare_convolutions(name, config, shape, decode_plan(config, shape, args).at_once)
        if args.tiny:
            decode_tiny(name, config, shape, args)
        elif not (args.layers or args.conv):
            decode(name, config, shape, args)
            encode(name, config, shape, args)
        mx.clear_cache()


if __name__ == "__main__":
    main()
