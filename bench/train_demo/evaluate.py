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

from bench.train_demo import judge
from bench.train_demo.data import NEGATIVE, encode
from bench.train_demo.sampler import Settings, sample
from bench.train_demo.vae_net import Vae, restored
from bench.train_demo.verdict import NAMES
from bench.train_demo.wan_net import T5, Dit, DitConfig
from wanpipe.demo import world

MODULE = "vace_module.safetensors"  # the file of the VACE weights


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The networks of one model; `high` is the expert at and above the boundary."""

    t5: T5
    vae: Vae
    low: Dit
    high: Dit | None = None
    boundary: float = 0.875

    def velocity(self, x: Tensor, t: Tensor, text: Tensor, given: Tensor | None) -> Tensor:
        """Run the expert for the timestep; see `make_videos` for what may be given."""
        high = self.high is not None and float(t[0]) >= self.boundary * 1000
        dit = self.high if high and self.high is not None else self.low
        if dit.config.vace_layers:
            return dit(x, t, text, given)
        return dit(x if given is None else torch.cat([x, given], 1), t, text)


def noise(seeds: Sequence[int], device: torch.device, references: int = 0) -> Tensor:
    """Draw the initial noise of each video from its own seed, (B, 16, R + F, H, W)."""
    frames = references + (world.FRAMES - 1) // 4 + 1
    shape = (16, frames, world.SIZE // 8, world.SIZE // 8)
    draws = [np.random.Generator(np.random.Philox(s)).standard_normal(shape) for s in seeds]
    return torch.from_numpy(np.stack(draws).astype(np.float32)).to(device)


@torch.no_grad()
def make_videos(
    model: Networks,
    ids: Tensor,
    negative: Tensor,
    start: Tensor,
    s: Settings,
    given: Tensor | None = None,
) -> np.ndarray:
    """Sample and decode ids (B, L) with negative ids (1, L); returns uint8 (B, T, Y, X, 3).

    `given` is the condition of I2V (B, 20, F, H, W) or VACE's context (B, 96, R + F, H, W).
    """
    text, empty = model.t5(ids), model.t5(negative).expand(len(ids), -1, -1)
    both = torch.cat([text, empty])
    twice = None if given is None else torch.cat([given, given])

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        if s.guidance == 1:
            return model.velocity(x, t, text, given)
        two = model.velocity(torch.cat([x, x]), torch.cat([t, t]), both, twice)
        with_text, without = two.chunk(2)
        return without + s.guidance * (with_text - without)

    references = start.shape[2] - (world.FRAMES - 1) // 4 - 1
    latent = sample(velocity, start, s)[:, :, references:].permute(0, 2, 3, 4, 1)
    parts = [model.vae.decode(restored(z)).clamp(-1, 1) for z in latent.split(10)]
    frames = ((torch.cat(parts) + 1) * 127.5).round()
    return frames.to(torch.uint8).cpu().numpy()


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
    dit = Dit(read_config(folder))
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


def read_config(folder: Path) -> DitConfig:
    """Read the dimensions of a transformer from its config.json."""
    fields = json.loads((folder / "config.json").read_text())
    known = {k: v for k, v in fields.items() if k in DitConfig.__annotations__}
    return DitConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in known.items()})


def load_pair(folder: Path, t5: T5, vae: Vae, boundary: float) -> Networks:
    """Load a model with two experts."""
    device = t5.norm.weight.device
    low, high = (load_dit(folder / f"{name}_noise_model", device) for name in ("low", "high"))
    return Networks(t5=t5, vae=vae, low=low, high=high, boundary=boundary)


def load_vace(base: Path, module: Path, t5: T5, vae: Vae) -> Networks:
    """Load VACE: the text-to-video network of `base` and the VACE weights of `module`."""
    dit = Dit(read_config(module))
    state = load_file(base / "diffusion_pytorch_model.safetensors")
    state |= load_file(module / MODULE)
    dit.load_state_dict({k: v.float() for k, v in state.items()})
    return Networks(t5=t5, vae=vae, low=dit.to(t5.norm.weight.device).eval())


def main() -> None:
    """Score the shipped models."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--sheets", type=Path, help="Folder for the videos as .npy.")
    parser.add_argument("--settings", nargs="*", default=["unipc,20,2,5"])
    parser.add_argument("--models", nargs="*", default=["t2v", "pair", "lora"])
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
    if (root / "t2v-a14b").exists():
        models["pair"] = load_pair(root / "t2v-a14b", t5, vae, 0.875)
    if (root / "lora").exists():
        styled = load_dit(root / "t2v", device, root / "lora/outline.safetensors")
        models["lora"] = replace(models["t2v"], low=styled)
    for name in [n for n in args.models if n in models]:
        for text in args.settings:
            solver, steps, guidance, shift = text.split(",")
            s = Settings(
                solver=solver, steps=int(steps), guidance=float(guidance), shift=float(shift)
            )
            clips = make_videos(models[name], ids[1:], ids[:1], start, s)
            table(f"{name} {text}", clips, [scene for _, scene in prompts])
            if name == "lora":
                print("outlined", np.mean([judge.look(c).outline for c in clips]))
            if args.sheets:
                np.save(args.sheets / f"{name}-{text.replace(',', '-')}.npy", clips)


if __name__ == "__main__":
    main()
