"""decode: frames once, films of them as often as wanted."""

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.workshop import SMALL, Place, inside
from wanpipe.media import read_film
from wanpipe.store.draft import Sink


def frames_key(place: Place) -> str:
    return next(place.cache.glob("decode/*")).name


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean absolute difference of luma, of 255; colour is stored at half the resolution."""
    luma = np.array([0.2126, 0.7152, 0.0722])
    return float(np.abs(ours @ luma - theirs @ luma).mean())


def test_the_film_is_the_decoded_frames(studio: Place) -> None:
    frames = studio.frames(studio.film())
    film, fps, _ = read_film(studio.root / "film.mp4")
    assert film.shape == frames.shape == (5, 32, 32, 3)
    assert fps == 16
    assert difference(film, frames) < 3


@pytest.mark.parametrize(("name", "close"), [("film.webm", 5), ("film.gif", 8), ("film", 0)])
def test_every_format_holds_the_same_frames(name: str, close: float, studio: Place) -> None:
    frames = studio.frames(studio.film())
    studio.do("decode", "--from", frames_key(studio), "--output", name)
    film, fps, _ = read_film(studio.root / name)
    assert film.shape == frames.shape
    assert fps == pytest.approx(16, rel=0.05)  # a .gif counts in hundredths of a second
    assert difference(film, frames) <= close


def test_a_folder_of_frames_is_exact(studio: Place) -> None:
    frames = studio.frames(studio.film())
    studio.do("decode", "--from", frames_key(studio), "--output", "film.png")
    assert np.array_equal(read_film(studio.root / "film.png")[0], frames)
    assert len(list((studio.root / "film.png").iterdir())) == 5


@pytest.mark.parametrize(("name", "fps"), [("fast.mp4", 24), ("slow.webm", 7.5), ("film.gif", 10)])
def test_another_film_of_cached_frames_needs_no_model(
    name: str, fps: float, studio: Place, tmp_path: Path
) -> None:
    place = Place(studio.root, tmp_path / "no model")
    film = place.do("decode", "--from", frames_key(place), "--output", name, "--fps", fps)
    assert not film.loaded()
    assert not film.computed()
    assert read_film(place.root / name)[1] == pytest.approx(fps, rel=0.01)


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
    film = read_film(studio.root / "old.mp4")[0]
    assert difference(film, frames) < 3


def test_a_step_before_the_last_can_be_looked_at(studio: Place) -> None:
    step = studio.made("denoise", "--from", studio.text(), *SMALL, "--stop-at", 2)
    frames = studio.made("decode", "--from", step, "--output", "draft.mp4")
    assert len(read_film(studio.root / "draft.mp4")[0]) == 5
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


def test_frames_are_kept_when_the_film_cannot_be_written(
    studio: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    shutil.rmtree(studio.cache / "decode")
    step = studio.made("denoise", "--from", studio.text(), *SMALL)
    failed = inside("decode", "--from", step, "--output", "new.mp4", cwd=studio.root)
    assert failed.code == 1
    assert "no ffmpeg" in failed.stderr.splitlines()[-1]
    monkeypatch.undo()
    assert not studio.do("decode", "--from", step, "--output", "new.mp4").computed()


def test_frames_that_cannot_be_kept_leave_nothing_behind(
    studio: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = studio.made("denoise", "--from", studio.text(), *SMALL)
    shutil.rmtree(studio.cache / "decode")
    append, seen = Sink.append, []

    def refuse(self: Sink, block: np.ndarray) -> None:
        seen.append(len(block))
        if len(seen) == 2:  # in the middle of the film, in the thread behind the VAE
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, block)

    monkeypatch.setattr(Sink, "append", refuse)
    failed = inside("decode", "--from", step, cwd=studio.root)
    assert failed.code == 1
    assert "no space left" in failed.stderr.splitlines()[-1]
    assert seen == [1, 4]
    assert not list(studio.cache.glob("decode/*"))
    assert not list(studio.cache.glob(".tmp/*"))
