"""Encodes the training sets of image-to-video and VACE on the device, for a given time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.train_demo import tasks
from bench.train_demo.data import Painter
from bench.train_demo.flow import Set
from bench.train_demo.vae_net import Vae

BATCH = 64
# parts of the training set; a number of frames at the start, and whether the last one is known
GIVEN = (((1, False), 20), ((1, True), 34), ((0, True), 26), ((5, False), 11), ((9, False), 9))
SHARES = {
    **{"inpaint": 20, "extend": 10, "keyframes": 46, "outpaint": 9, "control": 11, "text": 4},
    **{"reference": 60, "swap": 25, "styled": 15},
}
# parts of the captions: all words, no shape or color (twice), no color, no shape
NAMED = {
    **dict.fromkeys(("reference", "swap"), (24, 30, 30, 8, 8)),
    "styled": (24, 20, 20, 36, 0),
    "control": (70, 0, 0, 0, 30),
}
ALL_NAMED = (1, 0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Material:
    """What the sets are drawn from: rows (N, 19), ids (N, captions, L), ids without some words."""

    vae: Vae
    painter: Painter
    rows: Tensor
    ids: Tensor
    vague: Tensor
    dropped: Tensor


def shuffled(parts: Sequence[tuple], rng: np.random.Generator) -> list:
    """Return one random order of 100 names, in which each has its share."""
    names = [name for name, share in parts for _ in range(share)]
    return [names[i] for i in rng.permutation(len(names))]


@torch.no_grad()
def fill(
    make: Callable[[object, Tensor], dict[str, Tensor]],
    parts: Sequence[tuple],
    material: Material,
    count: int,
    seconds: float,
) -> Set:
    """Collect batches of make(name, indices) until there are `count` clips or time is over."""
    begin = time.monotonic()
    rng = np.random.default_rng(int(torch.randint(2**31, ())))
    names = shuffled(parts, rng)
    made: list[dict[str, Tensor]] = []
    while len(made) * BATCH < count and time.monotonic() - begin < seconds:
        pick = torch.from_numpy(rng.integers(len(material.rows), size=BATCH))
        made.append(make(names[len(made) % len(names)], pick.to(material.rows.device)))
        if material.rows.is_cuda:
            torch.cuda.synchronize()  # keep the clock in step with the device
    whole = {key: torch.cat([part[key] for part in made]) for key in made[0]}
    print(f"{len(made) * BATCH} inputs in {time.monotonic() - begin:.0f} s", flush=True)
    return Set(dropped=material.dropped, **whole)


def image_pool(material: Material, count: int, seconds: float) -> Set:
    """Make the training set of image-to-video."""

    def make(given: object, pick: Tensor) -> dict[str, Tensor]:
        assert isinstance(given, tuple)
        first, last = given
        rows = material.rows[pick]
        times = tasks.late_times(rows) if first > 1 else tasks.usual_times(rows)
        clips = material.painter(rows, times)
        known = tasks.first_frames(first, len(rows), rows.device).clone()
        known[:, -1] |= last
        return {
            "latents": tasks.encode(material.vae, clips).bfloat16(),
            "condition": tasks.image_condition(material.vae, clips, known).bfloat16(),
            "ids": material.ids[pick],
        }

    return fill(make, GIVEN, material, count, seconds)


def vace_pool(material: Material, names: Sequence[str], count: int, seconds: float) -> Set:
    """Make a training set of VACE; the tasks all have a reference image, or none of them."""

    def make(name: object, pick: Tensor) -> dict[str, Tensor]:
        assert isinstance(name, str)
        rows = material.rows[pick]
        drawn = tasks.draw(name, rows, material.painter)
        context = tasks.vace_context(material.vae, drawn.source, drawn.mask, drawn.references)
        latents = tasks.encode(material.vae, drawn.clips)
        if drawn.references is not None:
            latents = torch.cat([context[:, :16, : drawn.references.shape[1]], latents], 2)
        shares = torch.tensor(NAMED.get(name, ALL_NAMED), device=rows.device).float()
        which = torch.multinomial(shares, 2 * len(pick), replacement=True).view(-1, 2)
        captions = torch.cat([material.ids[pick][:, :1], material.vague[pick]], 1)
        second = torch.cat([material.ids[pick][:, 1:2], material.vague[pick]], 1)
        at = torch.arange(len(pick), device=rows.device)
        ids = torch.stack([captions[at, which[:, 0]], second[at, which[:, 1]]], 1)
        return {"latents": latents.bfloat16(), "context": context.bfloat16(), "ids": ids}

    return fill(make, [(name, SHARES[name]) for name in names], material, count, seconds)
