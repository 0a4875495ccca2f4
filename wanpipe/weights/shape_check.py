"""Compares the dimensions that a model's config.json gives with the shapes in its files, before a
network is built from them.

A few tensors tell every dimension; `load_network` compares the rest. Reads headers only.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from msgspec import UNSET

from wanpipe.checkpoints.read import open_tensors
from wanpipe.checkpoints.tensors import TensorInfo, list_names, quote_name
from wanpipe.errors import CheckpointError
from wanpipe.models.config import CLIPConfig, DiTConfig, T5Config, VAEConfig

Shapes = dict[str, tuple[int, ...]]  # the first axes of some tensors; (): it is not there


def check_shapes(name: str, path: Path, config: Any) -> None:
    """Check the file of a component against its dimensions. Raises CheckpointError for a file that
    cannot be read or has others.
    """
    with open_tensors(path) as file:
        tensors = file.tensors
    expected = EXPECTED[name](config)
    wrong = [
        f"{quote_name(tensor)} {found} instead of {shape}"
        for tensor, shape in expected.items()
        if (found := leading_axes(tensors, tensor, len(shape))) != shape
    ]
    layers = getattr(config, "layers", 0) - (name == "clip")  # its last block is never used
    if (count := count_blocks(tensors, "blocks.")) != max(0, layers):
        wrong.append(f"{count} blocks instead of {layers}")
    vace = getattr(config, "vace_count", 0)
    if (count := count_blocks(tensors, "vace_blocks.")) != vace:
        wrong.append(f"{count} VACE blocks instead of {vace}")
    if wrong:
        raise CheckpointError(
            f"{path} does not fit the dimensions in config.json: {list_names(wrong)}; convert the "
            "checkpoint again"
        )


def leading_axes(tensors: Mapping[str, TensorInfo], name: str, count: int) -> tuple[int, ...]:
    """The first axes of a tensor; all where `count` is 0, and none where it is not there."""
    shape = tensors[name].shape if name in tensors else ()
    return shape[:count] if count else shape


def count_blocks(tensors: Mapping[str, TensorInfo], prefix: str) -> int:
    """Count the blocks whose tensors are called <prefix>0.*, <prefix>1.* and so on."""
    return len({name.split(".", 2)[1] for name in tensors if name.startswith(prefix)})


def expected_dit(config: DiTConfig) -> Shapes:
    """Some shapes of a transformer."""
    c, token = config, prod(config.patch)
    vace = () if c.vace_in_dim is UNSET else (c.dim, token * c.vace_in_dim)
    return {
        "patch_embedding.weight": (c.dim, token * c.in_dim),
        "text_embedding.fc1.weight": (c.dim, c.text_dim),
        "time_embedding.fc1.weight": (c.dim, c.freq_dim),
        "blocks.0.ffn.fc1.bias": (c.ffn_dim,),
        "head.linear.weight": (token * c.out_dim, c.dim),
        "vace_patch_embedding.weight": vace,
        "img_emb.fc1.bias": () if c.clip_dim is None else (c.clip_dim,),
        "img_emb.pos_embedding": () if c.clip_positions is UNSET else (c.clip_positions,),
    }


def expected_t5(config: T5Config) -> Shapes:
    """Some shapes of the text encoder; the second axis of its matrices depends on their bits."""
    c = config
    return {
        "token_embedding.weight": (c.vocab, c.dim),
        "blocks.0.attn.q.weight": (c.attention_dim,),
        "blocks.0.ffn.gate.weight": (c.ffn_dim,),
        "blocks.0.position_bias": (c.buckets, c.heads),
    }


def expected_clip(config: CLIPConfig) -> Shapes:
    """Some shapes of CLIP's vision tower."""
    c = config
    inside = {"blocks.0.mlp.fc1.bias": (c.ffn_dim,)} if c.layers > 1 else {}
    return {
        "patch_embedding.weight": (c.dim, 3 * c.patch**2),
        "pos_embedding": (1 + (c.size // c.patch) ** 2, c.dim),
        **inside,
    }


def expected_decoder(config: VAEConfig) -> Shapes:
    """Some shapes of the VAE's decoder."""
    c = config
    return {
        "latent.weight": (c.z_dim, c.z_dim),
        "output.weight": (3 * c.patch_size**2, 3, 3, 3, c.decoder_dim),
    }


def expected_encoder(config: VAEConfig) -> Shapes:
    """Some shapes of the VAE's encoder."""
    c = config
    return {
        "latent.weight": (2 * c.z_dim, 2 * c.z_dim),
        "input.weight": (c.encoder_dim, 3, 3, 3, 3 * c.patch_size**2),
    }


EXPECTED: dict[str, Any] = {
    "t5_encoder": expected_t5,
    "vae": expected_decoder,
    "vae_encoder": expected_encoder,
    "clip": expected_clip,
    "model": expected_dit,
    "low_noise_model": expected_dit,
    "high_noise_model": expected_dit,
}
