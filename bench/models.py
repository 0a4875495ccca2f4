"""Writes models of the Wan family with random weights, as `wanpipe convert` would write them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import mlx.core as mx
import mlx.nn as nn
import xxhash
from msgspec import structs
from PIL import Image, ImageDraw

from bench.dit import small
from bench.sizes import DITS, I2V_A14B, VAE_21, VAE_22
from bench.weights import Random
from wanpipe import demo
from wanpipe.checkpoints.rename import RenameRule
from wanpipe.checkpoints.rules import dit as dit_rules
from wanpipe.checkpoints.rules import umt5 as t5_rules
from wanpipe.checkpoints.rules import vae as vae_rules
from wanpipe.models.config import (
    SCHEMA,
    Component,
    Components,
    DiTConfig,
    ModelConfig,
    T5Config,
    VAEConfig,
)
from wanpipe.models.dit import DiT
from wanpipe.models.umt5 import T5
from wanpipe.models.vae import vae
from wanpipe.models.variants import VARIANTS
from wanpipe.runtime.documents import Document, encode

# Random weights make noise, which x264 encodes slowly. With a smaller last convolution, the video
# has 3 MB instead of 18.
FAINT = {"output.weight": 0.06}
LITTLE = {"vocab": 1024, "attention_dim": 64, "ffn_dim": 128, "heads": 2, "layers": 2}
VAE_RULES = {
    "2.1": (vae_rules.RULES_21_DECODER, vae_rules.RULES_21_ENCODER),
    "2.2": (vae_rules.RULES_22_DECODER, vae_rules.RULES_22_ENCODER),
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A model of the family: its name, the dimensions of its networks, its experts and its video.

    `shift` is given where it lets each expert take the same number of `steps`. `image` tells
    whether the model takes an image.
    """

    variant: str
    dit: DiTConfig
    vae: VAEConfig = VAE_21
    experts: tuple[str, ...] = ("model",)
    video: tuple[int, int, int] = (832, 480, 81)
    shift: float | None = None
    image: bool = False

    def tiny(self) -> "Sizes":
        """Return a tiny model of the same kind."""
        narrow = structs.replace(self.vae, encoder_dim=8, decoder_dim=8)
        return replace(self, dit=small(self.dit), vae=narrow, video=(64, 64, 5))


PAIR = ("low_noise_model", "high_noise_model")
MODELS = {
    "1.3b": Sizes(variant="wan2.1-t2v-1.3b", dit=DITS["1.3b"][0]),
    "14b": Sizes(variant="wan2.1-t2v-14b", dit=DITS["14b"][0]),
    # Lightning's shift: 2 of 4 steps for each expert
    "a14b": Sizes(variant="wan2.2-t2v-a14b", dit=DITS["14b"][0], experts=PAIR, shift=5.0),
    "i2v-a14b": Sizes(variant="wan2.2-i2v-a14b", dit=I2V_A14B, experts=PAIR, shift=5.0, image=True),
    "ti2v-5b": Sizes(
        variant="wan2.2-ti2v-5b",
        dit=DITS["ti2v-5b"][0],
        vae=VAE_22,
        video=(1280, 704, 121),
        image=True,
    ),
}


def draw_image(path: Path, width: int, height: int) -> None:
    """Draw an image: a red ball on a gradient."""
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    radius, x, y = height // 5, width // 3, height // 2
    box = (x - radius, y - radius, x + radius, y + radius)
    ImageDraw.Draw(image).ellipse(box, fill="red")
    image.save(path)


def seed(name: str) -> None:
    """Seed the generator for the tensors of a component, which are drawn in the file's order."""
    mx.random.seed(crc32(name.encode()))


def component(
    folder: Path,
    name: str,
    network: nn.Module,
    config: Document,
    rules: Sequence[RenameRule],
    dtype: str,
    gains: Mapping[str, float] | None = None,
) -> Component:
    """Write one network's file and return its entry in config.json.

    A component of this name and these sizes always has the same weights.
    """
    seed(name)
    random = Random(network, rules, dtype=dtype, gains=gains)
    written = random.write(folder / f"{name}.safetensors")
    return Component(
        file=f"{name}.safetensors",
        hash=written.hash,
        bytes=written.bytes,
        parameters=random.parameters,
        config=config,
    )


def write_config(folder: Path, name: str, parts: Mapping[str, Any]) -> None:
    """Write the config.json of a bfloat16 model of this variant."""
    variant = VARIANTS[name]
    config = ModelConfig(
        schema=SCHEMA,
        key=xxhash.xxh3_128_hexdigest(json.dumps({n: p.hash for n, p in parts.items()}).encode()),
        variant=variant.name,
        dtype="bfloat16",
        quantization=None,
        defaults=variant.defaults,
        files=Components(**parts),
    )
    (folder / "config.json").write_bytes(encode(config))


def write_model(
    folder: Path,
    sizes: Sizes,
    t5: T5Config | None = None,
) -> None:
    """Write a complete model directory; without `t5` the text encoder is small."""
    dit, coder = sizes.dit, sizes.vae
    t5 = t5 or T5Config(dim=dit.text_dim, **LITTLE)
    decoding, encoding = VAE_RULES[coder.version]
    with demo.checkpoint("t2v") as source:
        words = (source / "google" / "umt5-xxl" / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(words)
    digest = xxhash.xxh3_128_hexdigest(words)
    parts = {
        "tokenizer": Component(file="tokenizer.json", hash=digest, bytes=len(words), config=None),
        "t5_encoder": component(folder, "t5_encoder", T5(t5), t5, t5_rules.RULES, "BF16"),
        # the VAE stays float32, as convert keeps it
        "vae": component(folder, "vae", vae.Decoder(coder), coder, decoding, "F32", FAINT),
        "vae_encoder": component(folder, "vae_encoder", vae.Encoder(coder), coder, encoding, "F32"),
    }
    for name in sizes.experts:
        parts[name] = component(folder, name, DiT(dit), dit, dit_rules.RULES, "BF16")
    write_config(folder, sizes.variant, parts)
