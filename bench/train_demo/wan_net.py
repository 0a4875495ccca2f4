"""The umT5 encoder and the Wan transformer in PyTorch for training, official key names.

Shapes: B batch, L tokens, N heads, D head width, F H W latent frames, rows, columns. Latents are
channels first, (B, C, F, H, W), as the checkpoint's patch embedding wants them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class DitConfig:
    """Dimensions of a transformer, named as in config.json."""

    dim: int = 160
    ffn_dim: int = 352
    num_heads: int = 5
    num_layers: int = 6
    in_dim: int = 16
    out_dim: int = 16
    freq_dim: int = 256
    text_dim: int = 96
    text_len: int = 64
    eps: float = 1e-6
    vace_layers: tuple[int, ...] = ()  # main blocks that a VACE block follows
    vace_in_dim: int = 96

    def official(self) -> dict:
        """Return the content of config.json."""
        kind = "i2v" if self.in_dim == 36 else "t2v"
        head = {"_class_name": "WanModel", "_diffusers_version": "0.33.0"}
        fields = asdict(self)
        if self.vace_layers:
            kind, head = "vace", {"_class_name": "VaceWanModel", "_diffusers_version": "0.30.0"}
        else:
            del fields["vace_layers"], fields["vace_in_dim"]
        return dict(sorted({**head, **fields, "model_type": kind}.items()))


class T5Block(nn.Module):
    """Self attention with its own position table, then a gated feed forward."""

    def __init__(self, dim: int, ffn: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(dim, 1e-6), nn.RMSNorm(dim, 1e-6)
        self.attn = nn.ModuleDict({n: nn.Linear(dim, dim, bias=False) for n in "qkvo"})
        gate = nn.Sequential(nn.Linear(dim, ffn, bias=False))
        parts = {"fc1": nn.Linear(dim, ffn, bias=False), "fc2": nn.Linear(ffn, dim, bias=False)}
        self.ffn = nn.ModuleDict({"gate": gate, **parts})
        self.pos_embedding = nn.ModuleDict({"embedding": nn.Embedding(32, heads)})
        nn.init.normal_(self.attn["q"].weight, std=dim**-0.5 * (dim // heads) ** -0.25)
        nn.init.normal_(self.attn["k"].weight, std=dim**-0.5 * (dim // heads) ** -0.25)
        nn.init.normal_(self.pos_embedding["embedding"].weight, std=0.1)

    def forward(self, x: Tensor, mask: Tensor, buckets: Tensor) -> Tensor:
        batch, length, dim = x.shape
        h = self.norm1(x)
        q, k, v = (
            self.attn[n](h).view(batch, length, self.heads, -1).transpose(1, 2) for n in "qkv"
        )
        bias = (
            look_up(self.pos_embedding["embedding"].weight, buckets).permute(2, 0, 1)[None] + mask
        )
        h = F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype), scale=1.0)
        x = x + self.attn["o"](h.transpose(1, 2).reshape(batch, length, dim))
        h = self.norm2(x)
        gate = F.gelu(self.ffn["gate"](h), approximate="tanh")
        return x + self.ffn["fc2"](self.ffn["fc1"](h) * gate)


class T5(nn.Module):
    """Maps token ids (B, L) to text rows (B, L, D), which are 0 after the end of a text."""

    def __init__(self, vocab: int, dim: int = 96, ffn: int = 192, heads: int = 4, layers: int = 2):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab, dim)
        self.blocks = nn.ModuleList(T5Block(dim, ffn, heads) for _ in range(layers))
        self.norm = nn.RMSNorm(dim, 1e-6)

    def forward(self, ids: Tensor) -> Tensor:
        known = ids != 0
        x = look_up(self.token_embedding.weight, ids)
        mask = torch.where(known, 0.0, torch.finfo(torch.bfloat16).min)[:, None, None, :]
        buckets = relative_buckets(ids.shape[1], ids.device)
        for block in self.blocks:
            x = block(x, mask, buckets)
        return self.norm(x) * known[..., None]


def look_up(table: Tensor, ids: Tensor) -> Tensor:
    """Look up rows by a matrix product, because a CUDA graph can record its gradient."""
    return (ids[..., None] == torch.arange(len(table), device=ids.device)).to(table.dtype) @ table


def relative_buckets(length: int, device: torch.device) -> Tensor:
    """Return the bucket of every (query, key) pair, (L, L): 32, bidirectional, up to 128."""
    at = torch.arange(length, device=device)
    offset = at[None] - at[:, None]
    far = offset.abs().clamp(min=1).float()
    large = 8 + (torch.log(far / 8) / math.log(128 / 8) * 8).long()
    bucket = torch.where(offset.abs() < 8, offset.abs(), large.clamp(max=15))
    return (offset > 0).long() * 16 + bucket


def rope_table(grid: tuple[int, int, int], width: int, device: torch.device) -> Tensor:
    """Return cosines and sines of every token, (2, 1, L, 1, D/2), float32."""
    axes = (width - 4 * (width // 6), 2 * (width // 6), 2 * (width // 6))
    places = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [
        place.reshape(-1, 1) / 10000 ** (torch.arange(0, d, 2, dtype=torch.float64) / d)
        for place, d in zip(places, axes, strict=True)
    ]
    angle = torch.cat(angles, 1)[None, :, None]
    return torch.stack([angle.cos(), angle.sin()]).float().to(device)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate adjacent pairs of (B, L, N, D) by the angles of the table."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rope[0], rope[1]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


class Attn(nn.Module):
    """Attention with query and key norms over the full width."""

    def __init__(self, dim: int, heads: int, eps: float):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(dim, eps), nn.RMSNorm(dim, eps)

    def forward(self, x: Tensor, source: Tensor, rope: Tensor | None) -> Tensor:
        q = self.norm_q(self.q(x).float()).unflatten(-1, (self.heads, -1))
        k = self.norm_k(self.k(source).float()).unflatten(-1, (self.heads, -1))
        v = self.v(source).unflatten(-1, (self.heads, -1))
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        q, k = q.to(v.dtype), k.to(v.dtype)
        h = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)))
        return self.o(h.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self attention, cross attention and feed forward, modulated by the time embedding."""

    def __init__(self, c: DitConfig):
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 6, c.dim) / c.dim**0.5)
        self.self_attn = Attn(c.dim, c.num_heads, c.eps)
        self.cross_attn = Attn(c.dim, c.num_heads, c.eps)
        self.norm3 = nn.LayerNorm(c.dim, c.eps)
        up, down = nn.Linear(c.dim, c.ffn_dim), nn.Linear(c.ffn_dim, c.dim)
        self.ffn = nn.Sequential(up, nn.GELU("tanh"), down)

    def forward(self, x: Tensor, e: Tensor, text: Tensor, rope: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + e).chunk(6, 1)
        width = (x.shape[-1],)
        h = F.layer_norm(x, width, eps=1e-6) * (1 + scale1) + shift1
        x = x + self.self_attn(h, h, rope).float() * gate1
        x = x + self.cross_attn(self.norm3(x), text, None).float()
        h = F.layer_norm(x, width, eps=1e-6) * (1 + scale2) + shift2
        return x + self.ffn(h).float() * gate2


class VaceBlock(Block):
    """A block on the context; its projected output is a hint for a block of the main network."""

    def __init__(self, c: DitConfig, first: bool):
        super().__init__(c)
        self.before_proj = nn.Linear(c.dim, c.dim) if first else None
        self.after_proj = nn.Linear(c.dim, c.dim)

    def hint(self, x: Tensor) -> Tensor:
        return self.after_proj(x).float()


class Head(nn.Module):
    """The last norm and projection."""

    def __init__(self, c: DitConfig):
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 2, c.dim) / c.dim**0.5)
        self.head = nn.Linear(c.dim, 4 * c.out_dim)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        shift, scale = (self.modulation + e[:, None]).chunk(2, 1)
        return self.head(F.layer_norm(x, (x.shape[-1],), eps=1e-6) * (1 + scale) + shift)


class Dit(nn.Module):
    """Predicts the velocity of a latent (B, C, F, H, W) at timesteps (B,), given text rows."""

    def __init__(self, c: DitConfig):
        super().__init__()
        self.config = c
        self.patch_embedding = nn.Conv3d(c.in_dim, c.dim, (1, 2, 2), (1, 2, 2))
        self.text_embedding = mlp(c.text_dim, c.dim, nn.GELU("tanh"))
        self.time_embedding = mlp(c.freq_dim, c.dim, nn.SiLU())
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(c.dim, 6 * c.dim))
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.num_layers))
        self.head = Head(c)
        self.vace_blocks = nn.ModuleList(VaceBlock(c, i == 0) for i in range(len(c.vace_layers)))
        if c.vace_layers:
            self.vace_patch_embedding = nn.Conv3d(c.vace_in_dim, c.dim, (1, 2, 2), (1, 2, 2))
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.ndim == 2 and "embedding" not in name and not name.startswith("head"):
                nn.init.xavier_uniform_(p)
        for layer in (self.text_embedding, self.time_embedding):
            nn.init.normal_(layer[0].weight, std=0.05)
        for block in self.vace_blocks:
            nn.init.zeros_(block.after_proj.weight)  # the hints start at 0
        self.ropes: dict[tuple, Tensor] = {}

    def forward(
        self, x: Tensor, t: Tensor, text: Tensor, context: Tensor | None = None, scale: float = 1.0
    ) -> Tensor:
        """Run the network; `context` (B, 96, F, H, W) is VACE's, `scale` multiplies its hints."""
        batch, _, frames, height, width = x.shape
        grid, c = (frames, height // 2, width // 2), self.config
        key = (*grid, x.device)
        if key not in self.ropes:
            self.ropes[key] = rope_table(grid, c.dim // c.num_heads, x.device)
        x = patches(x, self.patch_embedding)
        e = self.time_embedding(sinusoid(t, c.freq_dim)).float()
        six = self.time_projection(e).float().unflatten(1, (6, c.dim))
        text = F.pad(text, (0, 0, 0, c.text_len - text.shape[1]))
        text = self.text_embedding(text)
        if context is not None:
            context = self.vace_blocks[0].before_proj(patches(context, self.vace_patch_embedding))
            context = context.float() + x
        for i, block in enumerate(self.blocks):
            x = block(x, six, text, self.ropes[key])
            if context is not None and i in c.vace_layers:
                vace = self.vace_blocks[c.vace_layers.index(i)]
                context = vace(context, six, text, self.ropes[key])
                x = x + vace.hint(context) * scale
        x = self.head(x, e).float().reshape(batch, *grid, 2, 2, c.out_dim)
        x = x.permute(0, 6, 1, 2, 4, 3, 5)  # (B, C, F, H/2, 2, W/2, 2)
        return x.reshape(batch, c.out_dim, frames, height, width)


def patches(x: Tensor, embedding: nn.Conv3d) -> Tensor:
    """Embed patches of 2x2 latent pixels of (B, C, F, H, W); returns (B, L, D)."""
    batch, channels, frames, height, width = x.shape
    x = x.reshape(batch, channels, frames, height // 2, 2, width // 2, 2)
    x = x.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)  # (B, L, C*4)
    return F.linear(x, embedding.weight.flatten(1), embedding.bias).float()


def mlp(cin: int, dim: int, act: nn.Module) -> nn.Sequential:
    """Make the two-layer embedding of text or time."""
    return nn.Sequential(nn.Linear(cin, dim), act, nn.Linear(dim, dim))


def sinusoid(t: Tensor, width: int) -> Tensor:
    """Embed timesteps: cosines, then sines."""
    half = width // 2
    rate = 10000 ** (-torch.arange(half, device=t.device, dtype=torch.float64) / half)
    angle = t.double()[:, None] * rate
    return torch.cat([angle.cos(), angle.sin()], 1).float()


def is_matrix(name: str, p: Tensor) -> bool:
    """Return whether Muon trains a weight: attention and feed forward."""
    return p.ndim == 2 and "blocks." in name and "embedding" not in name
