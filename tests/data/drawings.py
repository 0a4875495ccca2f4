"""Draws the small videos and the mask that videos.py records runs with.

They are saved as folders of PNG frames below tests/data/expected/videos: 1.png, 2.png and so on.
"""

from pathlib import Path

import numpy as np
from PIL import Image

VIDEOS = Path(__file__).parent / "expected" / "videos"
FRAMES = 9
HEIGHT = 32
WIDTHS = {"clip": 48, "wide": 64}
LENGTHS = {"clip": 9, "wide": 7}


def draw_video(name: str) -> list[Image.Image]:
    """Draw and save a video: a picture of a few soft colors that moves and changes."""
    generator = np.random.Generator(np.random.Philox(len(name) + WIDTHS[name]))
    width, length = WIDTHS[name], LENGTHS[name]
    start, end = generator.integers(0, 256, (2, 6, width // 8 + length, 3), np.uint8).astype(float)
    frames = []
    for at in range(length):
        pixels = np.round(start + (end - start) * at / length).astype(np.uint8)
        pixels = pixels[:, at : at + width // 8]
        image = Image.fromarray(pixels).resize((width, HEIGHT), Image.Resampling.BICUBIC)
        frames.append(store(image, name, at))
    return frames


def draw_mask() -> list[np.ndarray]:
    """Draw and save a mask: a white square that moves, one more pixel, and too dark a stripe."""
    frames = []
    for at in range(FRAMES):
        pixels = np.zeros((HEIGHT, WIDTHS["clip"]), np.uint8)
        pixels[-6:] = 127
        pixels[8:24, 8 + 2 * at : 24 + 2 * at] = 255
        if at == 6:
            pixels[0, -1] = 128
        store(Image.fromarray(pixels), "mask", at)
        frames.append(pixels)
    return frames


def store(image: Image.Image, name: str, at: int) -> Image.Image:
    (VIDEOS / name).mkdir(parents=True, exist_ok=True)
    image.save(VIDEOS / name / f"{at + 1}.png", optimize=True)
    return image


def latent_mask(frames: list[np.ndarray]) -> np.ndarray:
    """Mark (1, F, H, W) the positions with a white pixel: in their 8 x 8 block, in any frame."""
    white = np.stack(frames) > 127
    blocks = white.reshape(len(frames), HEIGHT // 8, 8, -1, 8).any(axis=(2, 4))
    groups = [blocks[:1], *np.split(blocks[1:], len(blocks) // 4)]
    return np.stack([group.any(axis=0) for group in groups])[None].astype(np.uint8)
