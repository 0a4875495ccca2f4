"""Writes the random weights of bench/models.py in diffusers' layout, without PyTorch."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from bench import layouts
from bench.models import FAINT, VAE_RULES, Sizes, seed
from bench.weights import Random, write_file
from wanpipe.checkpoints.rename import RenameRule, Transform, match_rules
from wanpipe.checkpoints.rules import diffusers
from wanpipe.checkpoints.rules import dit as dit_rules
from wanpipe.models.config import HIGH, LOW, PATCH, DiTConfig, VAEConfig
from wanpipe.models.dit import DiT
from wanpipe.models.vae import vae
from wanpipe.weights.write import TensorSpec

FILE = "diffusion_pytorch_model.safetensors"
FOLDERS = {"model": "transformer", HIGH: "transformer", LOW: "transformer_2"}
TOKENS = 60  # of a prompt; zeros follow


Shapes = Mapping[str, tuple[int, ...]]
Rules = Sequence[RenameRule]


@dataclass(frozen=True)
class Part:
    """A component of ours in their layout: for each of our tensors theirs, and how to make it."""

    name: str
    random: Random
    places: dict[str, tuple[TensorSpec, Transform]]

    @property
    def specs(self) -> list[TensorSpec]:
        """Their tensors, in the order of ours."""
        return [self.places[one.name][0] for one in self.random.specs]

    def tensors(self) -> Iterator[mx.array]:
        """Draw the tensors of our file in its order, and give each as theirs."""
        seed(self.name)
        for one in self.random.specs:
            spec, transform = self.places[one.name]
            yield undone(self.random.draw(one), transform, spec.shape)


def place(name: str, random: Random, official: Shapes, ours: Rules, theirs: Rules) -> Part:
    """Find the place of each tensor of a component by its official name, which has their shape."""
    shapes: Any = official
    back = [RenameRule(rule.target, rule.pattern) for rule in theirs if rule.target]
    renames = {source: target for source, _, target in match_rules(shapes, back)}
    dtypes = {one.name: one.dtype for one in random.specs}
    places = {}
    for source, rule, target in match_rules(shapes, ours):
        if rule and target:
            spec = TensorSpec(renames[source] or "", dtypes[target], official[source])
            places[target] = (spec, rule.transform)
    return Part(name, random, places)


def undone(tensor: mx.array, transform: Transform, shape: tuple[int, ...]) -> mx.array:
    """Undo the transform of a tensor, which had this shape."""
    if transform == "patch":
        tensor = tensor.reshape(shape[0], *PATCH, shape[1])
    if transform in ("patch", "conv") and tensor.ndim > 2:
        tensor = mx.contiguous(mx.moveaxis(tensor, -1, 1))
    return tensor.reshape(shape)


def write_network(folder: Path, settings: Mapping[str, Any], parts: Sequence[Part]) -> None:
    """Write a network's file and its config.json."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings))
    specs = [spec for part in parts for spec in part.specs]
    tensors = (tensor for part in parts for tensor in part.tensors())
    write_file(folder / FILE, specs, tensors, {"format": "pt"})


def write_transformer(folder: Path, name: str, config: DiTConfig) -> None:
    """Write an expert."""
    letters = {"D": config.dim, "F": config.ffn_dim, "I": config.in_dim, "O": 4 * config.out_dim}
    letters |= {"T": config.text_dim, "Q": config.freq_dim}
    official = dict(layouts.expand(layouts.DIT, config.layers, **letters))
    settings = {
        "_class_name": "WanTransformer3DModel",
        "num_attention_heads": config.heads,
        "attention_head_dim": config.dim // config.heads,
        "in_channels": config.in_dim,
        "out_channels": config.out_dim,
        "text_dim": config.text_dim,
        "freq_dim": config.freq_dim,
        "ffn_dim": config.ffn_dim,
        "num_layers": config.layers,
    }
    random = Random(DiT(config), dit_rules.RULES)
    part = place(name, random, official, dit_rules.RULES, diffusers.DIT)
    write_network(folder, settings, [part])


def write_vae(folder: Path, config: VAEConfig) -> None:
    """Write both halves of the VAE of Wan2.1."""
    assert config.version == "2.1"
    widths = (config.encoder_dim, config.decoder_dim, config.z_dim)
    official = dict(layouts.vae(config.version, *widths))
    settings = {
        "_class_name": "AutoencoderKLWan",
        "base_dim": config.encoder_dim,
        "decoder_base_dim": config.decoder_dim,
        "z_dim": config.z_dim,
    }
    decoding, encoding = VAE_RULES[config.version]
    decoder = Random(vae.Decoder(config), decoding, dtype="F32", gains=FAINT)
    encoder = Random(vae.Encoder(config), encoding, dtype="F32")
    halves = [
        place("vae", decoder, official, decoding, diffusers.VAE_21),
        place("vae_encoder", encoder, official, encoding, diffusers.VAE_21),
    ]
    write_network(folder, settings, halves)


def write_pipeline(folder: Path, sizes: Sizes) -> None:
    """Write the networks of a text-to-video model, and random embeddings of two prompts."""
    for name in sizes.experts:
        write_transformer(folder / FOLDERS[name], name, sizes.dit)
    write_vae(folder / "vae", sizes.vae)
    shape = (1, sizes.dit.text_len, sizes.dit.text_dim)
    seed("text")
    specs = [TensorSpec(name, "BF16", shape) for name in ("prompt", "negative")]
    inside = (mx.arange(shape[1]) < TOKENS)[:, None]
    embedded = ((mx.random.normal(shape) * inside).astype(mx.bfloat16) for _ in specs)
    write_file(folder / "text.safetensors", specs, embedded)
