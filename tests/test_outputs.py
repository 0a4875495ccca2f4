"""Where videos go: through links, never over a user's own files, tried before any work."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.workshop import PROMPT, SMALL, Place, inside
from wanpipe.media.video import read_video, write_video

FRAMES = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)


def frames_of(place: Place) -> str:
    return next(place.cache.glob("decode/*")).name


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["00100.png", "00005.png", "notes.txt", "me.png"])
def test_a_folder_with_a_users_own_file_is_refused(name: str, studio: Place) -> None:
    words = ("decode", "--from", frames_of(studio), "--output", "film")
    studio.do(*words)
    Image.new("RGB", (32, 32)).save(studio.root / "film" / name, "PNG")
    said = f"has files that are not frames of wanpipe, such as {name}"
    studio.refuse(*words, "--fps", 8, code=2, says=said)
    (studio.root / "film" / name).unlink()
    assert studio.do(*words, "--fps", 8).events[-1]["event"] == "written"


def test_a_folder_of_someone_elses_frames_is_refused(studio: Place) -> None:
    (studio.root / "shots").mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32)).save(studio.root / "shots" / f"{number:05d}.png")
    words = ("decode", "--from", frames_of(studio), "--output", "shots")
    studio.refuse(*words, code=2, says="such as 00000.png")


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "._00001.png", "desktop.ini"])
def test_what_systems_leave_in_a_folder_of_frames_is_no_file_of_the_user(
    name: str, studio: Place
) -> None:
    words = ("decode", "--from", frames_of(studio), "--output", "film")
    studio.do(*words)
    (studio.root / "film" / name).write_bytes(b"\0\0\0\1Bud1")
    assert len(read_video(studio.root / "film")[0]) == 5
    assert studio.do("show", "film").paths[0] == "video"
    assert studio.do(*words).events[-1]["event"] == "reused"
    studio.do(*words, "--fps", 8)
    assert names(studio.root / "film") == [f"{number:05d}.png" for number in range(5)]


def test_frames_of_the_first_release_are_known_by_their_lineage(studio: Place) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("comment", '{"wanpipe":{"fps":16}}')
    (studio.root / "film").mkdir()
    Image.new("RGB", (32, 32)).save(studio.root / "film" / "00000.png", pnginfo=info)
    studio.do("decode", "--from", frames_of(studio), "--output", "film")
    assert len(names(studio.root / "film")) == 5


@pytest.mark.parametrize("name", ["new.mp4", "new.gif", "new"])
def test_a_link_stays_and_its_target_is_replaced(name: str, studio: Place) -> None:
    (studio.root / "disk").mkdir()
    write_video(studio.root / "disk" / name, [FRAMES], 8)
    (studio.root / name).symlink_to(f"disk/{name}")
    studio.do("decode", "--from", frames_of(studio), "--output", name)
    assert (studio.root / name).is_symlink()
    assert len(read_video(studio.root / "disk" / name)[0]) == 5
    assert studio.do("show", f"disk/{name}").paths[0] == "video"
    assert names(studio.root / "disk") == [name]
    assert names(studio.root) == sorted(["cache", "disk", "film.mp4", name])


def test_a_link_to_itself_or_into_nowhere_is_refused(studio: Place) -> None:
    (studio.root / "a.mp4").symlink_to("a.mp4")
    (studio.root / "b.mp4").symlink_to("nowhere/b.mp4")
    os.mkfifo(studio.root / "c.mp4")
    words = ("decode", "--from", frames_of(studio), "--output")
    studio.refuse(*words, "a.mp4", code=2, says="a link that leads to itself")
    studio.refuse(*words, "b.mp4", code=2, says="no folder")
    studio.refuse(*words, "c.mp4", code=2, says="is no file")
    for name in (".", "", "..", "/"):
        studio.refuse(*words, name, code=2, says="is the current folder or holds it")


def refused_before_work(place: Place, output: str, says: str, checkpoint: Path) -> None:
    """Check that every command that writes a video fails for this output with nothing computed."""
    step = place.made("denoise", "--from", place.text(), *SMALL, "--stop-at", 1)
    film = ("--prompt", PROMPT, *SMALL, "--output", output)
    place.refuse("decode", "--from", step, "--output", output, code=1, says=says)
    place.refuse("run", "--model", place.model, *film, "--seed", 5, code=1, says=says)
    place.refuse("run", "--checkpoint-dir", checkpoint, *film, code=1, says=says)


def test_a_folder_that_cannot_be_written_is_found_before_any_work(
    studio: Place, checkpoints: Path
) -> None:
    refused_before_work(studio, "/proc/film.mp4", "cannot be written", checkpoints / "wan21-t2v")
    refused_before_work(studio, "/proc/film", "cannot be written", checkpoints / "wan21-t2v")


def test_a_missing_ffmpeg_is_found_before_any_work(
    studio: Place, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    refused_before_work(studio, "new.mp4", "no ffmpeg at", checkpoints / "wan21-t2v")
    assert studio.film("--seed", 5, "--output", "frames").computed("decode")  # needs none


def test_a_dry_run_tries_nothing_out(studio: Place) -> None:
    words = ("--prompt", PROMPT, *SMALL, "--output", "/proc/film.mp4", "--dry-run")
    assert studio.do("run", "--model", studio.model, *words, "--seed", 5).paths


@pytest.mark.parametrize(
    ("name", "fps", "says"),
    [
        ("a.gif", 60, "fps of a .gif must be at most 50"),
        ("a.mp4", 1e-5, "fps must be above 0.01 and at most 240, got 1e-05"),
        ("a", "inf", "at most 240, got inf"),
    ],
)
def test_a_rate_that_no_video_can_have_is_refused(
    name: str, fps: object, says: str, studio: Place
) -> None:
    words = ("--output", name, "--fps", fps)
    studio.refuse("decode", "--from", frames_of(studio), *words, code=2, says=says)
    film = ("--model", studio.model, "--prompt", "new", *SMALL)
    studio.refuse("run", *film, *words, code=2, says=says)


@pytest.mark.parametrize(("name", "fps"), [("a.gif", 50), ("a.mp4", 240), ("a.webm", 240)])
@pytest.mark.parametrize("slow", [False, True])
def test_the_fastest_and_the_slowest_video_play_as_asked(
    name: str, fps: float, slow: bool, tmp_path: Path
) -> None:
    fps = 0.02 if slow else fps
    write_video(tmp_path / name, [FRAMES], fps)
    frames, rate, _ = read_video(tmp_path / name)
    assert len(frames) == 5
    assert rate == pytest.approx(fps, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("output", ["new", "new.mp4"])
def test_of_many_decodes_into_one_place_all_succeed_and_one_stays(
    output: str, studio: Place
) -> None:
    steps = [
        studio.made("denoise", "--from", studio.text(), *SMALL, "--seed", seed) for seed in range(4)
    ]
    keys = [studio.made("decode", "--from", step).name for step in steps]
    command = [sys.executable, "-m", "wanpipe", "decode", "--output", output, "--from"]
    processes = [
        subprocess.Popen([*command, key], cwd=studio.root, stderr=subprocess.PIPE) for key in keys
    ]
    for process in processes:
        assert process.stderr is not None
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    film = read_video(studio.root / output)
    assert len(film[0]) == 5
    assert sum(key in film[2]["comment"] for key in keys) == 1
    assert names(studio.root) == sorted(["cache", "film.mp4", output])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGQUIT])
def test_an_ended_decode_leaves_nothing_to_the_next_one(number: int, studio: Place) -> None:
    """ffmpeg is stopped while it writes, so that the signal comes in the middle."""
    slow = studio.cache / "ffmpeg"
    slow.write_text('#!/bin/sh\nfor last; do :; done\necho half > "$last"\nexec sleep 60\n')
    slow.chmod(0o755)
    (studio.root / "temporary").mkdir()
    command = [sys.executable, "-m", "wanpipe", "decode", "--output", "new.mp4", "--from"]
    environment = {**os.environ, "TMPDIR": str(studio.root / "temporary")}
    process = subprocess.Popen(
        [*command, frames_of(studio)],
        cwd=studio.root,
        env={**environment, "IMAGEIO_FFMPEG_EXE": str(slow)},
        stderr=subprocess.PIPE,
    )
    while not list(studio.root.glob(".wanpipe-*/new.mp4")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    left = [name for name in names(studio.root) if name.startswith(".wanpipe-")]
    assert len(left) == (number == signal.SIGKILL)
    assert not names(studio.root / "temporary")
    studio.do("decode", "--from", frames_of(studio), "--output", "other.gif")
    assert names(studio.root) == ["cache", "film.mp4", "other.gif", "temporary"]


def test_a_preview_on_a_full_disk_keeps_the_one_before(
    studio: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = studio.made("denoise", "--from", studio.text(), *SMALL)
    studio.do("preview", step, "--output", "x.png")
    before = (studio.root / "x.png").read_bytes()
    save = Image.Image.save

    def full(self: Image.Image, path: Path, **options: object) -> None:
        save(self, path, **options)
        os.truncate(path, 100)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    failed = inside("preview", step, "--output", "x.png", "--columns", 2, cwd=studio.root)
    assert failed.code == 1
    assert failed.stderr.endswith("x.png cannot be written: No space left on device\n")
    assert (studio.root / "x.png").read_bytes() == before
    assert names(studio.root) == ["cache", "film.mp4", "x.png"]


def test_a_preview_and_an_export_follow_links(studio: Place) -> None:
    step = studio.made("denoise", "--from", studio.text(), *SMALL)
    (studio.root / "disk").mkdir()
    for name in ("x.png", "x.zip"):
        (studio.root / name).symlink_to(f"disk/{name}")
    studio.do("preview", step, "--output", "x.png")
    studio.do("cache", "export", step, "x.zip")
    assert names(studio.root / "disk") == ["x.png", "x.zip"]
    assert all((studio.root / name).is_symlink() for name in ("x.png", "x.zip"))
    shutil.rmtree(studio.root / "disk")
    assert inside("preview", step, "--output", "x.png", cwd=studio.root).code == 1
