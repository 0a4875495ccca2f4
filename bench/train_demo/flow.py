"""Trains a transformer, an expert or a LoRA with flow matching."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.train_demo.optim import Graph, Optimizer, Rates, clock, strata
from bench.train_demo.wan_net import T5, Dit, is_matrix


@dataclass(frozen=True, kw_only=True)
class Set:
    """A training set: latents (N, 16, F, H, W), ids (N, captions, L), dropped ids (2, L)."""

    latents: Tensor
    ids: Tensor
    dropped: Tensor
    condition: Tensor | None = None  # of I2V: mask and latents (N, 20, F, H, W)
    context: Tensor | None = None  # of VACE, (N, 96, F, H, W)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings of one training; u from `low` to `high` gives the noise level 3u/(1+2u)."""

    seconds: float
    rates: Rates
    low: float = 0.0
    high: float = 1.0
    batch: int = 256
    text: bool = False  # train the text encoder too
    first: float = 0.0  # progress to start at
    show: float = 15.0
    record: bool = True
    compile: bool = True


def velocity_loss(t5: T5, dit: Dit, data: Set, plan: Plan) -> Tensor:
    """Draw a batch, add noise and compare the velocities; returns one loss per clip."""
    device, batch = data.latents.device, plan.batch
    pick = torch.randint(len(data.latents), (batch,), device=device)
    which = torch.randint(data.ids.shape[1], (batch,), device=device)
    chance = torch.rand(batch, 1, device=device)
    ids = data.ids[pick, which].long()
    ids = torch.where(chance < 0.05, data.dropped[0], ids)
    ids = torch.where(chance > 0.93, data.dropped[1], ids)
    u = plan.low + (plan.high - plan.low) * strata(batch, device)
    level = 3 * u / (1 + 2 * u)
    clean = data.latents[pick].float()
    noise = torch.randn_like(clean)
    s = level[:, None, None, None, None]
    x = (1 - s) * clean + s * noise
    if data.condition is not None:
        x = torch.cat([x, data.condition[pick].float()], 1)
    context = None if data.context is None else data.context[pick].float()
    with torch.autocast(device.type, torch.bfloat16, device.type == "cuda", cache_enabled=False):
        found = dit(x, level * 1000, t5(ids), context)
    return (found.float() - (noise - clean)).square().mean((1, 2, 3, 4))


def train(t5: T5, dit: Dit, sets: Sequence[Set], plan: Plan, matrix: Callable = is_matrix) -> None:
    """Train the networks in place for the plan's seconds; they end with averaged weights.

    The steps take the sets in turn; a set may occur more than once.
    """
    t5.requires_grad_(plan.text)
    both = nn.ModuleDict({"t5": t5, "dit": dit})
    optimizer = Optimizer(both, plan.rates, matrix)
    if plan.compile:
        for block in (*dit.blocks, *dit.vace_blocks):
            block.compile(dynamic=False)
    begin = time.monotonic()
    quarters = torch.zeros(4, device=sets[0].latents.device)

    def step(data: Set) -> Tensor:
        losses = velocity_loss(t5, dit, data, plan)
        norm = optimizer.step(list(torch.autograd.grad(losses.mean(), optimizer.params)))
        quarters.lerp_(
            losses.detach().view(4, -1).mean(1), 0.05
        )  # u is stratified, so these are quarters of it
        return norm

    optimizer.set_progress(plan.first)
    graphs: dict[int, Graph] = {}
    for data in sets:
        if id(data) not in graphs:
            graphs[id(data)] = Graph(partial(step, data), plan.record)
    print(f"ready after {time.monotonic() - begin:.0f} s", flush=True)
    shown = time.monotonic()
    for i, progress in clock(plan.seconds, plan.first):
        optimizer.set_progress(progress)
        norm = graphs[id(sets[i % len(sets)])]()
        if i % 20 == 0 and time.monotonic() - shown > plan.show:
            shown = time.monotonic()
            text = " ".join(f"{x:.4f}" for x in quarters.tolist())
            print(f"step {i} {progress:.2f} loss by noise {text} norm {norm.item():.2f}")
    print(f"{optimizer.count} steps", flush=True)
    both.load_state_dict(optimizer.averages(), strict=False)


class Lora(nn.Module):
    """A frozen linear layer plus a low-rank update."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features, device=base.weight.device))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))
        with torch.no_grad():
            self.down /= base.in_features**0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(x, self.down), self.up)


def add_lora(dit: Dit, rank: int) -> None:
    """Add a LoRA to every matrix of the blocks, and freeze everything else."""
    dit.requires_grad_(False)
    for block in dit.blocks:
        for attn in (block.self_attn, block.cross_attn):
            for name in "qkvo":
                setattr(attn, name, Lora(getattr(attn, name), rank))
        block.ffn[0], block.ffn[2] = Lora(block.ffn[0], rank), Lora(block.ffn[2], rank)


def lora_state(dit: Dit) -> dict[str, Tensor]:
    """Return the LoRA in bfloat16 with the key names of the Lightning files; alpha is the rank."""
    state = {}
    for name, module in dit.named_modules():
        if isinstance(module, Lora):
            key = f"diffusion_model.{name}"
            state[f"{key}.lora_down.weight"] = module.down.detach().cpu().bfloat16().contiguous()
            state[f"{key}.lora_up.weight"] = module.up.detach().cpu().bfloat16().contiguous()
            state[f"{key}.alpha"] = torch.tensor(float(len(module.down))).bfloat16()
    return state
