"""Muon for matrices, AdamW for the rest, and training steps as CUDA graphs.

Learning rates depend on elapsed time, not on the step, so that training ends on time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al., five steps


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Peak learning rates and their schedule."""

    muon: float = 0.02
    adam: float = 1.5e-3
    betas: tuple[float, float] = (0.9, 0.98)
    decay: float = 0.0  # weight decay, relative to the learning rate
    warmup: int = 50  # steps
    flat: float = 0.25  # fraction of the time before the linear decay to 0
    clip: float = 1.0  # largest norm of the whole gradient
    ema: float = 0.0  # decay of the weight average; 0 keeps no average


class Optimizer:
    """An optimizer of named parameters; matrices of the same shape are stacked for Muon."""

    def __init__(self, model: nn.Module, rates: Rates, is_matrix: Callable[[str, Tensor], bool]):
        self.rates, self.count = rates, 0
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        groups: dict[tuple[int, int], list[Tensor]] = {}
        for name, p in named:
            if is_matrix(name, p):
                groups.setdefault((p.shape[0], p[0].numel()), []).append(p)
        self.groups = list(groups.items())
        self.matrices = [p for _, ps in self.groups for p in ps]
        self.others = [p for n, p in named if not is_matrix(n, p)]
        self.params = self.matrices + self.others
        self.speed = [torch.zeros_like(p) for p in self.matrices]
        self.first = [torch.zeros_like(p) for p in self.others]
        self.second = [torch.zeros_like(p) for p in self.others]
        self.mean = [p.detach().clone() for p in self.params] if rates.ema else []
        self.names = {id(p): n for n, p in named}
        # rate, 1 / (1 - beta1^t), 1 / (1 - beta2^t), weight of new values in the average
        self.knobs = torch.zeros(4, device=self.params[0].device)

    def set_progress(self, progress: float) -> None:
        """Set the rates of the next step; `progress` is the elapsed fraction of the time."""
        self.count += 1
        r, t = self.rates, self.count
        rate = min(1.0, t / r.warmup) * min(1.0, max(0.0, (1 - progress) / max(1 - r.flat, 1e-6)))
        average = 1 - min(r.ema, (1 + t) / (10 + t))
        values = [rate, 1 / (1 - r.betas[0] ** t), 1 / (1 - r.betas[1] ** t), average]
        self.knobs.copy_(torch.tensor(values), non_blocking=True)

    @torch.no_grad()
    def step(self, grads: list[Tensor]) -> Tensor:
        """Update the parameters in place and return the norm of the gradient."""
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        scale = (self.rates.clip / (norm + 1e-6)).clamp(max=1.0)
        grads = torch._foreach_mul(grads, scale)
        self._adam(grads[len(self.matrices) :])
        self._muon(grads[: len(self.matrices)])
        if self.mean:
            new = torch._foreach_sub(self.params, self.mean)
            torch._foreach_mul_(new, self.knobs[3])
            torch._foreach_add_(self.mean, new)
        return norm

    def _adam(self, grads: list[Tensor]) -> None:
        r = self.rates
        torch._foreach_lerp_(self.first, grads, 1 - r.betas[0])
        torch._foreach_mul_(self.second, r.betas[1])
        torch._foreach_addcmul_(self.second, grads, grads, 1 - r.betas[1])
        root = torch._foreach_sqrt(torch._foreach_mul(self.second, self.knobs[2]))
        torch._foreach_add_(root, 1e-8)
        change = torch._foreach_div(torch._foreach_mul(self.first, self.knobs[1]), root)
        torch._foreach_mul_(change, self.knobs[0] * -r.adam)
        torch._foreach_add_(self.others, change)

    def _muon(self, grads: list[Tensor]) -> None:
        if not grads:
            return
        r, at = self.rates, 0
        torch._foreach_lerp_(self.speed, grads, 0.05)
        looked = torch._foreach_lerp(grads, self.speed, 0.95)
        if r.decay:
            torch._foreach_mul_(self.matrices, 1 - self.knobs[0] * (r.muon * r.decay))
        for (rows, columns), ps in self.groups:
            stack = torch.stack([g.reshape(rows, columns) for g in looked[at : at + len(ps)]])
            at += len(ps)
            change = orthogonal(stack) * (self.knobs[0] * -r.muon * max(1, rows / columns) ** 0.5)
            torch._foreach_add_(ps, [c.view_as(p) for c, p in zip(change, ps, strict=True)])

    def averages(self) -> dict[str, Tensor]:
        """Return the averaged parameters by name, or the current ones without an average."""
        kept = self.mean or self.params
        return {self.names[id(p)]: m.detach() for p, m in zip(self.params, kept, strict=True)}


def orthogonal(stack: Tensor) -> Tensor:
    """Move the singular values of each matrix (N, R, C) toward 1, in bfloat16 on CUDA."""
    a, b, c = NEWTON_SCHULZ
    tall = stack.shape[1] > stack.shape[2]
    x = (stack.mT if tall else stack).to(torch.bfloat16 if stack.is_cuda else stack.dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).to(stack.dtype)


class Graph:
    """Repeats one training step, recorded as a CUDA graph on CUDA."""

    def __init__(self, step: Callable[[], Tensor], record: bool):
        self.step, self.graph = step, None
        self.result: Tensor | None = None
        if not record:
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = step()

    def __call__(self) -> Tensor:
        if self.graph is None:
            self.result = self.step()
        else:
            self.graph.replay()
        assert self.result is not None
        return self.result


def clock(seconds: float, first: float = 0.0, every: int = 20) -> Iterator[tuple[int, float]]:
    """Yield (step, progress from `first` to 1) until the seconds are over."""
    begin, step = time.monotonic(), 0
    while True:
        progress = (time.monotonic() - begin) / seconds
        if progress >= 1:
            return
        yield step, first + (1 - first) * progress
        step += 1
        if step % every == 0 and torch.cuda.is_available():
            torch.cuda.synchronize()  # keep the clock in step with the device


def strata(count: int, device: torch.device) -> Tensor:
    """Draw one number from each of `count` equal intervals of 0 to 1."""
    return (torch.arange(count, device=device) + torch.rand(count, device=device)) / count


def psnr(error: float, peak: float = 2.0) -> float:
    """Return the PSNR of a mean squared error, in dB."""
    return 10 * math.log10(peak * peak / max(error, 1e-12))
