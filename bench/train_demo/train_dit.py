"""Trains the transformers of the demo on the latents of the VAE.

    python -m bench.train_demo.train_dit --data data.npz --vae Wan2.1_VAE.pth --out OUT \\
        --stages t2v:330 small:100 high:25 low:25

Stages: `t2v` (with the text encoder), `small` (the initial weights of the experts), `high` and
`low` (the two experts), `i2v-high` and `i2v-low`, `outline` (the LoRA). A stage reads the files of
earlier stages in OUT; `t2v+` and `small+` continue training.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.train_demo import evaluate, judge, world
from bench.train_demo.data import Painter, vocabulary
from bench.train_demo.flow import Plan, Set, add_lora, lora_state, train
from bench.train_demo.optim import Rates
from bench.train_demo.sampler import Settings
from bench.train_demo.train_vae import rounded
from bench.train_demo.vae_net import normalized
from bench.train_demo.wan_net import T5, Dit, DitConfig

LARGE = DitConfig(dim=160, ffn_dim=416, num_heads=5, num_layers=6)
SMALL = DitConfig(dim=96, ffn_dim=256, num_heads=3, num_layers=5, freq_dim=64)
RANK = 8
# noise levels of the experts as u, with some overlap; 0.7 is 0.875, 0.75 is 0.9
SPANS = {"high": (0.66, 1.0), "low": (0.0, 0.74), "i2v-high": (0.7, 1.0), "i2v-low": (0.0, 0.8)}
BASES = {"i2v-high": "small", "i2v-low": "small", "high": "small", "low": "small"}


class Studio:
    """The training set on the device, and the state that stages share."""

    def __init__(self, args: argparse.Namespace, pool: Executor | None):
        self.args, self.pool, self.out = args, pool, args.out
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.file = np.load(args.data)
        self.rows = torch.from_numpy(self.file["rows"][: args.clips]).to(self.device)
        self.vae = evaluate.load_vae(args.vae, self.device)
        self.t5 = T5(len(vocabulary())).to(self.device)
        self.pictures: Set | None = None
        if (self.out / "t5.pt").exists():
            self.t5.load_state_dict(torch.load(self.out / "t5.pt", map_location=self.device))
        self.data = Set(
            latents=self.latents(self.rows),
            ids=torch.from_numpy(self.file["ids"][: args.clips]).to(self.device),
            dropped=torch.from_numpy(self.file["dropped"]).long().to(self.device),
        )

    @torch.no_grad()
    def latents(self, rows: Tensor, outline: bool = False, picture: bool = False) -> Tensor:
        """Encode rows as (N, 16, F, H, W) in bfloat16; `picture` makes later frames gray."""
        begin, painter, parts = time.monotonic(), Painter(self.device), []
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        for part in rows.split(64):
            clips = painter(torch.cat([part[:, :-1], torch.full_like(part[:, :1], outline)], 1))
            if picture:
                clips[:, 1:] = 0
            mu = normalized(self.vae.moments(clips.to(dtype))[0])
            parts.append(mu.permute(0, 4, 1, 2, 3).to(torch.bfloat16))
        made = torch.cat(parts).contiguous()
        values = made[:1024].float()
        print(
            f"{len(made)} latents in {time.monotonic() - begin:.0f} s, mean {values.mean():.3f}",
            end=" ",
        )
        print(f"std {values.std():.3f}, largest {values.abs().max():.1f}", flush=True)
        return made

    def fresh(self, name: str) -> Dit:
        """Make the transformer of a stage with its initial weights."""
        config = LARGE if name.startswith(("t2v", "outline")) else SMALL
        config = replace(config, in_dim=36) if name.startswith("i2v") else config
        dit = Dit(config).to(self.device)
        source = {"t2v+": "t2v", "small+": "small", "outline": "t2v", **BASES}.get(name)
        if source:
            state = torch.load(self.out / f"{source}.pt", map_location=self.device)
            weight, key = dit.patch_embedding.weight.detach().clone(), "patch_embedding.weight"
            if weight.shape != state[key].shape:  # the image condition starts at 0
                weight[:, :16], weight[:, 16:] = state[key], 0
                state[key] = weight
            dit.load_state_dict(state)
        return dit

    def plan(self, name: str, seconds: float) -> Plan:
        """Choose the learning rates and noise levels of a stage."""
        a, cuda = self.args, self.device.type == "cuda"
        common = {"seconds": seconds, "batch": a.batch, "show": a.show}
        common |= {"record": cuda and not a.eager, "compile": cuda and not a.eager}
        full = Rates(muon=a.muon, adam=2e-3, decay=0.01, warmup=200, flat=0.3, ema=0.999)
        tune = replace(full, muon=a.muon / 3, adam=5e-4, warmup=50, flat=0.2, ema=0.998)
        if name in SPANS:
            low, high = SPANS[name]
            rates = replace(tune, muon=a.muon / 2, adam=1e-3) if name.startswith("i2v") else tune
            return Plan(**common, rates=rates, low=low, high=high)
        if name == "outline":
            return Plan(**common, rates=Rates(adam=3e-3, warmup=50, flat=0.3, ema=0.998))
        if name.endswith("+"):
            return Plan(
                **common, rates=replace(full, flat=a.flat), text=name == "t2v+", first=a.first
            )
        return Plan(**common, rates=full, text=name == "t2v")

    def stage(self, name: str, seconds: float) -> None:
        """Train one stage and write its weights to OUT."""
        print(f"== {name}, {seconds:.0f} s", flush=True)
        data, dit = self.data, self.fresh(name)
        count = sum(p.numel() for p in dit.parameters())
        print(f"{count} parameters, text encoder {sum(p.numel() for p in self.t5.parameters())}")
        few = min(len(self.rows), self.args.few)
        if name.startswith("i2v"):
            self.pictures = self.pictures or replace(
                data,
                latents=data.latents[:few],
                ids=data.ids[:few],
                images=self.latents(self.rows[:few], picture=True),
            )
            data = self.pictures
        if name == "outline":
            latents = self.latents(self.rows[:few], outline=True)
            data = replace(data, latents=latents, ids=data.ids[:few])
            add_lora(dit, RANK)
            train(self.t5, dit, data, self.plan(name, seconds), lambda *_: False)
            save_file(lora_state(dit), self.out / "outline.safetensors")
            return
        train(self.t5, dit, data, self.plan(name, seconds))
        torch.save(dit.state_dict(), self.out / f"{name.rstrip('+')}.pt")
        if name.startswith("t2v"):
            torch.save(self.t5.state_dict(), self.out / "t5.pt")


def check(studio: Studio, names: list[str], settings: list[str], seed: int) -> None:
    """Score the trained models on the 50 test prompts, with weights rounded as shipped."""
    device, prompts = studio.device, world.test_prompts()
    prompts = prompts[: studio.args.count]
    ids = torch.from_numpy(studio.file["test"][: len(prompts)]).long().to(device)
    negative = studio.data.dropped[1:]
    start = evaluate.noise(range(seed, seed + len(prompts)), device)
    models = {"t2v": ("t2v", None), "pair": ("low", "high"), "i2v": ("i2v-low", "i2v-high")}
    models["small"] = ("small", None)
    t5 = T5(len(vocabulary())).to(device)
    t5.load_state_dict({k: v.float() for k, v in rounded(studio.t5.state_dict()).items()})
    for name in names:
        if not all((studio.out / f"{part}.pt").exists() for part in models[name] if part):
            continue
        low, high = (load_stage(studio, part) for part in models[name])
        boundary = 0.9 if name == "i2v" else 0.875
        model = evaluate.Networks(t5=t5, vae=studio.vae, low=low, high=high, boundary=boundary)
        images, scenes = evaluate.first_frames(device)
        images, scenes = images[: len(prompts)], scenes[: len(prompts)]
        y = evaluate.condition(studio.vae, images) if name == "i2v" else None
        for text in settings:
            solver, steps, guidance, shift = text.split(",")
            s = Settings(
                solver=solver, steps=int(steps), guidance=float(guidance), shift=float(shift)
            )
            clips = evaluate.make_videos(model, ids, negative, start, s, y)
            evaluate.table(f"{name} {text} seed {seed}", clips, scenes, studio.pool)
            if name == "i2v":
                print(evaluate.first_psnr(clips, images), flush=True)


def load_stage(studio: Studio, name: str | None) -> Dit | None:
    """Load a stage's transformer for evaluation, rounded to bfloat16."""
    if name is None:
        return None
    config = LARGE if name == "t2v" else SMALL
    config = replace(config, in_dim=36) if name.startswith("i2v") else config
    dit = Dit(config).to(studio.device)
    state = torch.load(studio.out / f"{name}.pt", map_location=studio.device)
    dit.load_state_dict({k: v.bfloat16().float() for k, v in state.items()})
    return dit.eval()


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", nargs="*", default=["t2v:330"], help="NAME:SECONDS.")
    parser.add_argument("--check", nargs="*", default=["unipc,20,2,5"])
    parser.add_argument("--models", nargs="*", default=["t2v", "small", "pair", "i2v"])
    parser.add_argument("--clips", type=int, default=32768, help="Clips of the training set.")
    parser.add_argument("--few", type=int, default=16384, help="Clips for I2V and the LoRA.")
    parser.add_argument("--count", type=int, default=50, help="Test prompts.")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--muon", type=float, default=0.02)
    parser.add_argument("--first", type=float, default=0.0, help="Initial progress of `+`.")
    parser.add_argument(
        "--flat", type=float, default=0.0, help="Fraction before the decay, for `+`."
    )
    parser.add_argument("--show", type=float, default=15)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument(
        "--eager", action="store_true", help="Neither compile nor record a CUDA graph."
    )
    return parser.parse_args()


def main() -> None:
    """Run the stages, then score the models."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch._dynamo.config.cache_size_limit = 64  # one entry per stage and shape
    with ProcessPoolExecutor(8, mp_context=get_context("spawn")) as pool:
        pool.map(
            judge.look, np.zeros((8, 2, 16, 16, 3), np.uint8)
        )  # starts the processes during training
        studio = Studio(args, pool)
        for text in args.stages:
            name, seconds = text.split(":")
            studio.stage(name, float(seconds))
        check(studio, args.models, args.check, 100)


if __name__ == "__main__":
    main()
