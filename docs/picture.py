"""Draws docs/demo.gif: six videos of the demo model, each above its prompt.

    make picture

`wanpipe demo` makes the videos, or reads them from the cache.
"""

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stages import demo
from wanpipe.cli.progress import PlainReport
from wanpipe.media import video
from wanpipe.store import Store

PROMPTS = (
    "a red circle moves right on a white background",
    "a yellow star spins quickly on a black background",
    "in the sky, a pink triangle falls quickly",
    "a blue square grows quickly on a grey background",
    "a golden disc rises quickly against a blue wall",
    "the purple star slides left over stripes",
)
SEED, COLUMNS = 1, 3
SIDE, GAP, CAPTION = 160, 12, 38  # pixels
PAUSE = 900  # milliseconds on the last frame
COLORS = 128  # of the palette; more colors enlarge the file and look the same
BACK, INK = (255, 255, 255), (40, 40, 40)


def main() -> None:
    """Make the videos and write the picture."""
    store, videos = Store("cache", PlainReport()), []
    for prompt in PROMPTS:
        asked = demo.Params(prompt=prompt, seeds=(SEED,), output_dir=Path("out/demo"))
        videos.append(video.read_video(demo.run(asked, store)[0])[:2])
    clips, fps = np.stack([frames for frames, _ in videos]), videos[0][1]  # (6, T, Y, X, 3)
    # one palette and no dithering: the file is small and nothing flickers
    pages = [draw(clips[:, t]) for t in range(clips.shape[1])]
    palette = joined(pages).quantize(COLORS, dither=Image.Dither.NONE)
    first, *rest = [page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages]
    durations = [*[round(1000 / fps)] * len(rest), PAUSE]
    target = Path(__file__).parent / "demo.gif"
    first.save(target, save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


def draw(frames: np.ndarray) -> Image.Image:
    """Draw one moment of all videos, (6, Y, X, 3) uint8, each above its prompt."""
    rows = -(-len(frames) // COLUMNS)
    size = (GAP + COLUMNS * (SIDE + GAP), GAP + rows * (SIDE + CAPTION))
    page, font = Image.new("RGB", size, BACK), ImageFont.load_default(12)
    pen = ImageDraw.Draw(page)
    for index, (frame, prompt) in enumerate(zip(frames, PROMPTS, strict=True)):
        row, column = divmod(index, COLUMNS)
        left, top = GAP + column * (SIDE + GAP), GAP + row * (SIDE + CAPTION)
        page.paste(
            Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, top)
        )
        text = "\n".join(textwrap.wrap(prompt, 28))
        pen.multiline_text((left, top + SIDE + 3), text, fill=INK, font=font, spacing=1)
    return page


def joined(pages: list[Image.Image]) -> Image.Image:
    """Stack some pages, to choose the palette from."""
    return Image.fromarray(np.concatenate([np.asarray(page) for page in pages[::4]]))


if __name__ == "__main__":
    main()
