"""Writes and reads folders of PNG frames, and recognizes the frames that wanpipe wrote.

Every frame has a text that names wanpipe as its software, because a user may have files with names
such as 00100.png too.
"""

import itertools
import os
import re
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from wanpipe.errors import UsageError, WanpipeError
from wanpipe.runtime import interrupt
from wanpipe.runtime.disk import LITTER

if TYPE_CHECKING:
    import numpy as np

THREADS = min(8, os.cpu_count() or 1)  # that compress frames
FASTEST = 1  # of zlib: a third of the time of its default, for files a sixth larger
NAME = re.compile(r"\d{5,}\.png")
SOFTWARE, OURS = "Software", "wanpipe"  # a standard PNG keyword, and our text for it
LINEAGE = '{"wanpipe":'  # start of the comment in frames of 0.1.0, which lack the keyword


def check_replaceable(folder: Path) -> None:
    """Raise UsageError if a folder has other files than frames that wanpipe wrote."""
    for path in sorted(folder.iterdir()):
        if not LITTER.fullmatch(path.name) and not is_frame(path):
            raise UsageError(
                f"folder {folder} has files that are not frames of wanpipe, such as {path.name}; "
                "give an empty or a new folder"
            )


def is_frame(path: Path) -> bool:
    """Whether wanpipe wrote this file as a frame."""
    from wanpipe.media.image import open_image_file

    if not NAME.fullmatch(path.name):
        return False
    try:
        with open_image_file(path) as image:
            info = image.info
    except UsageError:
        return False
    return info.get(SOFTWARE) == OURS or str(info.get("comment")).startswith(LINEAGE)


def save_frames(folder: Path, slices: Iterable["np.ndarray"], metadata: Mapping[str, str]) -> None:
    """Write slices of frames, each (T, Y, X, 3) uint8, into a new folder. Raises OSError."""
    from concurrent.futures import Future, ThreadPoolExecutor

    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(SOFTWARE, OURS)
    for name, value in metadata.items():
        info.add_itxt(name, value)
    folder.mkdir()

    def save(frame: "np.ndarray", number: int) -> None:
        path = folder / f"{number:05d}.png"
        Image.fromarray(frame).save(path, pnginfo=info, compress_level=FASTEST)

    saving: deque[Future[None]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:  # Pillow compresses without Python's lock
        for number, frame in enumerate(itertools.chain.from_iterable(slices)):
            interrupt.check()
            saving.append(pool.submit(save, frame, number))
            if len(saving) > THREADS:
                saving.popleft().result()  # raises what the thread raised
        for saved in saving:
            saved.result()


def load_frames(folder: Path, first: bool = False) -> tuple["np.ndarray", float, dict[str, str]]:
    """Read frames (T, Y, X, 3) uint8, or only the first; frames per second; metadata. Raises
    UsageError or WanpipeError.
    """
    import numpy as np

    from wanpipe.media.image import open_image_file

    paths = sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name))
    if not paths:
        raise WanpipeError(f"folder {folder} has no frames; give one that wanpipe wrote")
    metadata: dict[str, str] = {}
    frames = []
    for path in paths[: 1 if first else None]:
        with open_image_file(path) as image:
            metadata = metadata or {str(name): str(text) for name, text in image.info.items()}
            frames.append(np.asarray(image.convert("RGB")))
    metadata.pop(SOFTWARE, None)
    try:
        fps = float(metadata.get("fps", 0))
    except ValueError:
        fps = 0.0
    return np.stack(frames), fps, metadata
