"""Trains the VAE of the demo, folds its latent statistics, and writes Wan2.1_VAE.pth.

    python -m bench.train_demo.train_vae --data data.npz --out OUT --seconds 330

Clips are drawn during training. The loss compares pixels and their differences. `--resume
OUT/vae.pt` continues from saved weights, without momentum; `--first` is its initial progress.
"""

from __future__ import annotations

import argparse
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.train_demo.data import Painter
from bench.train_demo.optim import Graph, Optimizer, Rates, clock, psnr
from bench.train_demo.vae_net import STD, Vae, fold, normalized
from wanpipe.demo import world

KL, OUTLINES, PICTURES = 3e-5, 1 / 8, 1 / 16  # weight of the loss; fractions of the clips


def is_kernel(name: str, p: Tensor) -> bool:
    """Return whether Muon trains a weight: every kernel except the first and the last."""
    ends = ("encoder.conv1.weight", "decoder.head.2.weight", "conv1.weight", "conv2.weight")
    return p.ndim >= 4 and name not in ends and not name.endswith("gamma")


def draw(rows: Tensor, painter: Painter, batch: int) -> Tensor:
    """Draw random clips; some as outlines, some as a picture followed by gray frames."""
    pick = rows[torch.randint(len(rows), (batch,), device=rows.device)]
    outline = (torch.rand(batch, 1, device=rows.device) < OUTLINES).float()
    clips = painter(torch.cat([pick[:, :-1], outline], 1))
    picture = torch.rand(batch, 1, 1, 1, 1, device=rows.device) < PICTURES
    later = torch.arange(world.FRAMES, device=rows.device)[None, :, None, None, None] > 0
    return torch.where(picture & later, 0.0, clips)


def loss_of(vae: Vae, clips: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the loss and the mean squared error."""
    mu, logvar = vae.moments(clips.to(dtype))
    z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
    off = vae.decode(z, dtype).float() - clips
    square = off.square().mean()
    slopes = off.diff(dim=2).abs().mean() + off.diff(dim=3).abs().mean()
    kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).mean()
    return off.abs().mean() + square + 0.5 * slopes + KL * kl, square.detach()


def train(vae: Vae, rows: Tensor, args: argparse.Namespace) -> None:
    """Train for args.seconds and print the error regularly."""
    device = rows.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    painter = Painter(device)
    rates = Rates(muon=args.muon, adam=1.5e-3, warmup=50, flat=0.3)
    optimizer = Optimizer(vae, rates, is_kernel)

    def step() -> Tensor:
        loss, square = loss_of(vae, draw(rows, painter, args.batch), dtype)
        norm = optimizer.step(list(torch.autograd.grad(loss, optimizer.params)))
        return torch.stack([loss.detach(), square, norm])

    optimizer.set_progress(0.0)
    begin = time.monotonic()
    graph = Graph(step, record=device.type == "cuda" and not args.eager)
    print(f"ready after {time.monotonic() - begin:.0f} s", flush=True)
    shown = saved = time.monotonic()
    for i, progress in clock(args.seconds, args.first):
        optimizer.set_progress(progress)
        now = graph()
        if i % 20 == 0 and time.monotonic() - shown > args.show:
            shown = time.monotonic()
            loss, square, norm = now.tolist()
            print(
                f"step {i} {progress:.2f} loss {loss:.4f} psnr {psnr(square):.2f} norm {norm:.2f}"
            )
            if not np.isfinite(loss):
                raise SystemExit("the loss is not finite; lower --muon")
            if shown - saved > 100:
                saved = shown
                torch.save(vae.state_dict(), args.out / "vae.pt")
    torch.save(vae.state_dict(), args.out / "vae.pt")
    print(f"{optimizer.count} steps", flush=True)


@torch.no_grad()
def measure(vae: Vae, device: torch.device, outline: bool = False) -> float:
    """Print the PSNR of held-out scenes, pooled, by shape and by motion."""
    painter, errors, words = Painter(device), [], []
    for i, (_, scene) in enumerate(world.test_prompts()):
        row = world.sample_row(scene, np.random.default_rng(9000 + i), outline)
        clips = painter(torch.from_numpy(row)[None].to(device))
        found = vae.decode(vae.moments(clips)[0]).clamp(-1, 1)
        errors.append((found - clips).square().mean().item())
        words.append((scene.shape, scene.motion))
    parts = {}
    for word in (*world.SHAPES, *world.MOTIONS):
        parts[word] = psnr(
            float(np.mean([e for e, w in zip(errors, words, strict=True) if word in w]))
        )
    total = psnr(float(np.mean(errors)))
    text = " ".join(f"{word} {value:.1f}" for word, value in parts.items())
    print(f"psnr {total:.2f} worst {psnr(max(errors)):.1f} outline {outline}: {text}", flush=True)
    return total


@torch.no_grad()
def statistics(vae: Vae, rows: Tensor, count: int = 2048) -> tuple[Tensor, Tensor]:
    """Return the mean and deviation of every latent channel over training clips."""
    painter = Painter(rows.device)
    means = torch.cat([vae.moments(painter(part))[0] for part in rows[:count].split(16)])
    flat = means.flatten(0, -2)
    return flat.mean(0), flat.std(0)


def rounded(state: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Return the weights in bfloat16 on the CPU, in the official order of keys."""
    return OrderedDict((k, v.detach().to("cpu", torch.bfloat16).clone()) for k, v in state.items())


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=330, help="Training time.")
    parser.add_argument("--first", type=float, default=0.0)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dim", type=int, default=12)
    parser.add_argument("--muon", type=float, default=0.02)
    parser.add_argument("--show", type=float, default=10, help="Seconds between lines.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--eager", action="store_true", help="Record no CUDA graph.")
    parser.add_argument("--count", type=int, default=2048, help="Clips for the statistics.")
    return parser.parse_args()


def main() -> None:
    """Train, measure, fold the statistics, and measure the shipped weights."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = torch.from_numpy(np.load(args.data)["rows"]).to(device)
    vae = Vae(args.dim).to(device)
    if args.resume:
        vae.load_state_dict(torch.load(args.resume, map_location=device))
    print(f"{sum(p.numel() for p in vae.parameters())} parameters", flush=True)
    train(vae, rows, args)
    torch.backends.cudnn.benchmark = False
    measure(vae, device)
    mean, std = statistics(vae, rows, args.count)
    print("mean", [round(x, 2) for x in mean.tolist()], "std", [round(x, 2) for x in std.tolist()])
    fold(vae, mean, std)
    state = rounded(vae.state_dict())
    torch.save(state, args.out / "Wan2.1_VAE.pth")
    vae.load_state_dict({k: v.float() for k, v in state.items()})
    measure(vae, device)
    measure(vae, device, outline=True)
    mean, std = statistics(vae, rows, args.count // 4)
    off, spread = normalized(mean).abs().max().item(), (std / std.new_tensor(STD)).tolist()
    print(f"folded: mean within {off:.3f}, std {min(spread):.3f} to {max(spread):.3f}", flush=True)


if __name__ == "__main__":
    main()
