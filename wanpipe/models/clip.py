"""CLIP's vision tower without its last block: the image tokens that Wan2.1 I2V attends to.

Takes one image at a time. Source: wan/modules/clip.py, `VisionTransformer`.
"""

import mlx.core as mx
import mlx.nn as nn

from wanpipe.models.config import CLIPConfig
from wanpipe.models.layers import (
    MLP,
    Linear,
    attend,
    gelu_exact,
    layer_norm,
    matmul_dtype,
    split_heads,
    to_patches,
)
from wanpipe.runtime import interrupt

EPS = 1e-5  # of all norms


class Attention(nn.Module):
    """Attention among the image tokens (`SelfAttention`)."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = Linear(config.dim, 3 * config.dim)
        self.o = Linear(config.dim, config.dim)

    def __call__(self, x: mx.array) -> mx.array:
        q, k, v = (split_heads(part, self.heads) for part in mx.split(self.qkv(x), 3, axis=-1))
        return self.o(attend(q, k, v).squeeze(0))


class Block(nn.Module):
    """Attention and feed-forward with pre-norm on a float32 stream (`AttentionBlock`)."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, EPS)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.dim, EPS)
        self.mlp = MLP(config.dim, config.ffn_dim, config.dim, gelu_exact)

    def __call__(self, x: mx.array) -> mx.array:
        dtype = matmul_dtype(self.attn.qkv)
        x = x + self.attn(layer_norm(x, self.norm1, dtype))
        return x + self.mlp(layer_norm(x, self.norm2, dtype))


class CLIP(nn.Module):
    """Encode an image to tokens, with one block less than `config.layers`."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        tokens = 1 + (config.size // config.patch) ** 2
        self.patch_embedding = Linear(3 * config.patch**2, config.dim, bias=False)
        self.cls_embedding = mx.zeros((config.dim,))
        self.pos_embedding = mx.zeros((tokens, config.dim))
        self.pre_norm = nn.LayerNorm(config.dim, EPS)
        self.blocks = [Block(config) for _ in range(config.layers - 1)]

    def __call__(self, image: mx.array) -> mx.array:
        """Encode an image (Y, X, 3) from `image.clip_pixels` to tokens (257, D), float32."""
        patch = self.config.patch
        video = image.astype(mx.float32).transpose(2, 0, 1)[:, None]  # (C, F, H, W)
        x = self.patch_embedding(to_patches(video, (1, patch, patch)))
        x = mx.concatenate([self.cls_embedding[None], x]) + self.pos_embedding
        x = layer_norm(x, self.pre_norm, mx.float32)
        for block in self.blocks:
            interrupt.check()
            x = block(x)
            mx.eval(x)
        return x
