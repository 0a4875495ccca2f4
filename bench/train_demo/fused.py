"""Fuses RMS norm over channels, SiLU and the padding with zero frames into one kernel.

The VAE spends most of its time between convolutions. On CUDA these steps and their gradient are one
Triton kernel each; elsewhere plain PyTorch computes the same function.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no CUDA build of PyTorch; the plain version is used
    triton = None


def norm_silu(x: Tensor, gamma: Tensor, scale: float, pad: int, act: bool = True) -> Tensor:
    """Map (B, T, Y, X, C) to (B, pad + T, Y, X, C); scale is the root of the unpadded channels."""
    if x.is_cuda and triton is not None and act:
        return _Fused.apply(x, gamma, scale, pad)
    return plain(x, gamma, scale, pad, act)


def plain(x: Tensor, gamma: Tensor, scale: float, pad: int, act: bool = True) -> Tensor:
    """Compute the same with plain PyTorch."""
    y = F.normalize(x.float(), dim=-1, eps=1e-12) * scale * gamma
    y = F.silu(y) if act else y
    return F.pad(y.to(x.dtype), (0, 0, 0, 0, 0, 0, pad, 0))


if triton is not None:

    @triton.jit
    def _forward(
        x,
        gamma,
        y,
        total,
        frames,
        area,
        scale,
        pad,
        C: tl.constexpr,
        P: tl.constexpr,
        R: tl.constexpr,
    ):
        rows = tl.program_id(0) * R + tl.arange(0, R)
        c = tl.arange(0, P)
        clip = rows // ((frames + pad) * area)
        rest = rows % ((frames + pad) * area) - pad * area
        known = ((rows < total) & (rest >= 0))[:, None] & (c < C)[None]
        source = (clip * frames * area + rest)[:, None] * C + c[None]
        v = tl.load(x + source, mask=known, other=0.0).to(tl.float32)
        g = tl.load(gamma + c, mask=c < C, other=0.0).to(tl.float32)
        size = tl.sqrt(tl.sum(v * v, axis=1))
        z = v * (scale / tl.maximum(size, 1e-12))[:, None] * g[None]
        out = z / (1 + tl.exp(-z))
        here = (rows < total)[:, None] & (c < C)[None]
        tl.store(y + rows[:, None] * C + c[None], out.to(y.dtype.element_ty), mask=here)

    @triton.jit
    def _backward(
        x,
        gamma,
        dy,
        dx,
        dgamma,
        total,
        frames,
        area,
        scale,
        pad,
        C: tl.constexpr,
        P: tl.constexpr,
        R: tl.constexpr,
    ):
        rows = tl.program_id(0) * R + tl.arange(0, R)
        c = tl.arange(0, P)
        clip = rows // (frames * area)
        here = (rows < total)[:, None] & (c < C)[None]
        place = rows[:, None] * C + c[None]
        v = tl.load(x + place, mask=here, other=0.0).to(tl.float32)
        g = tl.load(gamma + c, mask=c < C, other=0.0).to(tl.float32)
        d = tl.load(dy + place + ((clip + 1) * pad * area * C)[:, None], mask=here, other=0.0)
        inverse = 1 / tl.maximum(tl.sqrt(tl.sum(v * v, axis=1)), 1e-12)
        unit = v * inverse[:, None]
        z = unit * scale * g[None]
        gate = 1 / (1 + tl.exp(-z))
        dz = d.to(tl.float32) * gate * (1 + z * (1 - gate))
        tl.store(dgamma + tl.program_id(0) * C + c, tl.sum(dz * unit, axis=0) * scale, mask=c < C)
        dunit = dz * g[None] * scale
        along = tl.sum(dunit * unit, axis=1)
        out = (dunit - unit * along[:, None]) * inverse[:, None]
        tl.store(dx + place, out.to(dx.dtype.element_ty), mask=here)


class _Fused(torch.autograd.Function):
    """The two kernels as one differentiable function."""

    @staticmethod
    def forward(ctx, x: Tensor, gamma: Tensor, scale: float, pad: int) -> Tensor:
        x = x.contiguous()
        batch, frames, height, width, channels = x.shape
        y = x.new_empty(batch, frames + pad, height, width, channels)
        ctx.save_for_backward(x, gamma)
        ctx.scale, ctx.pad = scale, pad
        total, rows = y.numel() // channels, _rows(channels)
        sizes = {"C": channels, "P": _power(channels), "R": rows}
        _forward[((total + rows - 1) // rows,)](
            x, gamma, y, total, frames, height * width, scale, pad, **sizes
        )
        return y

    @staticmethod
    def backward(ctx, dy: Tensor):
        x, gamma = ctx.saved_tensors
        dy = dy.contiguous()
        frames, height, width, channels = x.shape[1:]
        total, rows = x.numel() // channels, _rows(channels)
        blocks = (total + rows - 1) // rows
        dx = torch.empty_like(x)
        dgamma = torch.empty(blocks, channels, dtype=torch.float32, device=x.device)
        args = (total, frames, height * width, ctx.scale, ctx.pad)
        _backward[(blocks,)](
            x, gamma, dy, dx, dgamma, *args, C=channels, P=_power(channels), R=rows
        )
        return dx, dgamma.sum(0).to(gamma.dtype), None, None


def _rows(channels: int) -> int:
    """Return the rows of one program, such that it works on about 4096 values."""
    return max(16, 4096 // _power(channels))


def _power(channels: int) -> int:
    """Round up to a power of two, which Triton requires of blocks."""
    return 1 << (channels - 1).bit_length()
