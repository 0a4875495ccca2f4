"""Times and peaks of every network at full size, with random weights, on the device that MLX uses.

    python bench/full_size.py [NAME ...]

One line per network: median seconds of one step with guidance (two forwards) or of one decode, peak
memory, weights included. Names: those of SIZES, `vae-2.1`, `vae-2.2`, `t5`. Without names: all.
"""

import statistics
import sys
import time
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path

from wanpipe.config import DiTConfig, T5Config, VAEConfig
from wanpipe.device import describe
from wanpipe.models import vae
from wanpipe.models.dit import DiT
from wanpipe.models.umt5 import T5

REPEATS = 3
LARGE = {"dim": 5120, "ffn_dim": 13824, "heads": 40, "layers": 40, "out_dim": 16}
SIZES: dict[str, tuple[DiTConfig, tuple[int, int, int]]] = {
    "1.3b": (
        DiTConfig(dim=1536, ffn_dim=8960, heads=12, layers=30, in_dim=16, out_dim=16),
        (21, 60, 104),
    ),
    "14b": (DiTConfig(**LARGE, in_dim=16), (21, 60, 104)),
    "14b-720p": (DiTConfig(**LARGE, in_dim=16), (21, 90, 160)),
    "ti2v-5b": (
        DiTConfig(dim=3072, ffn_dim=14336, heads=24, layers=30, in_dim=48, out_dim=48),
        (31, 44, 80),
    ),
}
VAES = {
    "vae-2.1": (VAEConfig(version="2.1", encoder_dim=96, decoder_dim=96, z_dim=16), (21, 60, 104)),
    "vae-2.2": (
        VAEConfig(version="2.2", encoder_dim=160, decoder_dim=256, z_dim=48),
        (31, 44, 80),
    ),
}


def randomise(network: nn.Module, full: Callable[[str], bool]) -> None:
    """Fill a network with normal weights, in bfloat16 but for those that `full` names."""

    def draw(name: str, value: mx.array) -> mx.array:
        fan_in = value.size // value.shape[0] if value.ndim > 1 else 1
        scale = fan_in**-0.5 if value.ndim > 1 else 0.02
        dtype = mx.float32 if full(name) else mx.bfloat16
        drawn = (mx.random.normal(value.shape) * scale).astype(dtype)
        mx.eval(drawn)
        return drawn

    network.update(tree_map_with_path(draw, network.parameters()))


def stays_full(name: str) -> bool:
    """Whether a parameter of the DiT stays float32 in a converted model."""
    tail = name.split(".")[-2:]
    norms = {"norm_q", "norm_k", "norm3", "modulation", "time_projection", "patch_embedding"}
    return bool(norms & set(tail)) or name.startswith(("time_embedding", "head"))


def measure(name: str, run: Callable[[], None]) -> None:
    """Warm up once, then print the median time and the peak memory of `run`."""
    run()
    mx.synchronize()
    mx.reset_peak_memory()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        mx.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = mx.get_peak_memory() / 1e9
    print(f"{name}: {statistics.median(seconds):.3f} s, peak {peak:.1f} GB", flush=True)


def bench_dit(name: str) -> None:
    """One step with guidance: two forwards, text already embedded."""
    config, shape = SIZES[name]
    network = DiT(config)
    randomise(network, stays_full)
    latent = mx.random.normal((config.in_dim, *shape))
    texts = [mx.random.normal((length, config.text_dim)) for length in (60, 130)]
    conditions = [network.condition(text) for text in texts]

    def step() -> None:
        for condition in conditions:
            mx.eval(network(latent, [500.0], condition))

    measure(f"dit {name}, one step with guidance, latent {shape}", step)


def bench_vae(name: str) -> None:
    """One decode, slice by slice."""
    config, shape = VAES[name]
    network = vae.decoder(config)
    randomise(network, lambda tensor: tensor.endswith("gamma"))
    latent = mx.random.normal((config.z_dim, *shape))

    def decode() -> None:
        for frames in network.frames(latent):
            mx.eval(frames)

    measure(f"{name} decode, latent {shape}", decode)


def bench_t5() -> None:
    """One prompt of 512 tokens through the whole encoder, resident."""
    sizes = {"dim": 4096, "attention_dim": 4096, "ffn_dim": 10240, "heads": 64, "layers": 24}
    network = T5(T5Config(vocab=256384, **sizes))
    randomise(network, lambda tensor: "norm" in tensor)
    ids = [int(i) for i in mx.random.randint(0, 256384, (512,))]
    measure("t5-xxl, 512 tokens, resident", lambda: mx.eval(network(ids)))


def main() -> None:
    """Measure the networks that are named, or all."""
    names = sys.argv[1:] or [*SIZES, *VAES, "t5"]
    print(f"{describe()}, mlx {mx.__version__}", flush=True)
    for name in names:
        if name in SIZES:
            bench_dit(name)
        elif name in VAES:
            bench_vae(name)
        else:
            bench_t5()
        mx.clear_cache()


if __name__ == "__main__":
    main()
