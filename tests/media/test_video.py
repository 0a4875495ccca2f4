"""Videos are written whole or not at all, and read back as written."""

import contextlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from wanpipe.errors import UsageError, WanpipeError
from wanpipe.media.video import contact_sheet, read_metadata, read_video, video_format, write_video

SATURATED = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]
LINEAGE = {
    "title": "a cat; plays #1 = \\o/ [x]",
    "comment": json.dumps({"prompt": "一只猫 = 🐈; ’", "steps": ["\n", "\\"]}, ensure_ascii=False)
    + "\n[STREAM]\nend=1",
}


def gradient(count: int = 9, height: int = 64, width: int = 96) -> np.ndarray:
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., 0] = np.arange(width) * 2
    frames[..., 1] = np.arange(height)[:, None] * 3
    frames[..., 2] = (128 + np.arange(count) * 8)[:, None, None]
    return frames


def flat(colors: list[tuple[int, int, int]]) -> np.ndarray:
    return np.stack([np.full((32, 48, 3), color, np.uint8) for color in colors])


def slices(frames: np.ndarray) -> Iterator[np.ndarray]:
    """Slices of one frame, then four frames each, like the decoder's."""
    yield frames[:1]
    for start in range(1, len(frames), 4):
        yield frames[start : start + 4]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def psnr(ours: np.ndarray, reference: np.ndarray) -> float:
    error = np.mean((ours.astype(np.float64) - reference) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@contextlib.contextmanager
def fake_ffmpeg(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Iterator[None]:
    """Replace ffmpeg by a shell script, in which $REAL is ffmpeg."""
    program = folder / "ffmpeg"
    real = shlex.quote(imageio_ffmpeg.get_ffmpeg_exe())
    program.write_text(f"#!/bin/sh\nREAL={real}\n{script}\n")
    program.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
        yield


@pytest.mark.parametrize(
    ("name", "closeness"), [("film.mp4", 45), ("film.webm", 42), ("film.gif", 25), ("film", 100)]
)
def test_a_video_reads_back_as_written(name: str, closeness: float, tmp_path: Path) -> None:
    frames = gradient()
    assert write_video(tmp_path / name, slices(frames), 20, LINEAGE) == tmp_path / name
    ours, fps, metadata = read_video(tmp_path / name)
    assert ours.shape == frames.shape and ours.dtype == np.uint8 and fps == 20
    assert psnr(ours, frames) > closeness
    assert metadata["comment"] == read_metadata(tmp_path / name)["comment"] == LINEAGE["comment"]
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("name", ["film.mp4", "film.webm"])
def test_title_is_kept_and_fps_is_exact(name: str, tmp_path: Path) -> None:
    write_video(tmp_path / name, slices(gradient(5)), 16, LINEAGE)
    _, fps, metadata = read_video(tmp_path / name)
    assert metadata["title"] == LINEAGE["title"] and fps == 16


@pytest.mark.parametrize("name", ["film.mp4", "film.webm"])
def test_saturated_colors_are_kept_and_tagged_bt709(name: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, [flat(SATURATED)], 16)
    ours, _, _ = read_video(path)
    assert np.abs(ours.astype(int) - flat(SATURATED)).max() <= 3
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo"]
    done = subprocess.run([*command, "-pix_fmt", "yuv420p", "-"], capture_output=True, check=True)
    assert re.search(rb"yuv420p\(tv, bt709[,)]", done.stderr)
    luma = np.frombuffer(done.stdout, np.uint8).reshape(len(SATURATED), -1)[:, : 32 * 48]
    red_of_bt709 = 16 + 219 * 0.2126  # with the matrix of bt601 it would be 81
    assert abs(luma[0].mean() - red_of_bt709) < 1.5


def test_a_gif_with_few_colors_is_exact(tmp_path: Path) -> None:
    write_video(tmp_path / "film.gif", [flat(SATURATED)], 16)
    np.testing.assert_array_equal(read_video(tmp_path / "film.gif")[0], flat(SATURATED))


def test_an_mp4_can_play_before_it_is_fully_loaded(tmp_path: Path) -> None:
    data = write_video(tmp_path / "film.mp4", [gradient(5)], 16).read_bytes()
    assert b"avc1" in data and data.index(b"moov") < data.index(b"mdat")


def test_a_single_frame_is_a_valid_video(tmp_path: Path) -> None:
    for name in ("one.mp4", "one.webm", "one.gif", "one.png"):
        write_video(tmp_path / name, [gradient(1)], 16, LINEAGE)
        assert read_video(tmp_path / name)[0].shape == (1, 64, 96, 3)


def test_a_lineage_longer_than_a_command_line_is_kept(tmp_path: Path) -> None:
    comment = json.dumps({"steps": ["0123456789abcdef" * 2] * 8000})
    for name in ("film.mp4", "film.gif"):
        write_video(tmp_path / name, [gradient(1)], 16, {"comment": comment})
        assert read_metadata(tmp_path / name)["comment"] == comment


def test_frames_are_numbered_and_exact(tmp_path: Path) -> None:
    frames = gradient()
    write_video(tmp_path / "film.png", slices(frames), 24, LINEAGE)
    assert names(tmp_path / "film.png") == [f"{number:05d}.png" for number in range(9)]
    np.testing.assert_array_equal(read_video(tmp_path / "film.png")[0], frames)
    assert read_video(tmp_path / "film.png")[1:] == (24, {"fps": "24", **LINEAGE})


def test_a_folder_of_frames_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_video(f"{tmp_path}/v1.5/", [gradient(9)], 16)
    write_video(tmp_path / "v1.5", [gradient(5)], 16)
    assert len(names(tmp_path / "v1.5")) == 5 and names(tmp_path) == ["v1.5"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.mp4", "mp4"),
        ("A.MP4", "mp4"),
        ("a.webm", "webm"),
        ("a.gif", "gif"),
        ("a.png", "png"),
        ("a", "png"),
        ("a.b/", "png"),
        ("a.mp4/", "png"),
    ],
)
def test_the_suffix_determines_the_format(name: str, kind: str, tmp_path: Path) -> None:
    assert video_format(f"{tmp_path}/{name}") == kind


def test_invalid_outputs_are_one_line_errors(tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "me.png").touch()
    (tmp_path / "file").touch()
    for name, message in [
        (
            "a.avi",
            r"a video must end in .mp4, .webm, .gif or .png \(a folder of frames\), got a.avi",
        ),
        ("none/a.mp4", "no folder .*none for the video a.mp4; create it first"),
        ("file/a.mp4", "no folder .*file for the video a.mp4; create it first"),
        ("holiday", "has files that are not frames"),
        ("file", "frames are written to a folder, but .*file is a file"),
    ]:
        with pytest.raises(UsageError, match=message) as caught:
            video_format(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["film.mp4", "film"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, WanpipeError])
def test_an_interrupted_video_leaves_the_previous_one(
    name: str, error: type[BaseException], tmp_path: Path
) -> None:
    def interrupted() -> Iterator[np.ndarray]:
        yield gradient(5)
        raise error

    write_video(tmp_path / name, [gradient(9)], 16)
    with pytest.raises(error):
        write_video(tmp_path / name, interrupted(), 16)
    assert names(tmp_path) == [name] and len(read_video(tmp_path / name)[0]) == 9


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo '[mp4 @ 0x1] no such codec' >&2; echo 'Conversion failed!' >&2; exit 1", "codec"),
        ("head -c 99 >/dev/null; echo 'lost interest' >&2; exit 1", "lost interest"),
        ("exit 3", "ffmpeg gave no reason"),
        ("head -c 99 >/dev/null; exit 0", "ffmpeg gave no reason"),
    ],
)
def test_a_failing_ffmpeg_is_a_one_line_error_and_leaves_no_video(
    script: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    with (
        fake_ffmpeg(tmp_path, monkeypatch, script),
        pytest.raises(WanpipeError, match=reason) as caught,
    ):
        write_video(tmp_path / "out" / "film.mp4", slices(gradient(81, 256, 256)), 16)
    assert "\n" not in str(caught.value) and not names(tmp_path / "out")


@pytest.mark.skipif(sys.platform == "win32", reason="needs ulimit")
def test_a_file_size_limit_is_an_error_and_leaves_no_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 64, 96, 3), dtype=np.uint8)
    (tmp_path / "out").mkdir()
    full = 'trap \'\' XFSZ; ulimit -f 8; exec "$REAL" "$@"'
    with (
        fake_ffmpeg(tmp_path, monkeypatch, full),
        pytest.raises(WanpipeError, match=r"video cannot be written to .*: .*[Ll]arge"),
    ):
        write_video(tmp_path / "out" / "film.mp4", [noise], 16)
    assert not names(tmp_path / "out")


def test_a_full_disk_is_an_error_and_leaves_no_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(WanpipeError, match="cannot be written: No space left on device"):
        write_video(tmp_path / "film", [gradient(5)], 16)
    assert not names(tmp_path)


def test_a_missing_ffmpeg_is_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    with pytest.raises(WanpipeError, match=r"no ffmpeg at .*none"):
        write_video(tmp_path / "film.mp4", [gradient(5)], 16)


def test_reading_a_file_that_is_not_a_video_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no video at"):
        read_video(tmp_path / "none.mp4")
    with pytest.raises(WanpipeError, match="cannot be read as a video: "):
        read_video(tmp_path / "text.mp4")
    with pytest.raises(WanpipeError, match="has no frames"):
        read_video(tmp_path / "empty")


def test_a_contact_sheet_shows_the_first_and_last_frame_of_every_video() -> None:
    rows = [("red to blue", flat([SATURATED[i] for i in (0, 1, 1, 1, 2)])), ("一", gradient(1))]
    sheet = contact_sheet(rows, columns=3, width=60)
    assert sheet.size == (8 + 3 * 68, 8 + (20 + 40 + 8) * 2)
    assert [sheet.getpixel((x, 40)) for x in (30, 98, 166)] == [SATURATED[i] for i in (0, 1, 2)]
    assert sheet.getpixel((0, 0)) == (24, 24, 24) == sheet.getpixel((98, 100))


def test_video_format_loads_neither_numpy_nor_pillow() -> None:
    program = (
        "import sys; from wanpipe.media import video; video.video_format('a.mp4')\n"
        "assert not {'numpy', 'PIL', 'imageio_ffmpeg'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
