"""Writes the video of an entry of frames: while they are decoded, or from the cache."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING

from msgspec import UNSET

from wanpipe.errors import UsageError, WanpipeError
from wanpipe.pipeline.budget import WAITING_SLICES
from wanpipe.pipeline.lineage import Source
from wanpipe.runtime.report import Report
from wanpipe.runtime.worker import POLL_SECONDS, Worker
from wanpipe.store import Entry, Recipe, Store
from wanpipe.store.keys import hash_file, key_of
from wanpipe.store.runs import Video

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Before:
    """The video that another one continues, and how many frames both have."""

    path: Path
    common: int

    @staticmethod
    def of(source: Source, path: Path | None) -> "Before | None":
        """Return what --after names. Raises UsageError if the step of `source` continues nothing,
        or if there is no such file.
        """
        if path is None:
            return None
        if not path.exists():
            raise UsageError(f"no video at {path}")
        return Before(path, source.known_frames)

    def join(
        self, slices: Iterable["np.ndarray"], fps: float, report: Report
    ) -> Iterator["np.ndarray"]:
        """Yield the frames of this video, at the size and rate of the other one, then those of the
        other one (T, Y, X, 3).

        The common frames fade from this video to the other: both show the same, but the other one
        went through the VAE, and a sudden loss of detail would be seen.
        """
        import numpy as np

        from wanpipe.media.resize import resize_crop
        from wanpipe.media.video_index import choose_last
        from wanpipe.media.video_reader import probe, read_frames

        slices = iter(slices)
        first = next(slices)
        index = probe(self.path, report, fps=fps)
        indices = choose_last(index, fps, index.frames + int(index.ends[-1] * fps))
        fading: deque[np.ndarray] = deque()  # the last frames of this video
        for frame in read_frames(self.path, indices.tolist(), report):
            fading.append(resize_crop(frame, *first.shape[1:3]))
            if len(fading) > self.common:
                yield fading.popleft()[None]
        count = len(fading)
        for frames in itertools.chain([first], slices):
            for frame in frames:
                if fading:
                    share = (count + 1 - len(fading)) / (count + 1)  # of the other video
                    mixed = (1 - share) * fading.popleft() + share * frame
                    frame = np.rint(mixed).astype(np.uint8)
                yield frame[None]

    def lineage(self) -> dict[str, str]:
        """Name the video in the lineage of the joined one."""
        files = sorted(self.path.iterdir()) if self.path.is_dir() else [self.path]
        content = [hash_file(file) for file in files if file.is_file()]
        return {"after": self.path.name, "after_hash": key_of(content)}


class VideoWriter(Worker[bool]):
    """Encodes a video in another thread, after the frames of `before`; without an output path it
    does nothing.

    If the context ends before `finish`, no video appears.
    """

    def __init__(
        self,
        source: Source,
        output: Path | None,
        fps: float | None,
        store: Store,
        before: Before | None = None,
    ) -> None:
        super().__init__("video")
        self.source, self.output, self.fps, self.store = source, output, fps, store
        self.before = before
        self.waiting: Queue[np.ndarray | None] = Queue(WAITING_SLICES)
        self.left = False

    def __exit__(self, *_: object) -> None:
        self.left = True
        with suppress(Empty):  # make room for the end mark
            while True:
                self.waiting.get_nowait()
        self.put(None)
        super().__exit__()

    def begin(self, frames: Entry | Recipe) -> None:
        """Start the video of an existing or future entry; `take` gets its frames."""
        if self.output is not None:
            self.submit(partial(self.write, self.output, frames, self.slices()))

    def take(self, frames: "np.ndarray") -> None:
        """Write frames. Does nothing if no video is being written, or if that has ended."""
        self.put(frames)

    def put(self, frames: "np.ndarray | None") -> None:
        """Queue frames, waiting for room as long as a video is being written."""
        while any(not job.done() for job in self.jobs):
            with suppress(Full):
                self.waiting.put(frames, timeout=POLL_SECONDS)
                return

    def slices(self) -> Iterator["np.ndarray"]:
        """Yield queued frames in order until the video is finished."""
        while (frames := self.waiting.get()) is not None and not self.left:
            yield frames
        if self.left:
            raise CancelledError

    def finish(self, entry: Entry) -> None:
        """Move the video into place after its entry is published. Raises an error of the writer."""
        output = self.output
        if output is None:
            return
        self.put(None)
        done = list(self.results(0)) or [self.write(output, entry, entry.blocks("frames"))]
        fields = {"kind": "written"} if done[0] else {"kind": "reused", "stage": "film"}
        self.store.report.event(**fields, path=str(output))
        run = self.source.run
        if run is not None:
            fps = float(self.source.rate(self.fps))
            video = Video(path=str(output.resolve()), frames=entry.key, fps=fps)
            self.store.save_video(run, video)

    def write(self, output: Path, frames: Entry | Recipe, slices: Iterable["np.ndarray"]) -> bool:
        """Write the frames of an existing or future entry as a video with its lineage.

        Returns False without writing if the same video exists.
        """
        from wanpipe.media import video
        from wanpipe.store.keys import canonical

        rate = self.source.rate(self.fps)
        rate = int(rate) if rate == int(rate) else rate
        lineage = {**self.source.lineage(), "decode": frames.key, "fps": rate}
        if frames.material.decoder is not UNSET:
            lineage |= {"decoder": frames.material.decoder, "vae_tiny": frames.material.vae}
        if self.before is not None:
            lineage |= self.before.lineage()
            slices = self.before.join(slices, rate, Report())
        comment = canonical({"wanpipe": lineage}).decode()
        if output.exists() and not self.store.force and has_comment(output, comment):
            return False
        metadata = {"title": lineage.get("prompt") or "", "comment": comment}
        video.write_video(output, slices, rate, metadata)
        return True


def has_comment(path: Path, comment: str) -> bool:
    """Whether a file is a video with exactly this comment."""
    from wanpipe.media import video

    try:
        return video.read_metadata(path).get("comment") == comment
    except WanpipeError:
        return False  # no video: it is replaced by one
