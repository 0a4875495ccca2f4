"""The Wan2.1 VAE in PyTorch for training: whole clips at once, official key names.

With causal zero padding a whole clip gives what the official chunked code gives. Activations are
(B, T, Y, X, C); channels are padded to multiples of 8 with zeros, which tensor cores need.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.train_demo.fused import norm_silu

MULT, BLOCKS, SHRINK_TIME = (1, 2, 4, 4), 2, (False, True, True)
MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


def padded(channels: int) -> int:
    """Round a channel count up to a multiple of 8."""
    return -(-channels // 8) * 8


class Conv(nn.Module):
    """A convolution on (B, T, Y, X, C) with the official weight layout."""

    def __init__(self, cin: int, cout: int, kernel: tuple[int, ...], stride=1, causal=True):
        super().__init__()
        fan = cin * math.prod(kernel)
        self.weight = nn.Parameter(torch.randn(cout, cin, *kernel) / math.sqrt(fan))
        self.bias = nn.Parameter(torch.zeros(cout))
        self.stride, self.causal = stride, causal

    def forward(self, x: Tensor, front: bool = True) -> Tensor:
        """Convolve; `front` pads x with the zero frames of a causal kernel."""
        cout, cin, *kernel = self.weight.shape
        w = self.weight.to(x.dtype)
        b = F.pad(self.bias.to(x.dtype), (0, padded(cout) - cout))
        w = F.pad(w, (0, 0) * len(kernel) + (0, x.shape[-1] - cin, 0, padded(cout) - cout))
        if all(k == 1 for k in kernel):
            return F.linear(x, w.flatten(1), b)
        if len(kernel) == 2:
            return self.flat(x, w, b)
        if front and kernel[0] == 3:
            x = F.pad(x, (0, 0, 0, 0, 0, 0, 2, 0))
        x = x.permute(0, 4, 1, 2, 3)
        w = w.contiguous(memory_format=torch.channels_last_3d)
        space = (0, kernel[1] // 2, kernel[2] // 2)
        y = F.conv3d(x, w, b, stride=self.stride, padding=space)
        return y.permute(0, 2, 3, 4, 1)

    def flat(self, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        """Convolve each frame; stride 2 pads one row below and one column on the right."""
        batch, frames = x.shape[:2]
        x = x.flatten(0, 1).permute(0, 3, 1, 2)
        if self.stride == 2:
            y = F.conv2d(F.pad(x, (0, 1, 0, 1)), w, b, stride=2)
        else:
            y = F.conv2d(x, w.contiguous(memory_format=torch.channels_last), b, padding=1)
        return y.permute(0, 2, 3, 1).unflatten(0, (batch, frames))


class Norm(nn.Module):
    """RMS norm over channels, followed by SiLU and causal padding."""

    def __init__(self, channels: int, dims: int = 3):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * dims))

    def forward(self, x: Tensor, pad: int = 2, act: bool = True) -> Tensor:
        real = len(self.gamma)
        gamma = F.pad(self.gamma.flatten(), (0, x.shape[-1] - real))
        return norm_silu(x, gamma, math.sqrt(real), pad, act)


class Residual(nn.Module):
    """Two normed convolutions and a shortcut."""

    def __init__(self, cin: int, cout: int):
        super().__init__()
        parts = {"0": Norm(cin), "2": Conv(cin, cout, (3, 3, 3))}
        parts |= {"3": Norm(cout), "6": Conv(cout, cout, (3, 3, 3))}
        self.residual = nn.ModuleDict(parts)
        self.shortcut = Conv(cin, cout, (1, 1, 1)) if cin != cout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.residual["2"](self.residual["0"](x), front=False)
        h = self.residual["6"](self.residual["3"](h), front=False)
        return self.shortcut(x) + h


class Attention(nn.Module):
    """Attention with one head over the pixels of each frame."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = Norm(channels, dims=2)
        self.to_qkv = Conv(channels, channels * 3, (1, 1))
        self.proj = Conv(channels, channels, (1, 1))
        nn.init.zeros_(self.proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        batch, frames, height, width, channels = x.shape
        real = self.proj.weight.shape[0]
        q, k, v = self.to_qkv(self.norm(x, pad=0, act=False))[..., : 3 * real].chunk(3, -1)
        q, k, v = (part.reshape(batch * frames, 1, height * width, real) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v).reshape(batch, frames, height, width, real)
        return x + self.proj(F.pad(out, (0, channels - real)))


class Resample(nn.Module):
    """Halve or double the resolution, and with `time` the frames after the first."""

    def __init__(self, channels: int, up: bool, time: bool):
        super().__init__()
        self.up = up
        space = Conv(channels, channels // 2 if up else channels, (3, 3), stride=1 if up else 2)
        self.resample = nn.ModuleDict({"1": space})
        if time:
            cout = channels * 2 if up else channels
            self.time_conv = Conv(channels, cout, (3, 1, 1), stride=1 if up else (2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if not self.up:
            x = self.resample["1"](x)
            if not hasattr(self, "time_conv") or x.shape[1] == 1:
                return x
            return torch.cat([x[:, :1], self.time_conv(x, front=False)], 1)
        if hasattr(self, "time_conv") and x.shape[1] > 1:
            real, channels = self.time_conv.weight.shape[1], x.shape[-1]
            y = self.time_conv(x[:, 1:])[..., : 2 * real]
            y = F.pad(y.unflatten(-1, (2, real)), (0, channels - real))  # (B, T-1, Y, X, 2, C)
            y = y.permute(0, 1, 4, 2, 3, 5).flatten(1, 2)
            x = torch.cat([x[:, :1], y], 1)
        return self.resample["1"](doubled(x))


def doubled(x: Tensor) -> Tensor:
    """Repeat every pixel as a 2x2 square."""
    batch, frames, height, width, channels = x.shape
    x = x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2, -1)
    return x.reshape(batch, frames, height * 2, width * 2, channels)


class Stack(nn.Module):
    """Encoder or decoder: a first convolution, stages, a middle and a head."""

    def __init__(self, dim: int, z: int, encode: bool):
        super().__init__()
        self.encode = encode
        dims = [dim * m for m in ((1, *MULT) if encode else (MULT[-1], *MULT[::-1]))]
        self.conv1 = Conv(3 if encode else z, dims[0], (3, 3, 3))
        stages: list[nn.Module] = []
        for i, (cin, cout) in enumerate(pairwise(dims)):
            cin = cin if encode or i == 0 else cin // 2
            for _ in range(BLOCKS + (not encode)):
                stages.append(Residual(cin, cout))
                cin = cout
            if i + 1 < len(MULT):
                time = (SHRINK_TIME if encode else SHRINK_TIME[::-1])[i]
                stages.append(Resample(cout, up=not encode, time=time))
        middle = dims[-1] if encode else dims[0]
        self.middle = nn.Sequential(
            Residual(middle, middle), Attention(middle), Residual(middle, middle)
        )
        self.downsamples = nn.Sequential(*stages) if encode else None
        self.upsamples = nn.Sequential(*stages) if not encode else None
        last = Conv(dims[-1], z * 2 if encode else 3, (3, 3, 3))
        self.head = nn.ModuleDict({"0": Norm(dims[-1]), "2": last})

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.middle(self.downsamples(x)) if self.encode else self.upsamples(self.middle(x))
        return self.head["2"](self.head["0"](x), front=False)


class Vae(nn.Module):
    """Maps clips (B, T, Y, X, 3) in -1 to 1 to latents (B, F, H, W, 16), and back."""

    def __init__(self, dim: int = 12, z: int = 16):
        super().__init__()
        self.encoder, self.decoder = Stack(dim, z, True), Stack(dim, z, False)
        self.conv1, self.conv2 = Conv(z * 2, z * 2, (1, 1, 1)), Conv(z, z, (1, 1, 1))
        with torch.no_grad():  # without a sharp initial posterior, the latent collapses
            for conv in (self.conv1, self.conv2):
                conv.weight.copy_(torch.eye(len(conv.weight))[..., None, None, None])
            self.encoder.head["2"].weight[z:] *= 0.1
            self.conv1.bias[z:] = -5.0

    def moments(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latent, float32."""
        x = F.pad(clips, (0, padded(3) - 3))
        return self.conv1(self.encoder(x).float()).chunk(2, -1)

    def decode(self, z: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Decode a latent to a clip, without clamping."""
        return self.decoder(self.conv2(z.float()).to(dtype))[..., :3]


def fold(vae: Vae, mean: Tensor, std: Tensor) -> None:
    """Change conv1 and conv2 so that latents with these statistics get the official ones."""
    a = torch.tensor(STD, device=std.device) / std
    b = torch.tensor(MEAN, device=std.device) - mean * a
    z, one = len(a), (slice(None), None, None, None, None)
    with torch.no_grad():
        vae.conv1.weight[:z] *= a[one]
        vae.conv1.bias[:z] = vae.conv1.bias[:z] * a + b
        vae.conv1.bias[z:] += 2 * a.log()
        vae.conv2.bias -= vae.conv2.weight.flatten(1) @ (b / a)
        vae.conv2.weight /= a[None, :, None, None, None]


def normalized(mu: Tensor) -> Tensor:
    """Apply the constants of the official wrapper to (..., 16)."""
    return (mu - torch.tensor(MEAN, device=mu.device)) / torch.tensor(STD, device=mu.device)


def restored(latent: Tensor) -> Tensor:
    """Undo `normalized`."""
    return latent * torch.tensor(STD, device=latent.device) + torch.tensor(
        MEAN, device=latent.device
    )
