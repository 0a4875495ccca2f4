"""Films of others, folders of frames and still images: the right frames, or one line."""

import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import DATA, golden
from wanpipe.errors import UsageError, WanpipeError
from wanpipe.media import decoder
from wanpipe.media.ffmpeg import program
from wanpipe.media.video_reader import probe, read_frames
from wanpipe.runtime.report import Report, Task

INPUTS = DATA / "expected" / "wan21-vace" / "inputs"
REPORT = Report()
# with noise, since some encoders leave out a frame that equals the one before
NOISE = ",noise=alls=40:allf=t:all_seed=1 "
PICTURE = "-f lavfi -i testsrc2=size=64x48:rate=24:duration=1" + NOISE
# what users give, and how the ffmpeg that ships makes it
KINDS = {
    "a.mp4": "-pix_fmt yuv420p",
    "tagged.mp4": "-pix_fmt yuv420p -colorspace bt709 -color_range pc",
    "fragments.mp4": "-pix_fmt yuv420p -g 6 -movflags frag_keyframe+empty_moov",
    **{f"a.{kind}": "-pix_fmt yuv420p" for kind in ("mov", "mkv", "avi", "flv", "ts", "mpg")},
    **{f"b.{kind}": "" for kind in ("wmv", "ogv", "gif", "apng", "webp", "y4m", "nut", "mxf")},
    "a.webm": "-c:v libvpx -deadline realtime",
}
MEMORY = """
import sys
from pathlib import Path
from tests.peak import peak_bytes
from wanpipe.media.video_reader import probe, read_frames
from wanpipe.runtime.report import Report
index = probe(Path(sys.argv[1]), Report())
count = sum(1 for _ in read_frames(Path(sys.argv[1]), range(index.frames), Report()))
print(index.width, count, peak_bytes())
"""
WAITING = """
import sys
from pathlib import Path
from wanpipe.media.video_reader import probe
from wanpipe.runtime import interrupt
from wanpipe.runtime.report import Report
interrupt.install()
print("ready", flush=True)
try:
    probe(Path(sys.argv[1]), Report())
except interrupt.Interrupted as error:
    sys.exit(error.code)
"""


class Notes(Report):
    """Keeps remarks and progress."""

    def __init__(self) -> None:
        self.remarks: list[str] = []
        self.done: list[tuple[int, int]] = []

    def remark(self, text: str) -> None:
        self.remarks.append(text)

    def progress(self, task: Task, elapsed: float, left: float) -> None:
        self.done.append((task.done, task.total))


def make(path: Path, options: str, source: str = PICTURE) -> Path:
    command = [program(), "-loglevel", "error", "-y", *source.split(), *options.split(), str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def frames(path: Path) -> np.ndarray:
    return np.stack(list(read_frames(path, range(probe(path, REPORT).frames), REPORT)))


def children() -> set[str]:
    """The processes that this one has started and not waited for."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.mark.parametrize("path", sorted(INPUTS.glob("*.mp4")), ids=lambda path: path.stem)
def test_every_frame_is_what_the_reference_decodes(path: Path) -> None:
    assert np.array_equal(frames(path), golden("wan21-vace/prepare")[f"film_{path.stem}"])


@pytest.mark.parametrize("name", KINDS)
def test_every_format_gives_size_times_and_ffmpegs_own_pixels(name: str, tmp_path: Path) -> None:
    path = make(tmp_path / name, KINDS[name])
    index = probe(path, REPORT)
    assert (index.width, index.height, index.frames) == (64, 48, 24)
    assert index.times == pytest.approx(np.arange(24) / 24, abs=1e-4)
    assert index.ends[:-1].tolist() == index.times[1:].tolist()
    assert index.ends[-1] == pytest.approx(1, abs=0.011)
    raw = "-fps_mode passthrough -f rawvideo -pix_fmt rgb24 -"
    command = [program(), "-loglevel", "error", "-i", str(path), *raw.split()]
    plain = subprocess.run(command, check=True, capture_output=True).stdout
    assert frames(path).tobytes() == plain


def test_chosen_frames_come_alone_and_may_repeat() -> None:
    whole = golden("wan21-vace/prepare")["film_depth"]
    chosen = [0, 2, 2, 3, 8, 8]
    ours = list(read_frames(INPUTS / "depth.mp4", chosen, REPORT))
    assert np.array_equal(np.stack(ours), whole[chosen])
    assert not ours[0].flags.writeable
    assert list(read_frames(INPUTS / "depth.mp4", [], REPORT)) == []
    with pytest.raises(WanpipeError, match="has no frame 9: it ends before"):
        list(read_frames(INPUTS / "depth.mp4", [9], REPORT))


def test_many_chosen_frames_fit_into_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = golden("wan21-vace/prepare")["film_depth"]
    monkeypatch.setattr(decoder, "MAX_SPANS", 2)
    ours = list(read_frames(INPUTS / "depth.mp4", [0, 2, 4, 8], REPORT))
    assert np.array_equal(np.stack(ours), whole[[0, 2, 4, 8]])


def test_only_the_beginning_is_looked_at() -> None:
    index = probe(INPUTS / "depth.mp4", REPORT, frames=4)
    assert (index.frames, index.ends[-1]) == (4, pytest.approx(4 / 24))
    assert probe(INPUTS / "depth.mp4", REPORT, seconds=0.2).frames == 5
    assert probe(INPUTS / "depth.mp4", REPORT, frames=9).frames == 9


def test_a_rotation_tag_turns_the_film(tmp_path: Path) -> None:
    plain = make(tmp_path / "plain.mov", "-c:v libx264rgb -qp 0")
    turned = tmp_path / "turned.mov"
    make(turned, "-c copy", f"-display_rotation 90 -i {plain}")
    index = probe(turned, REPORT)
    assert (index.width, index.height) == (48, 64)
    assert np.array_equal(frames(turned), np.rot90(frames(plain), 1, (1, 2)))


@pytest.mark.parametrize(
    ("aspect", "size"), [("16/15", (68, 48)), ("8/9", (64, 54)), ("100/101", (64, 48))]
)
def test_a_film_looks_as_it_is_shown(aspect: str, size: tuple[int, int], tmp_path: Path) -> None:
    path = make(tmp_path / "wide.mp4", f"-vf setsar={aspect} -pix_fmt yuv420p")
    index = probe(path, REPORT)
    assert (index.width, index.height) == size
    assert frames(path).shape == (24, size[1], size[0], 3)


def test_a_variable_rate_and_a_late_start_are_read(tmp_path: Path) -> None:
    late = "-vf setpts='(N+gt(N,3)*5+100)/24/TB' -fps_mode vfr -pix_fmt yuv420p"
    for name in ("late.mp4", "late.mkv"):
        index = probe(make(tmp_path / name, late), REPORT)
        wanted = [(number + 5 * (number > 3)) / 24 for number in range(24)]
        assert index.times == pytest.approx(wanted, abs=1.1e-3)
        assert index.ends[3] == index.times[4]


@pytest.mark.parametrize("name", ["a.mp4", "fragments.mp4", "a.mkv", "a.avi", "a.webm", "b.gif"])
def test_a_film_cut_anywhere_never_gives_fewer_frames_silently(name: str, tmp_path: Path) -> None:
    faststart = " -movflags +faststart" if name == "a.mp4" else ""
    whole = make(tmp_path / name, KINDS[name] + faststart).read_bytes()
    path, read = tmp_path / f"cut-{name}", 0
    for part in range(1, 16):
        path.write_bytes(whole[: len(whole) * part // 16])
        notes = Notes()
        try:
            assert probe(path, notes).frames == 24 or notes.remarks
        except WanpipeError as error:
            assert "\n" not in str(error)
            read += "frames could be read" in str(error)
    assert read


def refusal(path: Path) -> str:
    with pytest.raises(WanpipeError) as refused:
        probe(path, REPORT)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_is_no_film_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder").mkdir()
    sound = make(tmp_path / "sound.m4a", "", "-f lavfi -i sine=duration=1")
    assert "no video at" in refusal(tmp_path / "none.mp4")
    assert "no video" in refusal(tmp_path / "text.mp4")
    assert "no video" in refusal(tmp_path / "empty.mp4")
    assert "no picture, only sound" in refusal(sound)
    assert "has no frames" in refusal(tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "not a regular file" in refusal(tmp_path / "pipe.mp4")


def test_sound_that_outlasts_the_frames_is_remarked(tmp_path: Path) -> None:
    sound = PICTURE + "-f lavfi -i sine=duration=3"
    notes = Notes()
    assert probe(make(tmp_path / "a.mp4", "-pix_fmt yuv420p", sound), notes).frames == 24
    assert "its frames end at 1.00 s; it may be cut short" in notes.remarks[0]


def test_damage_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", "-pix_fmt yuv420p")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = b"\xff" * 2000
    path.write_bytes(data)
    assert "frames could be read" in refusal(path)


def test_a_list_of_other_files_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a.ts", "")
    lists = {
        "hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\na.ts\n#EXT-X-ENDLIST\n",
        "concat.mp4": "ffconcat version 1.0\nfile a.ts\n",
        "dash.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
        "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\na.ts\n#EXT-X-ENDLIST\n",
        "speech.sdp": "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        assert "no video" in refusal(tmp_path / name)
    for number in range(2):
        make(tmp_path / f"{number}.bmp", "-frames:v 1")
    assert "no video at" in refusal(tmp_path / "%d.bmp")


def test_a_film_larger_than_the_limits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MAX_FRAMES", 8), ("MAX_TOTAL_PIXELS", 9000), ("MAX_PIXELS", 2000)):
        with monkeypatch.context() as changed:
            changed.setattr(decoder, name, value)
            with pytest.raises(WanpipeError):
                probe(INPUTS / "depth.mp4", REPORT)


def save(path: Path, size: tuple[int, int] = (6, 4), level: int = 0) -> None:
    Image.new("RGB", size, (level, level, level)).save(path)


def test_a_folder_of_frames_is_read_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        save(tmp_path / f"frame{number}.png", level=number)
    save(tmp_path / ".hidden.png", (9, 9))
    (tmp_path / "notes.txt").touch()
    index = probe(tmp_path, REPORT, fps=8)
    assert (index.width, index.height, index.frames) == (6, 4, 3)
    assert index.ends.tolist() == [0.125, 0.25, 0.375]
    levels = [int(frame[0, 0, 0]) for frame in read_frames(tmp_path, [0, 1, 1, 2], REPORT)]
    assert levels == [1, 2, 2, 10]
    save(tmp_path / "frame3.png", (6, 5))
    with pytest.raises(UsageError, match=r"frame1.png has 6x4 and frame3.png 6x5"):
        probe(tmp_path, REPORT)


def test_a_still_image_is_one_frame(tmp_path: Path) -> None:
    save(tmp_path / "mask.png", level=255)
    index = probe(tmp_path / "mask.png", REPORT)
    assert (index.width, index.height, index.frames) == (6, 4, 1)
    assert [frame.max() for frame in read_frames(tmp_path / "mask.png", [0, 0], REPORT)] == [
        255
    ] * 2


def test_progress_is_reported_up_to_the_end() -> None:
    notes = Notes()
    index = probe(INPUTS / "depth.mp4", notes)
    assert notes.done[-1] == (index.frames, index.frames)
    list(read_frames(INPUTS / "depth.mp4", [1, 2], notes))
    assert notes.done[-2:] == [(1, 2), (2, 2)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ffmpeg_ends_with_an_iterator_that_is_dropped(tmp_path: Path) -> None:
    path, before = make(tmp_path / "a.mp4", "-pix_fmt yuv420p"), children()
    reading = read_frames(path, range(24), REPORT)
    assert len(list(itertools.islice(reading, 2))) == 2
    assert children() - before
    del reading
    assert children() == before


def test_a_signal_ends_the_scan_and_ffmpeg(tmp_path: Path) -> None:
    film, fake = make(tmp_path / "a.mp4", "-pix_fmt yuv420p"), tmp_path / "ffmpeg"
    fake.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\nexec sleep 60\n")
    fake.chmod(0o755)
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, str(film)],
        stdout=subprocess.PIPE,
        env={**os.environ, "IMAGEIO_FFMPEG_EXE": str(fake)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        threading.Timer(1, process.send_signal, [signal.SIGINT]).start()
        assert process.wait(30) == 128 + signal.SIGINT
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.slow
def test_a_film_in_4k_takes_the_memory_of_a_few_frames(tmp_path: Path) -> None:
    source = "-f lavfi -i testsrc2=size=3840x2160:rate=24:duration=2 "
    path = make(tmp_path / "4k.mp4", "-pix_fmt yuv420p -preset ultrafast -crf 40", source)
    command = [sys.executable, "-c", MEMORY, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    width, count, peak = map(int, done.stdout.split())
    assert (width, count) == (3840, 48)
    assert peak < 700 << 20  # all frames would take 1.2 GB
