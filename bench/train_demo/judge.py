"""Classifies what the frames of a clip show, by their pixels. Uses NumPy and no network.

A background of the toy world depends only on the pixel row, so the object is every pixel that
differs from it. The object's radius at each angle around its center gives its shape and rotation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wanpipe.demo import world

ANGLES, RADII = 120, np.arange(0, 60, 0.5)  # directions; distances from the center in pixels
BORDER = 5  # pixels at the left and right edges that show the background
BLURRED = 0.12  # largest deviation of an outline from its shape, as a fraction of the radius
CLUTTER = 8.0  # largest mean difference, of 255, from one object on its background
MOVED, GREW, TURNED = 8.0, 1.2, 0.4  # pixels, ratio, radians; less counts as still
FAST = {"move": 27.0, "growing": 1.78, "spinning": 1.35}  # this much or more counts as fast


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the frames show; None means that no word fits."""

    shape: str | None
    color: str | None
    motion: str | None
    speed: str | None
    background: str | None
    outline: bool = False


def look(frames: np.ndarray) -> Seen:
    """Describe uint8 frames (T, Y, X, 3)."""
    frames = frames.astype(np.float32)
    back = backdrop(frames)
    cover, fill = separate(frames, back)
    background = nearest_background(back)
    if cover is None or clutter(frames, back, cover, fill) > CLUTTER:
        return Seen(shape=None, color=None, motion=None, speed=None, background=background)
    centers, radii, inside = outlines(cover)
    shape = majority([nearest_shape(r) for r in radii])
    motion, speed = movement(centers, radii, shape)
    return Seen(
        shape=shape,
        color=min(world.COLORS, key=lambda c: float(np.abs(fill - world.COLORS[c]).sum())),
        motion=motion,
        speed=speed,
        background=background,
        outline=bool(np.median(inside) < 0.5),
    )


def score(frames: np.ndarray, scene: world.Scene) -> dict[str, bool | None]:
    """Compare frames with a scene; None for a kind of word that the scene leaves open."""
    seen = look(frames)
    names = ("color", "shape", "motion", "speed", "background")
    result: dict[str, bool | None] = {
        name: None if getattr(scene, name) is None else getattr(seen, name) == getattr(scene, name)
        for name in names
    }
    result["all"] = bool(result["color"] and result["shape"] and result["motion"])
    return result


def kept_psnr(frames: np.ndarray, given: np.ndarray, known: np.ndarray) -> float:
    """Return the PSNR of the known pixels (T, Y, X) of uint8 frames, in dB."""
    errors = ((frames.astype(np.float32) - given) ** 2).mean(-1)[known]
    return float(10 * np.log10(255**2 / max(errors.mean(), 1e-6))) if errors.size else np.inf


def away(mask: np.ndarray, reach: int = 8) -> np.ndarray:
    """Return the pixels (T, Y, X) that a mask does not touch, nor come near.

    A latent pixel covers 8x8 pixels of four frames (of one, at the start), so near means `reach`
    pixels from what is made anew in any of these frames.
    """
    known = np.empty(mask.shape, bool)
    for start, stop in [(0, 1), *((i, i + 4) for i in range(1, len(mask), 4))]:
        wide = np.pad(mask[start:stop].max(0) > 0, reach)
        for axis in (0, 1):
            parts = np.lib.stride_tricks.sliding_window_view(wide, 2 * reach + 1, axis)
            wide = parts.any(-1)
        known[start:stop] = ~wide
    return known


def coverage(frames: np.ndarray) -> np.ndarray:
    """Return whether each pixel (T, Y, X) shows the object."""
    pixels = frames.astype(np.float32)
    cover, _ = separate(pixels, backdrop(pixels))
    return np.zeros(frames.shape[:3], bool) if cover is None else cover > 0.5


def overlap(frames: np.ndarray, given: np.ndarray) -> float:
    """Return the objects' intersection over union, in the mean of all frames."""
    ours, theirs = coverage(frames), coverage(given)
    union = (ours | theirs).sum((1, 2))
    return float(((ours & theirs).sum((1, 2)) / np.maximum(union, 1)).mean())


def joint(frames: np.ndarray, known: int) -> tuple[float, float]:
    """Return the mean difference, of 255, across the joint and the largest of all others."""
    steps = np.abs(np.diff(frames.astype(np.float32), axis=0)).mean((1, 2, 3))
    return float(steps[known - 1]), float(np.delete(steps, known - 1).max())


def backdrop(frames: np.ndarray) -> np.ndarray:
    """Return the background color of every row, (Y, 3), from the left and right borders."""
    sides = np.concatenate([frames[:, :, :BORDER], frames[:, :, -BORDER:]], axis=2)
    rows: np.ndarray = np.median(sides, axis=(0, 2))
    return rows


def separate(frames: np.ndarray, back: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Return the object's coverage of each pixel, (T, Y, X) in 0 to 1, and its color."""
    change = frames - back[:, None]
    distance = np.sqrt((change**2).sum(-1))  # (T, Y, X)
    strong = distance > 0.7 * np.quantile(distance, 0.99)
    if np.quantile(distance, 0.99) < 25:  # only noise
        return None, np.zeros(3)
    fill = np.median(frames[strong], axis=0)
    contrast = fill - back[:, None]
    cover = (change * contrast).sum(-1) / np.maximum((contrast**2).sum(-1), 1)
    cover = np.clip(cover, 0, 1)
    return np.where(cover < 0.2, 0, cover), fill


def clutter(frames: np.ndarray, back: np.ndarray, cover: np.ndarray, fill: np.ndarray) -> float:
    """Return the mean difference from one object of one color, in the worst frame."""
    ideal = back[:, None] + cover[..., None] * (fill - back[:, None])
    return float(np.abs(frames - ideal).mean((1, 2, 3)).max())


def nearest_background(back: np.ndarray) -> str | None:
    """Return the background nearest to the rows (Y, 3), or None if none is near."""
    rows = len(back)
    at = (np.arange(rows) + 0.5) * world.SIZE / rows - 0.5
    errors = {}
    for name, (top, low, striped) in world.BACKGROUNDS.items():
        mix = np.floor((at + 0.5) / (world.STRIPE / 2)) % 2 if striped else at / (world.SIZE - 1)
        ideal = np.array(top) + (np.array(low) - np.array(top)) * mix[:, None]
        errors[name] = np.abs(ideal - back).mean()
    best = min(errors, key=lambda name: errors[name])
    return best if errors[best] < 25 else None


def outlines(cover: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure each frame: center (T, 2), radius by angle (T, ANGLES), filled fraction (T,).

    The radii of an empty frame are NaN.
    """
    centers, radii, inside = [], [], []
    for frame in cover:
        y, x = center(frame)
        reach, full = np.full(ANGLES, np.nan), 0.0
        if np.isfinite(x):
            y, x = recenter(extent(polar(frame, y, x)), y, x)
            profile = polar(frame, y, x)
            reach = extent(profile)
            core = RADII[None] < 0.45 * reach[:, None]
            full = float(profile[core].mean()) if core.any() else 0.0
        centers.append((x, y))
        radii.append(reach)
        inside.append(full)
    return np.array(centers), np.array(radii), np.array(inside)


def extent(profile: np.ndarray) -> np.ndarray:
    """Return the radius at every angle, (ANGLES,), from samples (ANGLES, len(RADII)).

    The inside counts as filled, so an outline measures like the shape it encloses. A line too thin
    to cover a pixel counts as solid.
    """
    filled = np.maximum.accumulate(profile[:, ::-1], axis=1)[:, ::-1]
    filled = filled / np.maximum(filled[:, :1], 0.35)
    reach: np.ndarray = filled.sum(1) * (RADII[1] - RADII[0])
    return reach


def center(frame: np.ndarray) -> tuple[float, float]:
    """Return the center of mass (y, x), or NaN for an empty frame."""
    total = frame.sum()
    if total < 20:
        return np.nan, np.nan
    y, x = np.indices(frame.shape)
    return (frame * y).sum() / total, (frame * x).sum() / total


def recenter(reach: np.ndarray, y: float, x: float) -> tuple[float, float]:
    """Move (y, x) to the center of the area that the radii enclose."""
    angle = 2 * np.pi * np.arange(ANGLES) / ANGLES
    area = np.maximum((reach**2).sum() / 2, 1e-6)
    return y - (reach**3 * np.cos(angle)).sum() / 3 / area, x + (
        reach**3 * np.sin(angle)
    ).sum() / 3 / area


def polar(frame: np.ndarray, y: float, x: float) -> np.ndarray:
    """Sample a frame around a center, (ANGLES, len(RADII)); angle 0 is up, then clockwise."""
    angle = 2 * np.pi * np.arange(ANGLES)[:, None] / ANGLES
    rows, columns = y - RADII * np.cos(angle), x + RADII * np.sin(angle)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    total = np.zeros(rows.shape)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = (1 - abs(rows - top - i)) * (1 - abs(columns - left - j))
        r, c = top + i, left + j
        known = (r >= 0) & (r < frame.shape[0]) & (c >= 0) & (c < frame.shape[1])
        total += np.where(
            known, weight * frame[r.clip(0, len(frame) - 1), c.clip(0, frame.shape[1] - 1)], 0
        )
    return total


def ideal(shape: str) -> np.ndarray:
    """Return the outline of a shape, (ANGLES,), with mean radius 1 and a corner at angle 0."""
    index = world.SHAPES.index(shape)
    corners, waist = world.CORNERS[index], world.WAIST[index]
    if corners == 0:
        return np.ones(ANGLES)
    sector = 2 * np.pi / corners
    angle = 2 * np.pi * np.arange(ANGLES) / ANGLES
    angle = abs(angle - sector * np.floor(angle / sector + 0.5))
    ex, ey = waist * np.cos(sector / 2) - 1, waist * np.sin(sector / 2)
    # the intersection of the ray at this angle with the edge from corner to waist
    reach: np.ndarray = ey / (ey * np.cos(angle) - ex * np.sin(angle))
    reach /= reach.mean()
    return reach


def nearest_shape(reach: np.ndarray) -> str | None:
    """Return the shape whose outline is nearest at its best rotation, or None if none is near."""
    if not np.isfinite(reach).all() or reach.mean() < 3:
        return None
    reach = reach / reach.mean()
    errors = {}
    for shape in world.SHAPES:
        spectrum = np.fft.rfft(reach) * np.conj(np.fft.rfft(ideal(shape)))
        match = np.fft.irfft(spectrum, ANGLES).max()
        square = (reach**2).sum() + (ideal(shape) ** 2).sum() - 2 * match
        errors[shape] = np.sqrt(max(square, 0) / ANGLES)
    best = min(errors, key=lambda shape: errors[shape])
    return best if errors[best] < BLURRED else None


def majority(names: list[str | None]) -> str | None:
    """Return the shape that at least two thirds of the frames show."""
    best = max(set(names), key=names.count)
    return best if names.count(best) * 3 >= len(names) * 2 else None


def movement(
    centers: np.ndarray, radii: np.ndarray, shape: str | None
) -> tuple[str | None, str | None]:
    """Derive motion and speed from the first and last frames and the rotation between them."""
    if not np.isfinite(radii).all():
        return None, None
    shift = centers[-2:].mean(0) - centers[:2].mean(0)
    shift *= len(centers) / max(len(centers) - 2, 1) * (len(centers) - 1) / len(centers)
    size = radii.mean(1)
    growth = size[-2:].mean() / size[:2].mean()
    turn = rotation(radii, shape)
    strengths = {
        "move": float(np.abs(shift).max()) / MOVED,
        "growing": float(np.log(max(growth, 1e-3)) / np.log(GREW)),
        "spinning": turn / TURNED,
    }
    best = max(strengths, key=lambda name: strengths[name])
    if strengths[best] < 1:
        return "still", None
    amount = {"move": float(np.abs(shift).max()), "growing": growth, "spinning": turn}[best]
    speed = "fast" if amount >= FAST[best] else "slow"
    if best != "move":
        return best, speed
    sideways = abs(shift[0]) > abs(shift[1])
    names = ("left", "right") if sideways else ("up", "down")
    return names[int(shift[0 if sideways else 1] > 0)], speed


def rotation(radii: np.ndarray, shape: str | None) -> float:
    """Sum the rotation between frames, in radians, from the phase of the shape's corners."""
    corners = world.CORNERS[world.SHAPES.index(shape)] if shape else 0
    if corners == 0:
        return 0.0
    phase = np.angle(np.fft.rfft(radii, axis=1)[:, corners])
    steps = np.angle(np.exp(1j * np.diff(phase)))
    return abs(float(steps.sum())) / corners
