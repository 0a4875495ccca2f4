"""Makes videos of the 50 test prompts with PyTorch, and scores them with the judge.

    python -m bench.train_demo.evaluate --checkpoints wanpipe/demo/checkpoints [--count 50]

Loads the shipped files. The training programs call `table` with their own networks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.train_demo import judge, world
from bench.train_demo.data import NEGATIVE, Painter, encode
from bench.train_demo.sampler import Settings, sample
from bench.train_demo.vae_net import Vae, normalized, restored
from bench.train_demo.wan_net import T5, Dit, DitConfig

NAMES = ("color", "shape", "motion", "speed", "background", "all")


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The networks of one model; `high` is the expert at and above the boundary."""

    t5: T5
    vae: Vae
    low: Dit
    high: Dit | None = None
    boundary: float = 0.875

    def velocity(self, x: Tensor, t: Tensor, text: Tensor, y: Tensor | None) -> Tensor:
        """Run the expert for the timestep; y is the image condition (B, 20, F, H, W)."""
        high = self.high is not None and float(t[0]) >= self.boundary * 1000
        dit = self.high if high and self.high is not None else self.low
        return dit(x if y is None else torch.cat([x, y], 1), t, text)


def noise(seeds: Sequence[int], device: torch.device) -> Tensor:
    """Draw the initial noise of each video from its own seed, (B, 16, F, H, W)."""
    shape = (16, (world.FRAMES - 1) // 4 + 1, world.SIZE // 8, world.SIZE // 8)
    draws = [np.random.Generator(np.random.Philox(s)).standard_normal(shape) for s in seeds]
    return torch.from_numpy(np.stack(draws).astype(np.float32)).to(device)


@torch.no_grad()
def make_videos(
    model: Networks,
    ids: Tensor,
    negative: Tensor,
    start: Tensor,
    s: Settings,
    y: Tensor | None = None,
) -> np.ndarray:
    """Sample and decode ids (B, L) with negative ids (1, L); returns uint8 (B, T, Y, X, 3)."""
    text, empty = model.t5(ids), model.t5(negative).expand(len(ids), -1, -1)
    both = torch.cat([text, empty])
    yy = None if y is None else torch.cat([y, y])

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        if s.guidance == 1:
            return model.velocity(x, t, text, y)
        two = model.velocity(torch.cat([x, x]), torch.cat([t, t]), both, yy)
        with_text, without = two.chunk(2)
        return without + s.guidance * (with_text - without)

    latent = sample(velocity, start, s).permute(0, 2, 3, 4, 1)
    parts = [model.vae.decode(restored(z)).clamp(-1, 1) for z in latent.split(10)]
    frames = ((torch.cat(parts) + 1) * 127.5).round()
    return frames.to(torch.uint8).cpu().numpy()


@torch.no_grad()
def condition(vae: Vae, images: Tensor) -> Tensor:
    """Encode images (B, Y, X, 3) in -1 to 1 as the condition of I2V, (B, 20, F, H, W)."""
    clips = images.new_zeros(len(images), world.FRAMES, *images.shape[1:])
    clips[:, 0] = images
    latents = torch.cat([normalized(vae.moments(part)[0]) for part in clips.split(16)])
    latents = latents.permute(0, 4, 1, 2, 3)
    mask = torch.zeros_like(latents[:, :4])
    mask[:, :, 0] = 1
    return torch.cat([mask, latents], 1)


def table(
    name: str, clips: np.ndarray, scenes: list[world.Scene], pool: Executor | None = None
) -> dict[str, float]:
    """Score clips, print the shares and the misses on one line, and return the shares."""
    run: Callable = pool.map if pool else map
    scores = list(run(judge.score, clips, scenes))
    shares = {}
    for key in NAMES:
        known = [s[key] for s in scores if s[key] is not None]
        shares[key] = sum(known) / max(len(known), 1)
    line = " | ".join(f"{shares[key]:.2f}" for key in NAMES)
    wrong = [
        f"{sc.shape} {sc.motion} {sc.speed}: " + ",".join(k for k in NAMES if s[k] is False)
        for s, sc in zip(scores, scenes, strict=True)
        if False in s.values()
    ]
    print(f"| {name} | {line} |  {'; '.join(wrong)}", flush=True)
    return shares


def load(folder: Path, device: torch.device) -> tuple[T5, Vae]:
    """Load the text encoder and the VAE from a folder in the official layout."""
    state = torch.load(folder / "models_t5_umt5-xxl-enc-bf16.pth", map_location=device)
    vocab, dim = state["token_embedding.weight"].shape
    ffn, heads = (
        state["blocks.0.ffn.fc1.weight"].shape[0],
        state["blocks.0.pos_embedding.embedding.weight"].shape[1],
    )
    layers = len([k for k in state if k.endswith("norm1.weight")])
    t5 = T5(vocab, dim, ffn, heads, layers).to(device)
    t5.load_state_dict({k: v.float() for k, v in state.items()})
    return t5.eval(), load_vae(folder / "Wan2.1_VAE.pth", device)


def load_vae(path: Path, device: torch.device) -> Vae:
    """Load a VAE file of any width."""
    state = torch.load(path, map_location=device)
    vae = Vae(len(state["encoder.conv1.weight"])).to(device)
    vae.load_state_dict({k: v.float() for k, v in state.items()})
    return vae.eval()


def load_dit(folder: Path, device: torch.device, lora: Path | None = None, strength=1.0) -> Dit:
    """Load a transformer, with a merged LoRA if one is given."""
    fields = json.loads((folder / "config.json").read_text())
    dit = Dit(DitConfig(**{k: v for k, v in fields.items() if k in DitConfig.__annotations__}))
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    state = {k: v.float() for k, v in state.items()}
    if lora:
        parts = {k: v.float() for k, v in load_file(lora).items()}
        for key in [k for k in parts if k.endswith(".alpha")]:
            module = key.removesuffix(".alpha")
            up, down = parts[f"{module}.lora_up.weight"], parts[f"{module}.lora_down.weight"]
            delta = up @ down * (strength * parts[key] / len(down))
            state[module.removeprefix("diffusion_model.") + ".weight"] += delta
    dit.load_state_dict(state)
    return dit.to(device).eval()


def first_frames(device: torch.device) -> tuple[Tensor, list[world.Scene]]:
    """Draw the first frames of the test scenes, (B, Y, X, 3) in -1 to 1."""
    scenes = [scene for _, scene in world.test_prompts()]
    rows = [world.sample_row(s, np.random.default_rng(500 + i)) for i, s in enumerate(scenes)]
    return Painter(device)(torch.from_numpy(np.stack(rows)).to(device))[:, 0], scenes


def first_psnr(clips: np.ndarray, images: Tensor) -> str:
    """Format the pooled and the worst PSNR of first frames against the given images."""
    given = ((images.cpu().numpy() + 1) * 127.5).round()
    errors = ((clips[:, 0].astype(np.float32) - given) ** 2).mean((1, 2, 3))
    pooled, worst = (10 * np.log10(255**2 / e) for e in (errors.mean(), errors.max()))
    return f"first frame {pooled:.1f} dB, worst {worst:.1f}"


def main() -> None:
    """Score the shipped models."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--sheets", type=Path, help="Folder for the videos as .npy.")
    parser.add_argument("--settings", nargs="*", default=["unipc,20,2,5"])
    parser.add_argument("--models", nargs="*", default=["t2v", "pair", "i2v", "lora"])
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    root = args.checkpoints
    t5, vae = load(root / "t2v", device)
    prompts = world.test_prompts()[: args.count]
    ids = encode(
        root / "t2v/google/umt5-xxl/tokenizer.json", [NEGATIVE, *(text for text, _ in prompts)]
    )
    ids = torch.from_numpy(ids).long().to(device)
    start = noise(range(args.seed, args.seed + len(prompts)), device)
    low = load_dit(root / "t2v", device)
    models = {"t2v": Networks(t5=t5, vae=vae, low=low)}
    for name, folder, boundary in (("pair", "t2v-a14b", 0.875), ("i2v", "i2v-a14b", 0.9)):
        if (root / folder).exists():
            pair = [load_dit(root / folder / f"{n}_noise_model", device) for n in ("low", "high")]
            models[name] = Networks(t5=t5, vae=vae, low=pair[0], high=pair[1], boundary=boundary)
    if (root / "lora").exists():
        styled = load_dit(root / "t2v", device, root / "lora/outline.safetensors")
        models["lora"] = replace(models["t2v"], low=styled)
    for name in [n for n in args.models if n in models]:
        images, _ = first_frames(device)
        y = condition(vae, images[: len(prompts)]) if name == "i2v" else None
        for text in args.settings:
            solver, steps, guidance, shift = text.split(",")
            s = Settings(
                solver=solver, steps=int(steps), guidance=float(guidance), shift=float(shift)
            )
            clips = make_videos(models[name], ids[1:], ids[:1], start, s, y)
            table(f"{name} {text}", clips, [scene for _, scene in prompts])
            if name == "i2v":
                print(first_psnr(clips, images[: len(prompts)]))
            if name == "lora":
                print("outlined", np.mean([judge.look(c).outline for c in clips]))
            if args.sheets:
                np.save(args.sheets / f"{name}-{text.replace(',', '-')}.npy", clips)


if __name__ == "__main__":
    main()
