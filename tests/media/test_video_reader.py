"""The reader of videos: every format that ffmpeg reads, folders of frames and still images."""

import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import DATA, golden, settings
from wanpipe.errors import UsageError
from wanpipe.media import ffmpeg_decode
from wanpipe.media.ffmpeg import program
from wanpipe.media.reference import fit_on_white
from wanpipe.media.resize import resize_crop
from wanpipe.media.video_index import VideoIndex, choose_first, choose_last, choose_whole
from wanpipe.media.video_reader import probe, read_frames
from wanpipe.runtime.report import Report

FOLDER = DATA / "expected" / "wan21-vace"
PREPARE = settings("wan21-vace/prepare")
ROWS = settings("wan21-vace/frames")["rows"]
SIDE = 64  # pixels
FORMATS = (
    "mp4",
    "mov",
    "mkv",
    "webm",
    "avi",
    "ts",
    "mpg",
    "flv",
    "wmv",
    "ogv",
    "gif",
    "y4m",
    "nut",
)


def run(*words: object) -> None:
    subprocess.run([program(), "-v", "error", "-y", *map(str, words)], check=True)


def film(path: Path, *more: object, rate: float = 25, count: int = 20) -> Path:
    """Write a film whose frame number n is gray, from dark to bright."""
    source = f"color=black:s={SIDE}x{SIDE}:r={rate},geq=lum=16+10*N:cb=128:cr=128"
    run("-f", "lavfi", "-i", source, "-frames:v", count, *more, path)
    return path


def index(path: Path, fps: float = 16, seconds: float | None = None) -> VideoIndex:
    return probe(path, Report(), fps=fps, seconds=seconds)


def read(path: Path, *indices: int) -> np.ndarray:
    return np.stack(list(read_frames(path, np.array(indices))))


@pytest.mark.parametrize("name", PREPARE["films"])
def test_films_are_read_as_decord_reads_them(name: str) -> None:
    made = PREPARE["films"][name]
    path = FOLDER / made["file"]
    found = index(path)
    assert (found.width, found.height, found.frames) == (
        made["width"],
        made["height"],
        made["frames"],
    )
    assert found.fps == pytest.approx(made["decord_fps"], rel=1e-12)
    frames = golden("wan21-vace/prepare").get(f"film_{name}")
    if frames is not None:
        assert np.array_equal(read(path, *range(len(frames))), frames)


@pytest.mark.parametrize("name", ROWS)
def test_a_whole_video_is_thinned_as_officially(name: str) -> None:
    row = ROWS[name]
    top, _, bottom = row["fps"].partition("/")
    starts = np.arange(row["frames"] + 1) * int(bottom or 1) / int(top)
    there = VideoIndex(width=row["width"], height=row["height"], times=starts[:-1], ends=starts[1:])
    chosen = choose_whole(there, None, row["area"])
    assert (chosen.width, chosen.height) == (row["out_width"], row["out_height"])
    assert np.array_equal(chosen.indices, golden("wan21-vace/frames")[name])


@pytest.mark.parametrize("case", [name for name in PREPARE["cases"] if name != "mask_alone"])
def test_frames_and_references_are_fitted_as_officially(case: str) -> None:
    run_, arrays = PREPARE["cases"][case], golden("wan21-vace/prepare")
    width, height = run_["video_size"]
    if run_["src_video"]:
        path = FOLDER / run_["src_video"]
        masks = index(FOLDER / run_["src_mask"]) if run_["src_mask"] else None
        chosen = choose_whole(index(path), masks, run_["area"])
        frames = [resize_crop(frame, height, width) for frame in read_frames(path, chosen.indices)]
        wanted = arrays[f"{case}_video"].transpose(1, 2, 3, 0)
        assert np.array_equal(np.stack(frames), wanted)
    for number, file in enumerate(run_["src_ref_images"] or ()):
        image = np.asarray(Image.open(FOLDER / file).convert("RGB"))
        wanted = arrays[f"{case}_ref{number}"][:, 0].transpose(1, 2, 0)
        assert np.abs(fit_on_white(image, height, width) - wanted).max() <= 1e-6


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_container_is_read(suffix: str, tmp_path: Path) -> None:
    path = film(tmp_path / f"film.{suffix}")
    found = index(path)
    assert (found.width, found.height) == (SIDE, SIDE)
    assert found.frames == 20
    assert found.times == pytest.approx(np.arange(20) / 25, abs=2e-3)
    frames = read(path, 0, 10, 10, 19).mean(axis=(1, 2, 3))
    assert frames[1] == frames[2]
    assert frames[0] < frames[1] < frames[3]


def test_a_part_of_a_long_film_is_listed(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", count=100)
    assert index(path, seconds=1).frames == 25
    assert index(path).frames == 100


def test_a_turned_film_is_read_upright(tmp_path: Path) -> None:
    source = tmp_path / "wide.mp4"
    run("-f", "lavfi", "-i", "testsrc=s=96x64:r=25:d=0.2", "-pix_fmt", "yuv420p", source)
    turned = tmp_path / "turned.mp4"
    run("-display_rotation", 90, "-i", source, "-c", "copy", turned)
    assert (index(turned).width, index(turned).height) == (64, 96)
    assert np.array_equal(read(turned, 2)[0], np.rot90(read(source, 2)[0]))


def test_pixels_become_square(tmp_path: Path) -> None:
    path = film(tmp_path / "wide.mp4", "-vf", "setsar=2")
    assert (index(path).width, index(path).height) == (2 * SIDE, SIDE)
    assert read(path, 3).shape == (1, SIDE, 2 * SIDE, 3)


def test_a_variable_rate_is_read_by_time(tmp_path: Path) -> None:
    slow = "setpts=if(lt(N\\,10)\\,N\\,10+(N-10)*3)/25/TB"  # the second half at a third of the rate
    path = film(tmp_path / "film.mkv", "-vf", slow, "-fps_mode", "vfr")
    found = index(path)
    assert found.times[9:12] == pytest.approx([0.36, 0.4, 0.52], abs=2e-3)
    assert choose_first(found, 25, 16).tolist() == [*range(10), 10, 10, 10, 11, 11, 11]


def test_a_later_start_is_the_start(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mkv", "-output_ts_offset", 5)
    assert index(path).times[0] == 0
    assert read(path, 0).mean() < 10


def test_frames_at_another_rate_are_those_on_screen(tmp_path: Path) -> None:
    found = index(film(tmp_path / "film.mp4", rate=24, count=24))
    assert choose_first(found, 16, 8).tolist() == [0, 1, 3, 4, 6, 7, 9, 10]
    assert choose_first(found, 16, 1000).tolist()[-1] == 22
    assert choose_last(found, 12, 4).tolist() == [17, 19, 21, 23]
    assert choose_first(found, 48, 4).tolist() == [0, 0, 1, 1]


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 100):
        Image.new("RGB", (SIDE, SIDE), (number, 0, 0)).save(tmp_path / f"frame{number}.png")
    Image.new("L", (8, 8)).save(tmp_path / "._frame1.png")
    (tmp_path / "notes.txt").write_text("no frame")
    found = index(tmp_path, fps=8)
    assert found.times.tolist() == [0, 0.125, 0.25]
    assert read(tmp_path, 0, 1, 2)[:, 0, 0, 0].tolist() == [9, 10, 100]


def test_a_still_image_is_one_frame(tmp_path: Path) -> None:
    Image.new("RGB", (SIDE, 32), "red").save(tmp_path / "still.jpg")
    found = index(tmp_path / "still.jpg")
    assert (found.width, found.height, found.frames) == (SIDE, 32, 1)
    assert read(tmp_path / "still.jpg", 0, 0).shape == (2, 32, SIDE, 3)


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as error:
        index(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    assert "no video at" in refused(tmp_path / "gone.mp4")
    (tmp_path / "text.mp4").write_text("no film")
    assert "cannot be read as a video" in refused(tmp_path / "text.mp4")
    (tmp_path / "empty.mp4").touch()
    assert "cannot be read as a video" in refused(tmp_path / "empty.mp4")
    (tmp_path / "folder").mkdir()
    assert "has no PNG or JPEG images" in refused(tmp_path / "folder")
    run("-f", "lavfi", "-i", "sine=d=0.2", tmp_path / "sound.mp4")
    assert "cannot be read as a video" in refused(tmp_path / "sound.mp4")


def test_frames_of_several_sizes_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "0.png")
    Image.new("RGB", (48, 32)).save(tmp_path / "1.png")
    assert "1.png has 48x32 and 0.png 32x32" in refused(tmp_path)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "webm"])
def test_a_film_that_is_cut_short_is_never_read_as_a_whole_one(suffix: str, tmp_path: Path) -> None:
    source = film(tmp_path / f"film.{suffix}", "-movflags", "+faststart", count=60)
    data = source.read_bytes()
    for part in (0.3, 0.5, 0.7, 0.9):
        (tmp_path / f"cut.{suffix}").write_bytes(data[: int(part * len(data))])
        said = refused(tmp_path / f"cut.{suffix}")
        assert "cut short: only" in said or "cannot be read as a video" in said


def test_a_playlist_that_looks_like_a_film_opens_no_other_file(tmp_path: Path) -> None:
    film(tmp_path / "secret.mp4")
    (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path}/secret.mp4\n")
    lines = ("#EXTM3U", "#EXT-X-TARGETDURATION:1", "#EXTINF:1,", f"{tmp_path}/secret.mp4")
    (tmp_path / "hls.mp4").write_text("\n".join((*lines, "#EXT-X-ENDLIST", "")))
    for name in ("concat.mp4", "hls.mp4"):
        assert "cannot be read as a video" in refused(tmp_path / name)


def test_more_frames_than_a_filter_takes_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = film(tmp_path / "film.mp4")
    wanted = read(path, 1, 5, 9, 13)
    monkeypatch.setattr(ffmpeg_decode, "MAX_TERMS", 2)
    assert np.array_equal(read(path, 1, 5, 9, 13), wanted)


def test_a_reader_that_is_left_early_leaves_no_process(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", count=200)
    with ffmpeg_decode.running(path, ["-f", "null", "-"]) as decoder:
        process = decoder.process
    assert process.poll() is not None
    frames = read_frames(path, np.arange(200))
    next(frames)
    frames.close()
    time.sleep(0.1)
    children = Path("/proc/self/task").glob("*/children")  # none where there is no /proc
    assert not any(child.read_text() for child in children)
