"""decode: frames once, films of them as often as wanted."""

import errno
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.workshop import SMALL, Place, files, inside
from wanpipe.media import video
from wanpipe.media.video import read_video
from wanpipe.models.vae.vae import Decoder
from wanpipe.pipeline.inputs import Inputs
from wanpipe.pipeline.lineage import Source
from wanpipe.pipeline.video_writer import VideoWriter
from wanpipe.store import Store
from wanpipe.store.draft import ArrayWriter


def frames_key(place: Place) -> str:
    return next(place.cache.glob("decode/*")).name


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean absolute difference of luma, of 255; color is stored at half the resolution."""
    luma = np.array([0.2126, 0.7152, 0.0722])
    return float(np.abs(ours @ luma - theirs @ luma).mean())


def test_the_film_is_the_decoded_frames(studio: Place) -> None:
    frames = studio.frames(studio.film())
    film, fps, _ = read_video(studio.root / "film.mp4")
    assert film.shape == frames.shape == (5, 32, 32, 3)
    assert fps == 16
    assert difference(film, frames) < 3


@pytest.mark.parametrize(("name", "close"), [("film.webm", 5), ("film.gif", 8), ("film", 0)])
def test_every_format_holds_the_same_frames(name: str, close: float, studio: Place) -> None:
    frames = studio.frames(studio.film())
    studio.do("decode", "--from", frames_key(studio), "--output", name)
    film, fps, _ = read_video(studio.root / name)
    assert film.shape == frames.shape
    assert fps == pytest.approx(16, rel=0.05)  # a .gif counts in hundredths of a second
    assert difference(film, frames) <= close


def test_a_folder_of_frames_is_exact(studio: Place) -> None:
    frames = studio.frames(studio.film())
    studio.do("decode", "--from", frames_key(studio), "--output", "film.png")
    assert np.array_equal(read_video(studio.root / "film.png")[0], frames)
    assert len(list((studio.root / "film.png").iterdir())) == 5


@pytest.mark.parametrize(("name", "fps"), [("fast.mp4", 24), ("slow.webm", 7.5), ("film.gif", 10)])
def test_another_film_of_cached_frames_needs_no_model(
    name: str, fps: float, studio: Place, tmp_path: Path
) -> None:
    place = Place(studio.root, tmp_path / "no model")
    film = place.do("decode", "--from", frames_key(place), "--output", name, "--fps", fps)
    assert not film.loaded()
    assert not film.computed()
    assert read_video(place.root / name)[1] == pytest.approx(fps, rel=0.01)


def test_a_film_that_is_there_already_is_not_written_again(studio: Place) -> None:
    words = ("decode", "--from", frames_key(studio), "--output", "film.mp4")
    before = (studio.root / "film.mp4").stat().st_mtime_ns
    for more in ((), ("--fps", 16)):
        again = studio.do(*words, *more)
        assert not [event for event in again.events if event["event"] == "written"]
        assert (studio.root / "film.mp4").stat().st_mtime_ns == before


def test_another_film_in_the_way_is_replaced(studio: Place) -> None:
    shutil.copyfile(studio.root / "film.mp4", studio.root / "old.mp4")
    frames = studio.frames(studio.film("--seed", 1, "--output", "old.mp4"))
    film = read_video(studio.root / "old.mp4")[0]
    assert difference(film, frames) < 3


def test_a_step_before_the_last_can_be_looked_at(studio: Place) -> None:
    step = studio.made("denoise", "--from", studio.text(), *SMALL, "--stop-at", 2)
    frames = studio.made("decode", "--from", step, "--output", "draft.mp4")
    assert len(read_video(studio.root / "draft.mp4")[0]) == 5
    assert studio.entry(frames).inputs == {"step": step.name}


def test_tiles_are_part_of_the_key_only_where_they_change_pixels(studio: Place) -> None:
    assert not studio.film("--tiling", "spatial").computed()
    assert not studio.film("--tiling", "none").computed()


def test_without_an_output_no_film_is_written(studio: Place) -> None:
    (studio.root / "film.mp4").unlink()
    shutil.rmtree(studio.cache / "decode")
    step = studio.made("denoise", "--from", studio.text(), *SMALL)
    made = studio.do("decode", "--from", step)
    assert made.loaded() == ["vae"]
    assert sorted(path.name for path in studio.root.iterdir()) == ["cache"]


def test_frames_that_cannot_be_kept_leave_nothing_behind(
    studio: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = studio.made("denoise", "--from", studio.text(), *SMALL)
    shutil.rmtree(studio.cache / "decode")
    append, seen = ArrayWriter.append, []

    def refuse(self: ArrayWriter, block: np.ndarray) -> None:
        seen.append(len(block))
        if len(seen) == 2:  # in the middle of the film, in the thread behind the VAE
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, block)

    monkeypatch.setattr(ArrayWriter, "append", refuse)
    failed = inside("decode", "--from", step, cwd=studio.root)
    assert failed.code == 1
    assert "no space left" in failed.stderr.splitlines()[-1]
    assert seen == [1, 4]
    assert not list(studio.cache.glob("decode/*"))
    assert not list(studio.cache.glob(".tmp/*"))


@pytest.fixture
def undecoded(studio: Place) -> tuple[Place, Path]:
    """A folder with a film whose frames are lost, and the step that they come from."""
    step = studio.made("denoise", "--from", studio.text(), *SMALL)
    shutil.rmtree(studio.cache / "decode")
    return studio, step


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Is set when a film has taken its first slice and asks for the next one."""
    event, write = threading.Event(), video.write_video

    def watched(path: Path, slices: Iterable[np.ndarray], *rest: Any) -> Path:
        def passing() -> Iterator[np.ndarray]:
            for frames in slices:
                yield frames
                event.set()

        return write(path, passing(), *rest)

    monkeypatch.setattr(video, "write_video", watched)
    return event


def before_the_last(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have `act` called while a film is decoded, when its last piece is yet to be made."""
    decoded = Decoder.frames

    def frames(self: Any, *arguments: Any) -> Iterator[Any]:
        *first, last = decoded(self, *arguments)
        yield from first
        act()
        yield last

    monkeypatch.setattr(Decoder, "frames", frames)


@pytest.mark.parametrize("name", ["new.mp4", "new.webm", "new.gif", "new.png"])
def test_a_film_takes_frames_while_others_are_computed(
    name: str,
    undecoded: tuple[Place, Path],
    fed: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, step = undecoded
    taken: list[bool] = []
    before_the_last(monkeypatch, lambda: taken.append(fed.wait(10)))
    made = place.do("decode", "--from", step, "--output", name)
    assert taken == [True]
    kinds = [event["event"] for event in made.events]
    assert kinds.index("computed") < kinds.index("written")
    film, fps, metadata = read_video(place.root / name)
    place.do("decode", "--from", frames_key(place), "--output", f"cached-{name}")
    theirs, their_fps, their_metadata = read_video(place.root / f"cached-{name}")
    assert np.array_equal(film, theirs)
    assert (fps, metadata) == (their_fps, their_metadata)
    assert frames_key(place) in metadata["comment"]


def test_a_film_has_no_frames_that_were_trimmed(undecoded: tuple[Place, Path]) -> None:
    place, _ = undecoded
    made = place.film("--num-frames", 5, "--trim-first-frames", 1, "--output", "new.png")
    assert made.computed("decode")
    assert np.array_equal(read_video(place.root / "new.png")[0], place.frames(made))


def test_a_film_is_left_alone_where_its_frames_are_computed_again(
    undecoded: tuple[Place, Path],
) -> None:
    place, step = undecoded
    before = (place.root / "film.mp4").stat()
    words = ("decode", "--from", step, "--output", "film.mp4")
    told = [(event["event"], event.get("stage")) for event in place.do(*words).events]
    assert told.index(("computed", "decode")) < told.index(("reused", "film"))
    assert (place.root / "film.mp4").stat().st_mtime_ns == before.st_mtime_ns
    assert place.do(*words, "--force").events[-1]["event"] == "written"
    assert (place.root / "film.mp4").stat().st_mtime_ns > before.st_mtime_ns


@pytest.mark.parametrize("name", ["new.mp4", "new.png"])
def test_frames_are_kept_when_the_film_fails_midway(
    name: str, undecoded: tuple[Place, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, step = undecoded
    ffmpeg, save = place.cache / "ffmpeg", Image.Image.save
    ffmpeg.write_text("#!/bin/sh\nhead -c 99 >/dev/null; echo 'no space left' >&2; exit 1\n")
    ffmpeg.chmod(0o755)

    def full(self: Image.Image, path: Path, **options: Any) -> None:
        if path.name == "00002.png":
            raise OSError(errno.ENOSPC, "no space left")
        save(self, path, **options)

    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(ffmpeg))
    monkeypatch.setattr(Image.Image, "save", full)
    failed = inside("decode", "--from", step, "--output", name, cwd=place.root)
    assert failed.code == 1
    told, error = failed.stderr.splitlines()[-2:]
    assert "computed in" in told
    assert error.startswith("wanpipe: error: video") and error.endswith("no space left")
    assert not failed.paths
    assert sorted(path.name for path in place.root.iterdir()) == ["cache", "film.mp4"]
    monkeypatch.undo()
    assert not place.do("decode", "--from", step, "--output", name).computed()
    assert len(place.entry(place.cache / "decode" / frames_key(place)).read("frames")) == 5


@pytest.mark.parametrize("name", ["old.mp4", "old.png"])
@pytest.mark.parametrize("broken", ["the decoder", "the sink", "publication"])
def test_a_decode_that_fails_leaves_the_film_before(
    broken: str,
    name: str,
    undecoded: tuple[Place, Path],
    fed: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, step = undecoded
    (place.root / "film.mp4").unlink()
    video.write_video(place.root / name, [np.zeros((1, 32, 32, 3), np.uint8)], 16)
    fed.clear()
    before = {path: time for path, time in files(place.root).items() if name in path}
    started: list[subprocess.Popen[bytes]] = []
    start, append = subprocess.Popen, ArrayWriter.append

    def noted(*arguments: Any, **options: Any) -> Any:
        started.append(start(*arguments, **options))
        return started[-1]

    def fail(*_: object) -> None:
        assert fed.wait(10)
        raise KeyboardInterrupt if broken == "the decoder" else OSError(errno.EIO, "broken disk")

    def refuse(self: ArrayWriter, block: np.ndarray) -> None:
        append(self, block) if len(block) == 1 else fail()

    monkeypatch.setattr(subprocess, "Popen", noted)
    if broken == "the decoder":
        before_the_last(monkeypatch, fail)
    elif broken == "the sink":
        monkeypatch.setattr(ArrayWriter, "append", refuse)
    else:
        monkeypatch.setattr(Store, "publish", fail)
    failed = inside("decode", "--from", step, "--output", name, cwd=place.root)
    assert failed.code == (130 if broken == "the decoder" else 1)
    assert "Traceback" not in failed.stderr
    assert not list(place.cache.glob("decode/*"))
    assert sorted(path.name for path in place.root.iterdir()) == ["cache", name]
    assert {path: time for path, time in files(place.root).items() if name in path} == before
    assert bool(started) == name.endswith(".mp4")
    assert all(process.returncode is not None for process in started)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("video")]


def test_what_waits_for_a_film_is_not_written_after_an_interruption(
    studio: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = studio.entry(studio.cache / "decode" / frames_key(studio))
    written: list[np.ndarray] = []

    def slow(path: Path, slices: Iterable[np.ndarray], *_: object) -> None:
        for frames in slices:
            written.append(frames)
            while not film.left:
                time.sleep(0.01)

    monkeypatch.setattr(video, "write_video", slow)
    store = Store(studio.cache)
    source = Source.of(None, Inputs(frames=entry), store)
    film = VideoWriter(source, studio.root / "new.mp4", None, store)
    with pytest.raises(KeyboardInterrupt), film:
        film.begin(entry)
        for frames in 5 * [entry.read("frames")]:
            film.take(frames)
        while not written:
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert len(written) == 1
