"""Samples a batch of prompts with UniPC or Euler, like the official code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sampling settings."""

    solver: str = "unipc"
    steps: int = 20
    guidance: float = 2.0
    shift: float = 5.0


def sigmas(s: Settings) -> list[float]:
    """Return the noise levels; the last one is 0."""
    top = 1.0 if s.solver == "euler" else float(np.float32(1 - 1 / 1000))
    line = np.linspace(top, 0, s.steps + 1)[:-1]
    line = s.shift * line / (1 + (s.shift - 1) * line)
    return [*(float(x) for x in line), 0.0]


def sample(velocity: Velocity, x: Tensor, s: Settings) -> Tensor:
    """Integrate velocity(x, timestep) from noise to a clean latent."""
    levels = sigmas(s)
    if s.solver == "euler":
        for now, then in pairwise(levels):
            x = x + (then - now) * velocity(x, full(x, 1000 * now))
        return x
    return unipc(velocity, x, levels)


def full(x: Tensor, value: float) -> Tensor:
    """Repeat a timestep for the batch."""
    return torch.full((len(x),), value, device=x.device, dtype=torch.float64)


def unipc(velocity: Velocity, x: Tensor, levels: list[float]) -> Tensor:
    """Run UniPC of order 2 (bh2, data prediction)."""
    clean: list[Tensor] = []
    before, order, last = x, 0, len(levels) - 2
    for i, sigma in enumerate(levels[:-1]):
        m = x - sigma * velocity(x, full(x, int(1000 * sigma)))
        if i > 0:
            x = correct(levels, i, before, clean, m, order)
        clean.append(m)
        order = min(2, i + 1) if i < last else 1
        before = x
        x = predict(levels, i, x, clean, order)
    return x


def lam(sigma: float) -> float:
    """Return half the log signal-to-noise ratio."""
    return float(np.log(1 - sigma) - np.log(sigma))


def predict(levels: list[float], i: int, x: Tensor, clean: list[Tensor], order: int) -> Tensor:
    """Predict the sample at level i + 1 from level i."""
    now, then = levels[i], levels[i + 1]
    if then == 0:
        return clean[i]
    h = lam(then) - lam(now)
    b = np.expm1(-h)
    y = then / now * x - (1 - then) * b * clean[i]
    if order == 2:
        r = (lam(levels[i - 1]) - lam(now)) / h
        y = y - (1 - then) * b * 0.5 * (clean[i - 1] - clean[i]) / r
    return y


def correct(
    levels: list[float], i: int, x: Tensor, clean: list[Tensor], m: Tensor, order: int
) -> Tensor:
    """Correct the step from level i - 1 to i with the model's output m at level i."""
    now, then = levels[i - 1], levels[i]
    h = lam(then) - lam(now)
    b = np.expm1(-h)
    y = then / now * x - (1 - then) * b * clean[i - 1]
    change = m - clean[i - 1]
    if order == 1:
        return y - (1 - then) * b * 0.5 * change
    r = (lam(levels[i - 2]) - lam(now)) / h
    one = b / -h - 1
    two = one / -h - 0.5
    rho = np.linalg.solve(np.array([[1, 1], [r, 1]]), np.array([one / b, 2 * two / b]))
    older = (clean[i - 2] - clean[i - 1]) / r
    return y - (1 - then) * b * (float(rho[0]) * older + float(rho[1]) * change)
