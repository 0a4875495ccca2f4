"""The toy world of the demo models: short clips of one moving shape, and their captions.

Needs only NumPy, so that training and tests draw exactly the same clips. A scene is a set of words
(`Scene`) and a row of numbers (`COLUMNS`). `paint` draws rows with any array module that has
NumPy's function names, so the CPU and the GPU share one formula.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from wanpipe.demo.vocabulary import ORDERS, PREFIX, UNNAMED, WORDS, find_words, missing

FRAMES, SIZE, FPS = 17, 96, 8  # frames, pixels on a side, frames per second

SHAPES = ("circle", "square", "triangle", "star")
COLORS = {
    "red": (225, 45, 45),
    "orange": (245, 140, 25),
    "yellow": (250, 215, 40),
    "green": (45, 165, 70),
    "cyan": (40, 200, 210),
    "blue": (50, 85, 225),
    "purple": (145, 60, 190),
    "pink": (250, 125, 185),
}
# top color, bottom color, striped; every background depends only on the pixel row
BACKGROUNDS = {
    "white": ((245, 245, 245), (245, 245, 245), False),
    "black": ((18, 18, 20), (18, 18, 20), False),
    "grey": ((128, 128, 128), (128, 128, 128), False),
    "blue": ((28, 48, 112), (28, 48, 112), False),
    "sky": ((135, 185, 240), (235, 243, 252), False),
    "striped": ((205, 205, 205), (160, 160, 160), True),
}
MOTIONS = ("left", "right", "up", "down", "still", "growing", "spinning")
SPEEDS = ("slow", "fast")

CORNERS = (0, 4, 3, 5)  # per shape; 0 for the circle
WAIST = (1.0, np.cos(np.pi / 4), np.cos(np.pi / 3), 0.52)  # inner radius / outer radius
REACH = (1.0, 1.2, 1.35, 1.35)  # radius / size; makes the four areas similar
LEAN = (0.0, np.pi / 4, 0.0, 0.0)  # radians clockwise; a square rests on its side
TRAVEL = {"slow": (14, 18), "fast": (36, 42)}  # pixels over the whole clip
GROWTH = {"slow": (1.40, 1.50), "fast": (2.10, 2.30)}  # last size / first size
TURN = {"slow": (0.80, 1.00), "fast": (1.70, 2.00)}  # radians clockwise over the whole clip
STRIPE = 16  # pixels in one light and one dark stripe
LINE = 4.0  # width of an outline in pixels

COLUMNS = (
    *("shape", "x", "y", "dx", "dy", "size", "growth", "turn"),
    *("red", "green", "blue", "top_r", "top_g", "top_b", "low_r", "low_g", "low_b"),
    *("striped", "outline"),
)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a caption says; None means that it does not say."""

    shape: str
    color: str
    motion: str
    background: str | None = None
    speed: str | None = None


def possible(shape: str, color: str, background: str, motion: str) -> bool:
    """Return whether the combination is visible in a clip."""
    return not (shape == "circle" and motion == "spinning") and not color == background == "blue"


def combinations() -> list[tuple[str, str, str, str]]:
    """List every visible (shape, color, background, motion) in a fixed order."""
    return [
        (shape, color, background, motion)
        for shape in SHAPES
        for color in COLORS
        for background in BACKGROUNDS
        for motion in MOTIONS
        if possible(shape, color, background, motion)
    ]


def held_out(count: int = 50) -> list[tuple[str, str, str, str]]:
    """Choose the combinations that training never sees, balanced over motions and shapes."""
    rng = np.random.default_rng(2026)
    pool = [combinations()[i] for i in rng.permutation(len(combinations()))]
    chosen: list[tuple[str, str, str, str]] = []
    for i in range(count):
        turn, place = divmod(i, len(MOTIONS))
        motion, shape = MOTIONS[place], SHAPES[(turn + place) % len(SHAPES)]
        if shape == "circle" and motion == "spinning":
            shape = SHAPES[1 + turn % 3]
        used = Counter(word for c in chosen for word in (c[1], c[2] + " background"))
        fitting = [c for c in pool if (c[0], c[3]) == (shape, motion) and c not in chosen]
        chosen.append(min(fitting, key=lambda c: used[c[1]] + used[c[2] + " background"]))
    return chosen


def sample_scenes(rng: np.random.Generator, count: int) -> list[Scene]:
    """Sample training scenes, uniformly over the allowed combinations and speeds."""
    banned = set(held_out())
    pool = [c for c in combinations() if c not in banned]
    scenes = []
    for i in rng.integers(len(pool), size=count):
        shape, color, background, motion = pool[i]
        speed = None if motion == "still" else SPEEDS[rng.integers(2)]
        scenes.append(
            Scene(shape=shape, color=color, motion=motion, background=background, speed=speed)
        )
    return scenes


def sample_row(scene: Scene, rng: np.random.Generator, outline: bool = False) -> np.ndarray:
    """Sample the numbers of a scene and return one row of COLUMNS, float32."""
    background = scene.background or rng.choice(
        [b for b in BACKGROUNDS if possible(scene.shape, scene.color, b, scene.motion)]
    )
    speed = scene.speed or SPEEDS[rng.integers(2)]
    size, growth, turn, dx, dy = rng.uniform(14.0, 17.5), 1.0, 0.0, 0.0, 0.0
    if scene.motion == "growing":
        size, growth = rng.uniform(10.5, 12.5), rng.uniform(*GROWTH[speed])
    elif scene.motion == "spinning":
        size, turn = rng.uniform(15.0, 19.0), rng.uniform(*TURN[speed])
    elif scene.motion != "still":
        direction = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[scene.motion]
        dx, dy = rng.uniform(*TRAVEL[speed]) * np.array(direction)
    reach = size * growth * REACH[SHAPES.index(scene.shape)] + 2
    x, y = (start_position(rng, reach, travel) for travel in (dx, dy))
    top, low, striped = BACKGROUNDS[background]
    color = np.array([*COLORS[scene.color], *top, *low]) + rng.normal(0, 4, 9)
    if top == low:
        color[6:] = color[3:6]  # a plain background stays plain
    numbers = [SHAPES.index(scene.shape), x, y, dx, dy, size, growth, turn]
    return np.array([*numbers, *np.clip(color, 0, 255), striped, outline], np.float32)


def start_position(rng: np.random.Generator, reach: float, travel: float) -> float:
    """Sample a start coordinate that keeps the shape on the canvas for the whole clip."""
    low, high = reach - min(travel, 0), SIZE - reach - max(travel, 0)
    middle = (low + high) / 2
    spread = (
        max(min(high - low, 36.0), 0.0) / 2
    )  # only the middle of the canvas, which is easier to learn
    return float(rng.uniform(middle - spread, middle + spread))


def paint(rows: Any, constants: Any, xp: ModuleType = np) -> Any:
    """Draw rows (B, len(COLUMNS)) as clips (B, T, Y, X, 3), values 0 to 255, not rounded.

    `constants` is `paint_constants()` on the device of the rows; `xp` is the array module. The
    times may be (B, T), each row's own; 0 is the start of the clip, 1 is its end.
    """
    shapes, times, steps = constants
    v = {name: rows[:, i, None, None, None] for i, name in enumerate(COLUMNS)}  # (B, 1, 1, 1)
    index = rows[:, 0].astype(int) if xp is np else rows[:, 0].long()
    corners, waist, reach, lean = shapes[index].T[:, :, None, None, None]
    time = (times if times.ndim == 2 else times[None])[:, :, None, None]
    px = steps[None, None, None, :] - v["x"] - v["dx"] * time
    py = steps[None, None, :, None] - v["y"] - v["dy"] * time
    radius = v["size"] * reach * (1 + (v["growth"] - 1) * time)
    distance = xp.sqrt(px * px + py * py + 1e-12)
    sector = 2 * np.pi / xp.clip(corners, 1, None)
    angle = xp.arctan2(px + 0 * py, -py + 0 * px) - lean - v["turn"] * time
    angle = abs(angle - sector * xp.floor(angle / sector + 0.5))  # from the nearest corner
    # an edge runs from the corner to the waist point half a sector away
    ex, ey = radius * (waist * xp.cos(sector / 2) - 1), radius * waist * xp.sin(sector / 2)
    fx, fy = distance * xp.cos(angle) - radius, distance * xp.sin(angle)
    edge = (ey * fx - ex * fy) / xp.sqrt(ex * ex + ey * ey)
    depth = xp.where(corners > 0, edge, distance - radius)
    ring = abs(depth + LINE / 2) - LINE / 2
    cover = xp.clip(0.5 - xp.where(v["outline"] > 0, ring, depth), 0, 1)[..., None]
    row = steps[None, None, :, None]
    dark = xp.where(v["striped"] > 0, xp.floor(row / (STRIPE / 2)) % 2, row / (SIZE - 1))[..., None]
    fill, top, low = (
        xp.stack([v[name] for name in COLUMNS[i : i + 3]], -1) for i in (8, 11, 14)
    )  # (B, 1, 1, 1, 3)
    return (top + (low - top) * dark) * (1 - cover) + fill * cover


def paint_constants() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the constants of `paint`: shapes, times and pixel positions."""
    shapes = np.array([CORNERS, WAIST, REACH, LEAN], np.float32).T
    return shapes, np.linspace(0, 1, FRAMES, dtype=np.float32), np.arange(SIZE, dtype=np.float32)


def render(scene: Scene, seed: int = 0, outline: bool = False) -> np.ndarray:
    """Draw one clip of a scene, uint8 (T, Y, X, 3)."""
    row = sample_row(scene, np.random.default_rng(seed), outline)
    clip = np.asarray(paint(row[None], paint_constants())[0], np.float32)
    frames: np.ndarray = np.round(np.clip(clip, 0, 255)).astype(np.uint8)
    return frames


def caption(
    scene: Scene,
    rng: np.random.Generator,
    order: int | None = None,
    hide: tuple[str, ...] = (),
) -> str:
    """Describe a scene with a random word order and random synonyms.

    `hide` lists the kinds of word to leave out; "a shape" then stands for any shape.
    """
    orders = [o for o in ORDERS if "color" not in hide or "is {color}" not in o]
    pattern = orders[rng.integers(len(orders)) if order is None else order % len(orders)]
    chosen = {
        name: str(rng.choice(words[getattr(scene, name)]))
        if getattr(scene, name) and name not in hide
        else ""
        for name, words in WORDS.items()
    }
    chosen["shape"] = chosen["shape"] or UNNAMED
    text = re.sub(r"\s+", " ", pattern.format(**chosen)).replace(" ,", ",").strip(" ,")
    text = re.sub(r"\b(a) (?=[aeo])", "an ", text)
    if rng.random() < 0.1:
        text = f"{PREFIX} {text}" if text.startswith(("a ", "an ", "the ")) else text
    if rng.random() < 0.4:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.4 else text


def omit_words(scene: Scene, rng: np.random.Generator) -> Scene:
    """Drop the speed from 15% of captions and the background from 8%."""
    return Scene(
        shape=scene.shape,
        color=scene.color,
        motion=scene.motion,
        background=None if rng.random() < 0.08 else scene.background,
        speed=None if rng.random() < 0.15 else scene.speed,
    )


def parse(text: str) -> Scene:
    """Parse a caption. Raises ValueError if it names no shape, color or motion."""
    if lacking := missing(text):
        raise ValueError(f"a caption must name a {', '.join(lacking)}; got {text!r}")
    return Scene(**find_words(text))


def test_prompts() -> list[tuple[str, Scene]]:
    """Return the 50 prompts of the evaluation, with their scenes."""
    rng, prompts = np.random.default_rng(50), []
    for i, (shape, color, background, motion) in enumerate(held_out()):
        speed = None if motion == "still" else SPEEDS[rng.integers(2)]
        scene = Scene(shape=shape, color=color, motion=motion, background=background, speed=speed)
        prompts.append((caption(scene, rng, order=i % len(ORDERS)), scene))
    return prompts
