"""The pictures of a gallery: a strip of frames for each step, and the first frame of each video.

A strip maps `x0` to colors linearly, without the VAE. Files are named by the key of their entry
and never change, so a picture that exists is not drawn again.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from wanpipe.cache.gallery.folder import PICTURES, VIDEOS, Folder
from wanpipe.errors import StoreError, WanpipeError
from wanpipe.runtime.documents import DocumentError, decode
from wanpipe.store import Run, key_of
from wanpipe.store.entry import read_entry
from wanpipe.store.index import Summary
from wanpipe.store.runs import Video

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

STRIP_FRAMES = 5  # frames in the strip of a step, as in a preview
STRIP_WIDTH, POSTER_WIDTH = 160, 640  # pixels of a frame, at most
QUALITY = 80  # of a WebP
LOSSLESS_BYTES = 1 << 15  # of pixels; smaller pictures are stored exactly
SAMPLES = 4  # prompts whose frames show what colors a VAE gives
PLAYABLE = (".mp4", ".webm", ".gif")


@dataclass
class Colors:
    """The map from latents to colors of the runs of one model.

    It is fitted to frames that the cache has, of a few prompts, since a VAE may be another than the
    official ones. Without frames it is the published map.
    """

    root: Path
    runs: Sequence[Run]
    frames: dict[str, Summary]  # the frames of a step, by its key
    damaged: dict[str, str] = field(default_factory=dict)

    @cached_property
    def map(self) -> "np.ndarray | None":
        """The map (C+1, 3), None if there is nothing to fit it to."""
        from wanpipe.media.latent_rgb import fit

        return fit(self.samples())

    def samples(self) -> "Iterator[tuple[np.ndarray, np.ndarray]]":
        """Yield latents (C, F, H, W) and the mean colors (F, H, W, 3) that they were decoded to."""
        seen: set[str] = set()
        for run in sorted(self.runs, key=lambda run: (run.created, run.key)):
            prompt = run.inputs.get("text", "")
            row = self.frames.get(run.last)
            if row is None or prompt in seen or len(seen) == SAMPLES:
                continue
            seen.add(prompt)
            try:
                latent = latent_of(self.root, run.last, run)
                colors = mean_colors(read_entry(self.root / row.id).blocks("frames"), latent.shape)
            except StoreError as error:
                self.damaged[row.id] = str(error)
                continue
            if colors is not None:
                yield latent, colors


def latent_of(root: Path, step: str, run: Run) -> "np.ndarray":
    """Read the clean latent (C, F, H, W) that a step predicts, without the frames of references and
    without trimmed ones. Raises StoreError.
    """
    latent = read_entry(root / "denoise" / step).read("x0")
    settings = run.settings
    return latent[:, (settings.reference_frames or 0) + settings.trim_first_frames :]


def mean_colors(blocks: "Iterable[np.ndarray]", shape: tuple[int, ...]) -> "np.ndarray | None":
    """Average frames (T, Y, X, 3) uint8 over the pixels of each value of a latent of a shape
    (C, F, H, W), as colors (F, H, W, 3) in [-1, 1]; None if they do not fit.
    """
    import numpy as np

    _, count, rows, columns = shape
    parts = []
    for block in blocks:
        length, height, width, _ = block.shape
        if height % rows or width % columns:
            return None
        cells = block.reshape(length, rows, height // rows, columns, width // columns, 3)
        parts.append(cells.mean((2, 4)))
    colors = np.concatenate(parts) / 127.5 - 1
    if len(colors) != 4 * (count - 1) + 1:
        return None
    # the first latent frame is one frame, each of the others is four
    rest = colors[1:].reshape(count - 1, 4, rows, columns, 3).mean(1)
    return np.concatenate([colors[:1], rest])


@dataclass(frozen=True)
class PictureWriter:
    """Puts pictures and videos of the cache at `root` into the folder of a gallery."""

    root: Path
    folder: Folder

    def strip(self, step: str, run: Run, colors: Colors) -> str | None:
        """Draw the strip of a step; return its name, None if its latent has no colors.

        Raises StoreError.
        """
        import numpy as np

        from wanpipe.media.latent_rgb import MAPS, linear_frames

        name = f"{PICTURES}/{step}.webp"
        if self.folder.has(name):
            return name
        latent = latent_of(self.root, step, run)
        mapped = colors.map
        if mapped is not None and len(mapped) != len(latent) + 1:
            mapped = None
        if mapped is None and len(latent) not in MAPS:
            return None
        frames = linear_frames(latent[:, chosen(latent.shape[1])], mapped)
        images = [np.asarray(shrunk(frame, STRIP_WIDTH)) for frame in frames]
        self.save(name, np.concatenate(images, axis=1))
        return name

    def poster(self, row: Summary) -> str:
        """Draw the first of some frames; return its name. Raises StoreError."""
        import numpy as np

        name = f"{PICTURES}/{row.key}.webp"
        if not self.folder.has(name):
            first = next(read_entry(self.root / row.id).blocks("frames"))[0]
            self.save(name, np.asarray(shrunk(first, POSTER_WIDTH)))
        return name

    def still(self, step: str, strip: str, frames: int) -> str:
        """Cut the frame in the middle out of the strip of a step; return its name."""
        import numpy as np
        from PIL import Image

        name = f"{PICTURES}/{key_of({'still': step})}.webp"
        if not self.folder.has(name):
            with Image.open(self.folder.root / strip) as image:
                pixels = np.asarray(image.convert("RGB"))
            width = pixels.shape[1] // frames
            middle = (frames - 1) // 2 * width
            self.save(name, pixels[:, middle : middle + width])
        return name

    def save(self, name: str, pixels: "np.ndarray") -> None:
        """Write a picture (Y, X, 3) uint8 as WebP."""
        from PIL import Image

        image = Image.fromarray(pixels)
        lossless = pixels.size < LOSSLESS_BYTES

        def save(draft: Path) -> None:
            image.save(draft, quality=QUALITY, method=4, lossless=lossless)

        self.folder.write(name, save)

    def film(self, video: Video) -> tuple[str | None, str | None]:
        """Put a video into the folder; return its name, or why there is none.

        A video that is there already stays, even if its file was removed meanwhile.
        """
        source = Path(video.path)
        kind = source.suffix.lower()
        name = f"{VIDEOS}/{key_of({'frames': video.frames, 'fps': video.fps})}{kind}"
        if kind not in PLAYABLE:
            return None, f"The video is a folder of pictures: {video.path}"
        if self.folder.has(name):
            return name, None
        try:
            if not source.is_file():
                return None, f"The video is gone: {video.path}"
        except OSError as error:
            return None, f"The video cannot be read ({error.strerror}): {video.path}"
        if frames_of(source) != video.frames:
            return None, f"The file is another video now: {video.path}"
        self.folder.link(name, source)
        return name, None


def chosen(count: int) -> list[int]:
    """Return the latent frames of a strip: evenly spaced, the first and the last among them."""
    wanted = min(count, STRIP_FRAMES)
    return [round(index * (count - 1) / max(1, wanted - 1)) for index in range(wanted)]


def shrunk(frame: "np.ndarray", width: int) -> "Image.Image":
    """Return a frame (Y, X, 3) uint8 as an image of at most `width` pixels across."""
    from PIL import Image

    image = Image.fromarray(frame)
    if image.width <= width:
        return image
    return image.resize((width, max(1, round(width * image.height / image.width))))


class Comment(msgspec.Struct, frozen=True, kw_only=True):
    """The comment of a video, as far as it tells what it shows."""

    wanpipe: dict[str, Any]


def frames_of(path: Path) -> object:
    """Return the key of the frames that a video was written from, None if it does not say."""
    from wanpipe.media import video

    try:
        comment = video.read_metadata(path).get("comment", "")
        return decode(comment, Comment).wanpipe.get("decode")
    except (WanpipeError, DocumentError):
        return None
