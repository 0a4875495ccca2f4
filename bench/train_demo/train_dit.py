"""Trains the transformers of the demo on the latents of the VAE.

    python -m bench.train_demo.train_dit --data data.npz --vae Wan2.1_VAE.pth --out OUT \\
        --stages t2v:330 small:100 high:25 low:25

Stages: `t2v` (with the text encoder), `small` (the initial weights of the experts), `high` and
`low` (the two experts), `i2v-high` and `i2v-low`, `outline` (the LoRA), `vace`. A stage reads the
files of earlier stages in OUT; names with `+` continue training. `--start` fills OUT with the
weights of shipped checkpoints.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.train_demo import evaluate, judge
from bench.train_demo.data import Painter, vocabulary
from bench.train_demo.flow import Plan, Set, add_lora, lora_state, train
from bench.train_demo.optim import Rates
from bench.train_demo.pools import Material, image_pool, vace_pool
from bench.train_demo.sampler import Settings
from bench.train_demo.tasks import PICTURED, PLAIN
from bench.train_demo.train_vae import rounded
from bench.train_demo.vae_net import normalized
from bench.train_demo.wan_net import T5, Dit, DitConfig
from wanpipe.demo import world

LARGE = DitConfig(dim=160, ffn_dim=416, num_heads=5, num_layers=6)
SMALL = DitConfig(dim=96, ffn_dim=256, num_heads=3, num_layers=5, freq_dim=64)
RANK = 8
FOLDERS = {
    "t2v": "t2v",
    "high": "t2v-a14b/high_noise_model",
    "low": "t2v-a14b/low_noise_model",
    "i2v-high": "i2v-a14b/high_noise_model",
    "i2v-low": "i2v-a14b/low_noise_model",
}
# noise levels of the experts as u, with some overlap; 0.7 is 0.875, 0.75 is 0.9
SPANS = {"high": (0.66, 1.0), "low": (0.0, 0.74), "i2v-high": (0.7, 1.0), "i2v-low": (0.0, 0.8)}
BASES = {**dict.fromkeys(SPANS, "small"), "outline": "t2v"}
VACE_LAYERS = (0, 2, 4)


def config_of(name: str) -> DitConfig:
    """Return the dimensions of a stage's transformer."""
    if name.startswith("vace"):
        return replace(LARGE, vace_layers=VACE_LAYERS)
    config = LARGE if name.startswith(("t2v", "outline")) else SMALL
    return replace(config, in_dim=36) if name.startswith("i2v") else config


def start_vace(dit: Dit, base: dict[str, Tensor]) -> None:
    """Load the weights of text-to-video, and copy them to the VACE blocks."""
    state = dit.state_dict() | base
    for i, layer in enumerate(VACE_LAYERS):
        prefix = f"blocks.{layer}."
        for key in [k for k in base if k.startswith(prefix)]:
            state[f"vace_blocks.{i}.{key.removeprefix(prefix)}"] = base[key]
    kernel = state["vace_patch_embedding.weight"] * 0.3
    for part in (0, 16):  # both latents of the context are embedded like the noise's
        kernel[:, part : part + 16] = base["patch_embedding.weight"]
    state["vace_patch_embedding.weight"] = kernel
    dit.load_state_dict(state)


class Studio:
    """The training set on the device, and the state that stages share."""

    def __init__(self, args: argparse.Namespace, pool: Executor | None):
        self.args, self.pool, self.out = args, pool, args.out
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.file = np.load(args.data)
        self.rows = torch.from_numpy(self.file["rows"][: args.clips]).to(self.device)
        self.vae = evaluate.load_vae(args.vae, self.device)
        self.t5 = T5(len(vocabulary())).to(self.device)
        self.sets: dict[str, Set] = {}
        if (self.out / "t5.pt").exists():
            self.t5.load_state_dict(torch.load(self.out / "t5.pt", map_location=self.device))
        self.ids = torch.from_numpy(self.file["ids"][: args.clips]).to(self.device)
        self.dropped = torch.from_numpy(self.file["dropped"]).long().to(self.device)

    @cached_property
    def data(self) -> Set:
        """The whole training set of text-to-video."""
        return Set(latents=self.latents(self.rows), ids=self.ids, dropped=self.dropped)

    def set_of(self, name: str) -> Set:
        """Encode a training set once: `image`, or VACE's tasks `plain` or `pictured`."""
        if name not in self.sets:
            material = Material(
                vae=self.vae,
                painter=Painter(self.device),
                rows=self.rows,
                ids=self.ids,
                vague=torch.from_numpy(self.file["vague"][: self.args.clips]).to(self.device),
                dropped=self.dropped,
            )
            count, seconds = self.args.few, self.args.pool_seconds
            torch.backends.cudnn.benchmark = True
            if name == "image":
                self.sets[name] = image_pool(material, count, seconds)
            elif name == "plain":
                self.sets[name] = vace_pool(material, PLAIN, count, 0.65 * seconds)
            else:
                self.sets[name] = vace_pool(material, PICTURED, count, 0.35 * seconds)
        return self.sets[name]

    @torch.no_grad()
    def latents(self, rows: Tensor, outline: bool = False) -> Tensor:
        """Encode rows as (N, 16, F, H, W) in bfloat16."""
        begin, painter, parts = time.monotonic(), Painter(self.device), []
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        for part in rows.split(64):
            clips = painter(torch.cat([part[:, :-1], torch.full_like(part[:, :1], outline)], 1))
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
        dit = Dit(config_of(name)).to(self.device)
        source = name[:-1] if name.endswith("+") else BASES.get(name)
        if name == "vace":
            start_vace(dit, torch.load(self.out / "t2v.pt", map_location=self.device))
        elif source:
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
        firm = replace(tune, muon=a.muon / 2, adam=1e-3)
        if (span := SPANS.get(name.rstrip("+"))) is not None:
            rates = firm if name.startswith("i2v") else tune
            first = a.first if name.endswith("+") else 0.0
            return Plan(**common, rates=rates, low=span[0], high=span[1], first=first)
        if name.startswith("vace"):
            rates = replace(firm, muon=a.muon * 0.75, ema=0.999)
            return Plan(**common, rates=rates, first=a.first if name.endswith("+") else 0.0)
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
        dit = self.fresh(name)
        count = sum(p.numel() for p in dit.parameters())
        print(f"{count} parameters, text encoder {sum(p.numel() for p in self.t5.parameters())}")
        if name == "outline":
            few = min(len(self.rows), self.args.few)
            latents = self.latents(self.rows[:few], outline=True)
            data = Set(latents=latents, ids=self.ids[:few], dropped=self.dropped)
            add_lora(dit, RANK)
            train(self.t5, dit, [data], self.plan(name, seconds), lambda *_: False)
            save_file(lora_state(dit), self.out / "outline.safetensors")
            return
        if name.startswith("vace"):
            for key, p in dit.named_parameters():
                p.requires_grad_(key.startswith("vace_"))
            sets = [self.set_of("plain"), self.set_of("plain"), self.set_of("pictured")]
        else:
            sets = [self.set_of("image") if name.startswith("i2v") else self.data]
        train(self.t5, dit, sets, self.plan(name, seconds))
        torch.save(dit.state_dict(), self.out / f"{name.rstrip('+')}.pt")
        if name.startswith("t2v"):
            torch.save(self.t5.state_dict(), self.out / "t5.pt")


def check(studio: Studio, names: list[str], settings: list[str], seed: int) -> None:
    """Score the trained models on the 50 test prompts, with weights rounded as shipped."""
    device, prompts = studio.device, world.test_prompts()
    prompts = prompts[: studio.args.count]
    ids = torch.from_numpy(studio.file["test"][: len(prompts)]).long().to(device)
    negative = studio.dropped[1:]
    start = evaluate.noise(range(seed, seed + len(prompts)), device)
    models = {"t2v": ("t2v", None), "pair": ("low", "high"), "small": ("small", None)}
    t5 = T5(len(vocabulary())).to(device)
    t5.load_state_dict({k: v.float() for k, v in rounded(studio.t5.state_dict()).items()})
    for name in names:
        if not all((studio.out / f"{part}.pt").exists() for part in models[name] if part):
            continue
        low, high = (load_stage(studio, part) for part in models[name])
        model = evaluate.Networks(t5=t5, vae=studio.vae, low=low, high=high)
        scenes = [scene for _, scene in prompts]
        for text in settings:
            solver, steps, guidance, shift = text.split(",")
            s = Settings(
                solver=solver, steps=int(steps), guidance=float(guidance), shift=float(shift)
            )
            clips = evaluate.make_videos(model, ids, negative, start, s)
            evaluate.table(f"{name} {text} seed {seed}", clips, scenes, studio.pool)


def load_stage(studio: Studio, name: str | None) -> Dit | None:
    """Load a stage's transformer for evaluation, rounded to bfloat16."""
    if name is None:
        return None
    dit = Dit(config_of(name)).to(studio.device)
    state = torch.load(studio.out / f"{name}.pt", map_location=studio.device)
    dit.load_state_dict({k: v.bfloat16().float() for k, v in state.items()})
    return dit.eval()


def import_checkpoints(root: Path, out: Path) -> None:
    """Write the shipped weights as stage files; files that exist stay."""
    text = torch.load(root / "t2v/models_t5_umt5-xxl-enc-bf16.pth", map_location="cpu")
    states = {"t5": {k: v.float() for k, v in text.items()}}
    for name, folder in FOLDERS.items():
        file = root / folder / "diffusion_pytorch_model.safetensors"
        if file.exists():
            states[name] = {k: v.float() for k, v in load_file(file).items()}
    module = root / "vace" / evaluate.MODULE
    if module.exists():
        parts = {k: v.float() for k, v in load_file(module).items()}
        states["vace"] = states["t2v"] | parts
    for name, state in states.items():
        if not (out / f"{name}.pt").exists():
            torch.save(state, out / f"{name}.pt")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", nargs="*", default=["t2v:330"], help="NAME:SECONDS.")
    parser.add_argument("--check", nargs="*", default=["unipc,20,2,5"])
    parser.add_argument("--models", nargs="*", default=["t2v", "small", "pair"])
    parser.add_argument("--start", type=Path, help="Shipped checkpoints to start from.")
    parser.add_argument("--clips", type=int, default=32768, help="Clips of the training set.")
    parser.add_argument("--few", type=int, default=16384, help="Clips for I2V, VACE and the LoRA.")
    parser.add_argument(
        "--pool-seconds", type=float, default=90, help="Time to encode them for I2V or VACE."
    )
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
    if args.start:
        import_checkpoints(args.start, args.out)
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
