"""Draws the inputs of image-to-video and VACE, and encodes them as the official pipelines do.

Clips are (B, T, Y, X, 3) in -1 to 1, masks (B, T, Y, X, 1) with 1 where pixels are made anew, known
frames (B, T) are true where a frame is given. `draw` makes a random task for training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.train_demo.data import Painter
from bench.train_demo.vae_net import Vae, normalized
from wanpipe.demo import world

GRAY = 127 / 127.5 - 1  # the color of what is made anew, as in VACE's own tools
LATE = 0.25  # training films start this much later, up to three times
PLAIN = ("inpaint", "extend", "keyframes", "outpaint", "control", "text")
PICTURED = ("reference", "swap", "styled")  # with a reference image
LAST = ((16,), (0, 16))
KEYS = ((0,), (8,), (0, 8, 16), (4, 12), *LAST, *LAST, *LAST)  # frames that are known


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What VACE gets, and the clip that it should make."""

    clips: Tensor
    source: Tensor
    mask: Tensor
    references: Tensor | None = None  # (B, R, Y, X, 3)


def encode(vae: Vae, clips: Tensor) -> Tensor:
    """Encode clips as latents (B, 16, F, H, W), in bfloat16 on CUDA."""
    dtype = torch.bfloat16 if clips.is_cuda else torch.float32
    parts = [normalized(vae.moments(part.to(dtype))[0]) for part in clips.split(64)]
    return torch.cat(parts).permute(0, 4, 1, 2, 3)


def image_condition(vae: Vae, clips: Tensor, known: Tensor) -> Tensor:
    """Encode the known frames of clips as the condition of image-to-video, (B, 20, F, H, W).

    Other frames are gray. A mask channel is 1 where the frame that it stands for is known; all four
    channels of the first latent frame stand for the first frame.
    """
    latents = encode(vae, clips * known[..., None, None, None])
    frames = torch.cat([known[:, :1].expand(-1, 3), known], 1).unflatten(1, (-1, 4))  # (B, F, 4)
    mask = frames.mT[..., None, None].expand(-1, -1, -1, *latents.shape[3:])
    return torch.cat([mask.to(latents.dtype), latents], 1)


def vace_context(
    vae: Vae, source: Tensor, mask: Tensor, references: Tensor | None = None
) -> Tensor:
    """Encode VACE's inputs as its context (B, 96, R + F, H, W); references come first."""
    parts = [encode(vae, source * (1 - mask)), encode(vae, source * mask)]
    count = parts[0].shape[2]
    at = ((torch.arange(count, device=mask.device) + 0.5) * mask.shape[1] / count).long()
    small = mask[:, at, ..., 0].unflatten(3, (-1, 8)).unflatten(2, (-1, 8))  # (B, F, H, 8, W, 8)
    parts.append(small.permute(0, 3, 5, 1, 2, 4).flatten(1, 2).to(parts[0].dtype))
    context = torch.cat(parts, 1)
    if references is None:
        return context
    stills = torch.stack([encode(vae, r)[:, :, 0] for r in references.split(1, 1)], 2)
    zeros = stills.new_zeros(len(stills), 80, *stills.shape[2:])
    return torch.cat([torch.cat([stills, zeros], 1), context], 2)


def painted(clips: Tensor, mask: Tensor) -> Tensor:
    """Return clips with gray where the mask is 1."""
    return clips * (1 - mask) + GRAY * mask


def frames_mask(known: Tensor) -> Tensor:
    """Return a mask that makes every frame anew that is not known."""
    return (~known)[..., None, None, None].float().expand(-1, -1, world.SIZE, world.SIZE, 1)


def first_frames(count: int, total: int, device: torch.device) -> Tensor:
    """Return known frames (total, T): the first `count` of every clip."""
    return (torch.arange(world.FRAMES, device=device) < count).expand(total, -1)


def chosen_frames(frames: tuple[int, ...], total: int, device: torch.device) -> Tensor:
    """Return known frames (total, T): those with the given numbers."""
    at = torch.arange(world.FRAMES, device=device)
    return torch.isin(at, torch.tensor(frames, device=device)).expand(total, -1)


def usual_times(rows: Tensor) -> Tensor:
    """Return the time of every frame, (B, T), from 0 to 1."""
    return torch.linspace(0, 1, world.FRAMES, device=rows.device).expand(len(rows), -1)


def late_times(rows: Tensor) -> Tensor:
    """Return times of which half start later, as in a clip that goes on from another."""
    steps = torch.randint(1, 4, (len(rows), 1), device=rows.device)
    steps = steps * (torch.rand(len(rows), 1, device=rows.device) < 0.5)
    return usual_times(rows) + steps * LATE


def path(rows: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the object's center x, y and its outer radius in every frame, each (B, T)."""
    v = {name: rows[:, i, None] for i, name in enumerate(world.COLUMNS)}
    reach = torch.tensor(world.REACH, device=rows.device)[rows[:, 0].long()][:, None]
    radius = v["size"] * reach * (1 + (v["growth"] - 1) * times)
    return v["x"] + v["dx"] * times, v["y"] + v["dy"] * times, radius


def rectangles(left: Tensor, top: Tensor, right: Tensor, bottom: Tensor) -> Tensor:
    """Return a mask of one rectangle per frame; the edges are (B, T)."""
    at = torch.arange(world.SIZE, device=left.device)
    columns = (at >= left[..., None]) & (at <= right[..., None])  # (B, T, X)
    rows = (at >= top[..., None]) & (at <= bottom[..., None])
    return (rows[..., :, None] & columns[..., None, :])[..., None].float()


def boxes(rows: Tensor, times: Tensor) -> Tensor:
    """Draw masks of random boxes: around the object, around its path, or anywhere."""

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(rows), 1, device=rows.device)

    x, y, radius = path(rows, times)
    margin = between(2, 12)
    jx, jy = margin * between(-0.7, 0.7), margin * between(-0.7, 0.7)
    reach = torch.where(between(0, 1) < 0.5, radius, radius.amax(1, keepdim=True)) + margin
    along = (x + jx - reach, y + jy - reach, x + jx + reach, y + jy + reach)
    low = [(at - radius).amin(1, keepdim=True) - between(2, 14) for at in (x, y)]
    high = [(at + radius).amax(1, keepdim=True) + between(2, 14) for at in (x, y)]
    size, still = world.SIZE, between(0, 1) < 0.6
    a, b = between(0, size), between(0, size)
    ax = a + torch.where(still, 0, between(-size, size)) * times
    by = b + torch.where(still, 0, between(-size, size)) * times
    w, h = between(6, 36), between(6, 36)
    anywhere = (ax - w, by - h, ax + w, by + h)
    kind = between(0, 1)
    edges = [
        torch.where(kind < 0.4, one, torch.where(kind < 0.7, two, three))
        for one, two, three in zip(along, (*low, *high), anywhere, strict=True)
    ]
    return rectangles(*edges)


def borders(rows: Tensor) -> Tensor:
    """Draw masks of random borders: each side up to 36 pixels wide, or 0."""
    wide = 4 + 32 * torch.rand(4, len(rows), 1, device=rows.device)
    wide = wide * (torch.rand_like(wide) < 0.6)
    left, top, right, bottom = wide.expand(-1, -1, world.FRAMES)
    return 1 - rectangles(left, top, world.SIZE - 1 - right, world.SIZE - 1 - bottom)


def some_frames(total: int, device: torch.device) -> Tensor:
    """Draw known frames (total, T): one of KEYS, or one random frame."""
    table = torch.cat([chosen_frames(frames, 1, device) for frames in KEYS])
    pick = torch.randint(len(KEYS), (total,), device=device)
    one = torch.randint(world.FRAMES, (total, 1), device=device)
    alone = torch.arange(world.FRAMES, device=device) == one
    return torch.where(torch.rand(total, 1, device=device) < 0.8, table[pick], alone)


def drawings(rows: Tensor) -> Tensor:
    """Return rows of outlines: white on black, black on white, in their own or other colors."""
    lines, colors = rows.clone(), slice(world.COLUMNS.index("red"), world.COLUMNS.index("striped"))
    other = rows[torch.randperm(len(rows), device=rows.device)]
    white, black = (rows.new_tensor([value] * 3) for value in (245.0, 18.0))
    kind = torch.rand(len(rows), 1, device=rows.device)
    lines[:, colors] = torch.where(kind < 0.8, rows[:, colors], other[:, colors])
    lines[:, -2:-1] = torch.where(kind < 0.8, rows[:, -2:-1], other[:, -2:-1])
    neutral = kind < 0.6
    dark = torch.cat([white, black, black]).expand(len(rows), -1)
    light = torch.cat([black, white, white]).expand(len(rows), -1)
    lines[:, colors] = torch.where(neutral, torch.where(kind < 0.35, dark, light), lines[:, colors])
    lines[:, -2:-1] = torch.where(neutral, 0.0, lines[:, -2:-1])
    lines[:, -1] = 1
    return lines


def stills(rows: Tensor, painter: Painter) -> Tensor:
    """Draw reference images (B, 1, Y, X, 3): the shape in its color, mostly on white."""

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(rows), device=rows.device)

    at = {name: i for i, name in enumerate(world.COLUMNS)}
    still = rows.clone()
    for name in ("x", "y"):
        still[:, at[name]] = (world.SIZE - 1) / 2 + between(-8, 8)
    for name in ("dx", "dy", "outline"):
        still[:, at[name]] = 0
    still[:, at["size"]], still[:, at["growth"]] = between(12, 29), 1
    still[:, at["turn"]] = between(-0.3, 0.3) * (between(0, 1) < 0.5)
    white = between(0, 1) < 0.7
    for name in world.COLUMNS[at["top_r"] : at["striped"]]:
        still[:, at[name]] = torch.where(white, 255, rows[:, at[name]])
    still[:, at["striped"]] = torch.where(white, 0, rows[:, at["striped"]])
    image = painter(still, torch.ones_like(still[:, :1]))  # at time 1 the turn is complete
    inset = (between(-24, 14).clamp(min=0))[:, None].floor()  # an image of another aspect, fitted
    side, zero = between(0, 1)[:, None] < 0.5, torch.zeros_like(inset)
    across, down = torch.where(side, inset, zero), torch.where(side, zero, inset)
    inner = rectangles(across, down, world.SIZE - 1 - across, world.SIZE - 1 - down)
    return image * inner + (1 - inner)


def draw(name: str, rows: Tensor, painter: Painter) -> Drawn:
    """Draw one of PLAIN or PICTURED for rows (B, len(COLUMNS))."""
    times = late_times(rows) if name == "extend" else usual_times(rows)
    clips = painter(rows, times)
    everything = torch.ones_like(clips[..., :1])
    references = stills(rows, painter) if name in PICTURED else None
    if name in ("control", "styled"):
        lines = painter(drawings(rows), times)
        return Drawn(clips=clips, source=lines, mask=everything, references=references)
    if name in ("reference", "text"):
        # no film is zeros; a film with nothing left is gray
        film = torch.rand(len(rows), 1, 1, 1, 1, device=rows.device) < (name == "text") / 2
        source = painted(clips, everything) * film
        return Drawn(clips=clips, source=source, mask=everything, references=references)
    if name in ("inpaint", "swap"):
        mask = boxes(rows, times)
    elif name == "outpaint":
        mask = borders(rows)
    elif name == "extend":
        count = torch.where(torch.rand(len(rows), 1, device=rows.device) < 0.5, 5, 9)
        mask = frames_mask(torch.arange(world.FRAMES, device=rows.device) < count)
    else:
        mask = frames_mask(some_frames(len(rows), rows.device))
    return Drawn(clips=clips, source=painted(clips, mask), mask=mask, references=references)
