"""Prepares the held-out cases of image-to-video and VACE: prompts, films, masks and images.

Needs only NumPy. `CASES` maps the name of a task to a function of the prompt's number, 0 to 49.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from wanpipe.demo import world
from wanpipe.demo.world import Scene

GRAY = 127  # of what is made anew
FIRST = 500  # seed of the first scene's film
AT = {name: i for i, name in enumerate(world.COLUMNS)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One prompt with what is given; the target is a film that does what is asked."""

    number: int
    prompt: str
    scene: Scene
    target: np.ndarray  # (T, Y, X, 3) uint8
    source: np.ndarray  # (T, Y, X, 3) uint8, gray where pixels are made anew
    mask: np.ndarray  # (T, Y, X) uint8, 1 where pixels are made anew
    reference: np.ndarray | None = None  # (Y, X, 3) uint8
    extend: int = 0  # known frames at the start
    outline: bool = False  # the source is an outline film
    decoded: bool = False  # the film given is one that the VAE decoded, as the demo's own are
    film: bool = True  # a source is given; without one the pixels are 0 in -1 to 1


def paint(row: np.ndarray, first: float = 0.0) -> np.ndarray:
    """Draw the film of one row from the time `first` on, uint8 (T, Y, X, 3)."""
    shapes, times, steps = world.paint_constants()
    film = np.asarray(world.paint(row[None], (shapes, times + np.float32(first), steps))[0])
    frames: np.ndarray = np.round(np.clip(film, 0, 255)).astype(np.uint8)
    return frames


def prompt_of(number: int) -> tuple[str, Scene, np.ndarray]:
    """Return a held-out prompt, its scene and the row of its film."""
    prompt, scene = world.test_prompts()[number]
    return prompt, scene, world.sample_row(scene, np.random.default_rng(FIRST + number))


def case(number: int, mask: np.ndarray, source: np.ndarray | None = None) -> Case:
    """Make a case whose source is its target, or a given film, with gray under the mask."""
    prompt, scene, row = prompt_of(number)
    target = paint(row)
    film = target if source is None else source
    shown = np.where(mask[..., None] > 0, np.uint8(GRAY), film)
    return Case(number=number, prompt=prompt, scene=scene, target=target, source=shown, mask=mask)


def blank(value: int = 1) -> np.ndarray:
    """Return a mask of one value."""
    return np.full((world.FRAMES, world.SIZE, world.SIZE), value, np.uint8)


def known(*frames: int) -> Callable[[int], Case]:
    """Give some frames."""

    def prepare(number: int) -> Case:
        mask = blank()
        mask[list(frames)] = 0
        return case(number, mask)

    return prepare


def extended(count: int, decoded: bool = False) -> Callable[[int], Case]:
    """Give the first `count` frames."""

    def prepare(number: int) -> Case:
        return replace(known(*range(count))(number), extend=count, decoded=decoded)

    return prepare


def later(count: int) -> Callable[[int], Case]:
    """Give the last `count` frames of a whole slow film that stays on the canvas after its end."""

    def prepare(number: int) -> Case:
        prompt, scene, _ = prompt_of(number)
        if scene.speed == "fast":
            scene = replace(scene, speed="slow")
            prompt = world.caption(scene, np.random.default_rng(FIRST + number))
        row = world.sample_row(scene, np.random.default_rng(FIRST + number))
        first = (world.FRAMES - count) / (world.FRAMES - 1)
        for name in "xy":
            row[AT[name]] = (world.SIZE - 1 - row[AT[f"d{name}"]] * (1 + first)) / 2
        film = paint(row, first)
        mask = blank()
        mask[:count] = 0
        shown = np.where(mask[..., None] > 0, np.uint8(GRAY), film)
        return Case(
            number=number,
            prompt=prompt,
            scene=scene,
            target=film,
            source=shown,
            mask=mask,
            extend=count,
            decoded=True,
        )

    return prepare


def path(row: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the object's center x, y and a radius that holds any shape, in every frame."""
    times = np.linspace(0, 1, world.FRAMES)
    v = {name: float(row[i]) for name, i in AT.items()}
    radius = v["size"] * max(world.REACH) * (1 + (v["growth"] - 1) * times)
    return v["x"] + v["dx"] * times, v["y"] + v["dy"] * times, radius


def box(left: np.ndarray, top: np.ndarray, right: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Return a mask with one rectangle per frame; the edges are (T,)."""
    at = np.arange(world.SIZE)
    columns = (at >= left[:, None]) & (at <= right[:, None])
    rows = (at >= top[:, None]) & (at <= bottom[:, None])
    return (rows[:, :, None] & columns[:, None, :]).astype(np.uint8)


def other_film(number: int) -> np.ndarray:
    """Draw the film with another shape and another color."""
    _, scene, row = prompt_of(number)
    colors = [c for c in world.COLORS if c != scene.color and c != scene.background]
    row = row.copy()
    row[0] = (row[0] + 1 + number % 3) % 4
    row[AT["red"] : AT["red"] + 3] = world.COLORS[colors[number % len(colors)]]
    return paint(row)


def moving_box(number: int) -> Case:
    """Replace the object inside a box that follows it."""
    x, y, radius = path(prompt_of(number)[2])
    reach = radius + 4
    return case(number, box(x - reach, y - reach, x + reach, y + reach), other_film(number))


def still_box(number: int) -> Case:
    """Replace the object inside a box around its path."""
    x, y, radius = path(prompt_of(number)[2])
    low, high = (
        [(at - radius).min() - 4 for at in (x, y)],
        [(at + radius).max() + 4 for at in (x, y)],
    )
    edges = [np.full(world.FRAMES, edge) for edge in (*low, *high)]
    return case(number, box(*edges), other_film(number))


def background_box(number: int) -> Case:
    """Make a box anew that holds only background, as far from the object as possible."""
    x, y, radius = path(prompt_of(number)[2])
    places = [(a, b) for a in (0, 34, 68) for b in (0, 34, 68)]
    gaps = [
        (np.maximum(abs(x - a - 13.5), abs(y - b - 13.5)) - 14 - radius).min() for a, b in places
    ]
    left, top = places[int(np.argmax(gaps))]
    edges = [np.full(world.FRAMES, edge) for edge in (left, top, left + 27, top + 27)]
    return case(number, box(*edges))


def outpainted(number: int) -> Case:
    """Make a border anew, on one to four sides."""
    sides = [(24, 0, 0, 0), (0, 0, 24, 0), (16, 0, 16, 0), (0, 20, 0, 20), (14, 14, 14, 14)]
    left, top, right, bottom = sides[number % len(sides)]
    mask = blank()
    mask[:, top : world.SIZE - bottom, left : world.SIZE - right] = 0
    return case(number, mask)


def still(scene: Scene) -> np.ndarray:
    """Draw a reference image: the shape in its color on white."""
    middle = (world.SIZE - 1) / 2
    numbers = [world.SHAPES.index(scene.shape), middle, middle, 0, 0, 24, 1, 0]
    row = np.array([*numbers, *world.COLORS[scene.color], *[255] * 6, 0, 0], np.float32)
    return paint(row)[0]


def unnamed(number: int, *hide: str) -> str:
    """Describe a scene without some kinds of word."""
    _, scene, _ = prompt_of(number)
    return world.caption(scene, np.random.default_rng(FIRST + number), hide=hide)


def referenced(hide: bool) -> Callable[[int], Case]:
    """Give a reference image alone, and a prompt with or without its shape and color."""

    def prepare(number: int) -> Case:
        made = case(number, blank())
        prompt = unnamed(number, "shape", "color") if hide else made.prompt
        return replace(made, prompt=prompt, film=False, reference=still(made.scene))

    return prepare


def swapped(number: int) -> Case:
    """Replace the object in a box by that of a reference image; the prompt names neither."""
    made = moving_box(number)
    prompt = unnamed(number, "shape", "color")
    return replace(made, prompt=prompt, reference=still(made.scene))


def line_film(number: int, own: bool) -> np.ndarray:
    """Draw the outline film of a scene: white on black, or in another color on its background."""
    _, scene, row = prompt_of(number)
    row = row.copy()
    row[AT["outline"]] = 1
    if own:
        colors = [c for c in world.COLORS if c != scene.color and c != scene.background]
        row[AT["red"] : AT["red"] + 3] = world.COLORS[colors[number % len(colors)]]
    else:
        row[AT["red"] : AT["outline"]] = [245] * 3 + [18] * 6 + [0]
    return paint(row)


def controlled(own: bool = False, reference: bool = False) -> Callable[[int], Case]:
    """Give an outline film and a prompt, or a reference image and a prompt without its color."""

    def prepare(number: int) -> Case:
        made = replace(case(number, blank()), source=line_film(number, own), outline=True)
        if not reference:
            return made
        prompt = unnamed(number, "color")
        return replace(made, prompt=prompt, reference=still(made.scene))

    return prepare


def plain(number: int) -> Case:
    """Give nothing but the prompt."""
    return replace(case(number, blank()), film=False)


CASES: dict[str, Callable[[int], Case]] = {
    "i2v-first": known(0),
    "i2v-first-last": known(0, 16),
    "i2v-last": known(16),
    "i2v-extend5": extended(5),
    "i2v-extend9": extended(9),
    "i2v-decoded5": extended(5, decoded=True),
    "i2v-later5": later(5),
    "vace-text": plain,
    "vace-moving-box": moving_box,
    "vace-still-box": still_box,
    "vace-background": background_box,
    "vace-extend5": extended(5),
    "vace-extend9": extended(9),
    "vace-decoded5": extended(5, decoded=True),
    "vace-later5": later(5),
    "vace-first": known(0),
    "vace-last": known(16),
    "vace-first-last": known(0, 16),
    "vace-middle": known(8),
    "vace-outpaint": outpainted,
    "vace-reference": referenced(hide=True),
    "vace-reference-words": referenced(hide=False),
    "vace-control": controlled(),
    "vace-control-own": controlled(own=True),
    "vace-swap": swapped,
    "vace-control-reference": controlled(reference=True),
}
