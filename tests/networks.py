"""Graphs of every network at full size, traced without evaluation."""

from collections.abc import Callable, Sequence
from functools import cache

import mlx.core as mx
import mlx.nn as nn
from msgspec import UNSET

from bench import sizes
from bench.sizes import HD, TI2V_HD, WIDE
from tests.graphs import Graph, Tracer, gpu
from wanpipe.checkpoints.rename import RenameRule
from wanpipe.checkpoints.rules import clip as clip_rules
from wanpipe.checkpoints.rules import dit as dit_rules
from wanpipe.checkpoints.rules import taehv
from wanpipe.checkpoints.rules import umt5 as umt5_rules
from wanpipe.checkpoints.rules import vae as vae_rules
from wanpipe.models import umt5
from wanpipe.models.clip import CLIP
from wanpipe.models.config import CLIPConfig, DiTConfig, T5Config, VAEConfig
from wanpipe.models.dit import DiT
from wanpipe.models.vae import tiny, vae


def dit(tracer: Tracer, config: DiTConfig, shape: tuple[int, ...], groups: int = 1) -> Graph:
    """Trace a step with guidance, conditions included; `groups` is the number of timesteps."""
    network = DiT(config)
    texts = [mx.zeros((length, config.text_dim)) for length in (60, 130)]
    image = [mx.zeros((20, *shape))] if config.in_dim == 36 else []
    tokens = [] if config.clip_dim is None else [mx.zeros((config.clip_tokens, config.clip_dim))]
    latent = mx.zeros((config.in_dim - 20 * len(image), *shape))
    vace = [] if config.vace_in_dim is UNSET else [mx.zeros((config.vace_in_dim, *shape))]

    def step(x: mx.array, first: mx.array, second: mx.array, *more: mx.array) -> list[mx.array]:
        y, more = more[: len(image)], more[len(image) :]
        features, more = more[: len(tokens)], more[len(tokens) :]
        conditions = [network.condition(text, *features) for text in (first, second)]
        context = more[0] if more else None
        return network(x, [500.0] * groups, conditions, *y, context=context, lazy=True)

    inputs = (latent, *texts, *image, *tokens, *vace)
    return tracer.read_network(network, dit_rules.RULES, step, *inputs)


def decoder(tracer: Tracer, config: VAEConfig, shape: tuple[int, ...]) -> Graph:
    """Trace two chunks: one frame, then four."""
    rules = vae_rules.RULES_21_DECODER if config.version == "2.1" else vae_rules.RULES_22_DECODER
    latents = [mx.zeros((1, *shape[1:], config.z_dim)) for _ in range(2)]
    return chunks(tracer, vae.Decoder(config), rules, latents)


def encoder(tracer: Tracer, config: VAEConfig, shape: tuple[int, ...]) -> Graph:
    """Trace two chunks: one frame, then four."""
    rules = vae_rules.RULES_21_ENCODER if config.version == "2.1" else vae_rules.RULES_22_ENCODER
    height, width = (n * stride for n, stride in zip(shape[1:], config.stride[1:], strict=True))
    videos = [mx.zeros((frames, height, width, 3)) for frames in (1, 4)]
    return chunks(tracer, vae.Encoder(config), rules, videos)


def tiny_decoder(tracer: Tracer, version: str, shape: tuple[int, ...]) -> Graph:
    """Trace two chunks of the tiny decoder, four frames each."""
    config = sizes.TINY[version]
    latents = [mx.zeros((1, *shape[1:], config.z_dim)) for _ in range(2)]
    return chunks(tracer, tiny.Decoder(config), taehv.RULES, latents)


def chunks(
    tracer: Tracer,
    part: vae.Decoder | vae.Encoder | tiny.Decoder,
    rules: Sequence[RenameRule],
    inputs: list[mx.array],
) -> Graph:
    def run(*inputs: mx.array) -> list[mx.array]:
        cache = vae.CausalCache()
        return [part.chunk(x, cache) for x in inputs]

    return tracer.read_network(part, rules, run, *inputs)


def text_encoder(tracer: Tracer, config: T5Config) -> Graph:
    """Trace all blocks with 512 tokens, without the embedding table, which the host reads."""
    network = nn.Module()
    network.blocks = [umt5.Block(config) for _ in range(config.layers)]
    one_hot = umt5.one_hot_buckets(512, config.buckets)

    def run(x: mx.array) -> mx.array:
        for block in network.blocks:
            x = block(x, one_hot)
        return x

    return tracer.read_network(network, umt5_rules.RULES, run, mx.zeros((512, config.dim)))


def vision(tracer: Tracer, config: CLIPConfig) -> Graph:
    """Trace one image."""
    network, image = CLIP(config), mx.zeros((config.size, config.size, 3))
    return tracer.read_network(network, clip_rules.RULES, network, image)


NETWORKS: dict[str, Callable[[Tracer], Graph]] = {
    "dit-1.3b-832x480x81": lambda tracer: dit(tracer, sizes.T2V_1_3B, WIDE),
    "dit-14b-832x480x81": lambda tracer: dit(tracer, sizes.T2V_14B, WIDE),
    "dit-14b-1280x720x81": lambda tracer: dit(tracer, sizes.T2V_14B, HD),
    "dit-i2v-14b-832x480x81": lambda tracer: dit(tracer, sizes.I2V_14B, WIDE),
    "dit-i2v-14b-1280x720x81": lambda tracer: dit(tracer, sizes.I2V_14B, HD),
    "dit-flf2v-14b-1280x720x81": lambda tracer: dit(tracer, sizes.FLF2V_14B, HD),
    "dit-vace-1.3b-832x480x81": lambda tracer: dit(tracer, sizes.VACE_1_3B, WIDE),
    "dit-vace-14b-1280x720x81": lambda tracer: dit(tracer, sizes.VACE_14B, HD),
    "dit-i2v-a14b-1280x720x81": lambda tracer: dit(tracer, sizes.I2V_A14B, HD),
    "dit-ti2v-5b-text-1280x704x121": lambda tracer: dit(tracer, sizes.TI2V_5B, TI2V_HD),
    "dit-ti2v-5b-image-1280x704x121": lambda tracer: dit(
        tracer, sizes.TI2V_5B, TI2V_HD, TI2V_HD[0]
    ),
    "vae-2.1-decoder-832x480": lambda tracer: decoder(tracer, sizes.VAE_21, WIDE),
    "vae-2.1-decoder-1280x720": lambda tracer: decoder(tracer, sizes.VAE_21, HD),
    "vae-2.1-encoder-832x480": lambda tracer: encoder(tracer, sizes.VAE_21, WIDE),
    "vae-2.1-encoder-1280x720": lambda tracer: encoder(tracer, sizes.VAE_21, HD),
    "vae-2.2-decoder-1280x704": lambda tracer: decoder(tracer, sizes.VAE_22, TI2V_HD),
    "vae-2.2-encoder-1280x704": lambda tracer: encoder(tracer, sizes.VAE_22, TI2V_HD),
    "vae-tiny-2.1-1280x720": lambda tracer: tiny_decoder(tracer, "2.1", HD),
    "vae-tiny-2.2-1280x704": lambda tracer: tiny_decoder(tracer, "2.2", TI2V_HD),
    "umt5-xxl-512-tokens": lambda tracer: text_encoder(tracer, sizes.T5_XXL),
    "clip-vit-h": lambda tracer: vision(tracer, sizes.CLIP_H),
}


@cache
def graph(name: str) -> Graph:
    """Return the graph of one of NETWORKS, traced once."""
    with gpu() as tracer:
        return NETWORKS[name](tracer)
