"""Writes and reads videos: .mp4, .webm and .gif with ffmpeg, or a folder of PNG frames.

Frames are (T, Y, X, 3) uint8 RGB. A video is written whole or not at all. Knows no entries.
No stage calls `read_video`: it is for users who compare videos.
"""

import contextlib
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wanpipe.errors import UsageError, WanpipeError
from wanpipe.runtime import interrupt
from wanpipe.runtime.disk import atomic_replace

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

FRAMES = "png"
LONGEST_NAME = 200  # bytes; file systems allow 255, and the temporary name is longer
FRAME_NAME = re.compile(r"\d{5,}\.png")
# the scaler must use the matrix that the tags name; by default it uses bt601
BT709 = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int,"
    "format=yuv420p,setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709"
)
TAGS = "-color_range tv -color_primaries bt709 -color_trc bt709 -colorspace bt709"
# Ctrl-C signals the whole foreground process group; ffmpeg would end its file early and fail
OWN_GROUP = 0
POLL = 0.02  # seconds between two checks for a signal while ffmpeg finishes
# by default x264 buffers 40 frames, half a video, and would encode them after the last one arrives
ENCODERS = {
    "mp4": f"-vf {BT709} {TAGS} -c:v libx264 -crf 16 -rc-lookahead 10 -movflags +faststart",
    "webm": f"-vf {BT709} {TAGS} -c:v libvpx-vp9 -crf 20 -b:v 0 -row-mt 1 -cpu-used 4",
    "gif": "-vf split[a][b];[a]palettegen[palette];[b][palette]paletteuse",
}


def video_format(path: str | Path) -> str:
    """Return the format of a video at `path`: "mp4", "webm", "gif", or "png" for a frames folder.

    A path means a folder if it ends in "/" or .png, has no suffix, or is an existing folder. Call
    this before any work: it raises UsageError for another suffix, a missing parent folder, or a
    folder with other files.
    """
    target = Path(path)
    if not target.absolute().parent.is_dir():
        raise UsageError(f"no folder {target.parent} for the video {target.name}; create it first")
    if len(os.fsencode(target.name)) > LONGEST_NAME:
        raise UsageError(
            f"a video name may have at most {LONGEST_NAME} bytes, got {target.name[:24]}…"
        )
    suffix = target.suffix.lower().removeprefix(".")
    if target.is_dir():
        names = [entry.name for entry in target.iterdir()]
        if not all(FRAME_NAME.fullmatch(name) for name in names):
            raise UsageError(
                f"folder {path} has files that are not frames; give an empty or a new folder"
            )
        return FRAMES
    if str(path).endswith(("/", os.sep)) or suffix in ("", FRAMES):
        if target.exists():
            raise UsageError(
                f"frames are written to a folder, but {path} is a file; give another name"
            )
        return FRAMES
    if suffix not in ENCODERS:
        raise UsageError(
            f"a video must end in .mp4, .webm, .gif or .png (a folder of frames), got {target.name}"
        )
    return suffix


def write_video(
    path: str | Path,
    slices: Iterable["np.ndarray"],
    fps: float,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write slices of frames, each (T, Y, X, 3) uint8, as they arrive; return `path`.

    `metadata` may have "title" and "comment" (a .gif keeps only the comment). An existing file is
    replaced at the end. Raises WanpipeError with ffmpeg's message if ffmpeg fails.
    """
    kind, target = video_format(path), Path(path).absolute()
    metadata = metadata or {}
    with _reported(target), atomic_replace(target) as partial:
        if kind == FRAMES:
            _save_frames(partial, slices, {"fps": f"{fps:g}", **metadata})
        else:  # ffmpeg chooses the container by the suffix, which `partial` shares with `path`
            _encode(partial, kind, slices, fps, metadata)
        if kind == "gif" and metadata.get("comment"):
            _comment_gif(partial, metadata["comment"])
    return Path(path)


def read_video(path: str | Path) -> tuple["np.ndarray", float, dict[str, str]]:
    """Read a whole video: frames (T, Y, X, 3) uint8, frames per second, metadata."""
    import numpy as np

    if Path(path).is_dir():
        return _load_frames(Path(path))
    metadata, log = _probe(path)
    video = re.search(r"Video: .*?, (\d+)x(\d+)[ ,\n].*?([\d.]+) fps", log)
    if video is None:
        raise WanpipeError(f"{path} has no video stream; give a file that wanpipe wrote")
    exact = ["-vf", "scale=flags=bicubic+accurate_rnd+full_chroma_int"]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-fps_mode", "passthrough", "-"]
    data, _ = _run(path, ["-loglevel", "error", *_input(path), *exact, *raw])
    frames = np.frombuffer(data, np.uint8).reshape(-1, int(video[2]), int(video[1]), 3)
    return frames, float(video[3]), metadata


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata of a video, such as "title" and "comment", without decoding frames."""
    if Path(path).is_dir():
        return _load_frames(Path(path), first=True)[2]
    return _probe(path)[0]


def contact_sheet(
    rows: Sequence[tuple[str, "np.ndarray"]], columns: int = 5, width: int = 240
) -> "Image.Image":
    """Draw each video, (T, Y, X, 3) uint8, as a labeled row of evenly spaced frames.

    `width` is the width of one frame in pixels.
    """
    from PIL import Image, ImageDraw

    gap, caption = 8, 20
    heights = [max(1, round(width * frames.shape[1] / frames.shape[2])) for _, frames in rows]
    across = gap + columns * (width + gap)
    down = gap + sum(caption + height + gap for height in heights)
    sheet = Image.new("RGB", (across, down), (24, 24, 24))
    draw = ImageDraw.Draw(sheet)
    top = gap
    for (label, frames), height in zip(rows, heights, strict=True):
        draw.text((gap, top), label, fill=(220, 220, 220))
        for column, index in enumerate(_evenly(len(frames), columns)):
            frame = Image.fromarray(frames[index]).resize((width, height))
            sheet.paste(frame, (gap + column * (width + gap), top + caption))
        top += caption + height + gap
    return sheet


def _evenly(count: int, wanted: int) -> list[int]:
    """Return at most `wanted` evenly spaced indices below `count`, with the first and the last."""
    wanted = min(count, wanted)
    return [round(index * (count - 1) / max(1, wanted - 1)) for index in range(wanted)]


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WanpipeError(f"video {path} cannot be written: {error.strerror or error}") from error


def _save_frames(folder: Path, slices: Iterable["np.ndarray"], metadata: Mapping[str, str]) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, value in metadata.items():
        info.add_itxt(name, value)
    with _reported(folder.parent):
        folder.mkdir()
    for number, frame in enumerate(itertools.chain.from_iterable(slices)):
        interrupt.check()
        with _reported(folder.parent):
            Image.fromarray(frame).save(folder / f"{number:05d}.png", pnginfo=info)


def _load_frames(folder: Path, first: bool = False) -> tuple["np.ndarray", float, dict[str, str]]:
    import numpy as np
    from PIL import Image

    paths = sorted(path for path in folder.iterdir() if FRAME_NAME.fullmatch(path.name))
    if not paths:
        raise WanpipeError(f"folder {folder} has no frames; give one that wanpipe wrote")
    with Image.open(paths[0]) as image:
        metadata = {str(name): str(value) for name, value in image.info.items()}
    frames = np.stack([np.asarray(Image.open(path)) for path in paths[: 1 if first else None]])
    return frames, float(metadata.get("fps", 0)), metadata


def _encode(
    target: Path, kind: str, slices: Iterable["np.ndarray"], fps: float, metadata: Mapping[str, str]
) -> None:
    """Encode frames to `target` with ffmpeg, whose process never outlives this call."""
    slices = iter(slices)
    first = next(slices)
    rows, columns = first.shape[1:3]
    raw = f"-f rawvideo -pix_fmt rgb24 -video_size {columns}x{rows} -framerate {fps:g} -i -"
    with tempfile.TemporaryDirectory(prefix="wanpipe-") as folder:
        notes, log = Path(folder, "metadata"), Path(folder, "log")
        with _reported(target.parent), log.open("wb") as stderr:
            # a file, since the metadata may be longer than a command line
            notes.write_text(_ffmetadata(metadata), encoding="utf-8")
            command = [_ffmpeg(), "-loglevel", "error", "-y", *raw.split(), "-f", "ffmetadata"]
            command += ["-i", str(notes), "-map", "0:v", "-map_metadata", "1"]
            command += [*ENCODERS[kind].split(), str(target)]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stderr=stderr, process_group=OWN_GROUP
            )
        try:
            complete = _feed(process, itertools.chain([first], slices))
            if _ended(process) or not complete:
                reason = _last_line(log.read_text(encoding="utf-8", errors="replace"))
                raise WanpipeError(f"video cannot be written to {target.parent}: {reason}")
        finally:
            process.kill()
            _close(process)
            process.wait()


def _feed(process: "subprocess.Popen[bytes]", slices: Iterable["np.ndarray"]) -> bool:
    """Write all frames to ffmpeg; return False if it stops reading before the end."""
    import numpy as np

    assert process.stdin is not None
    for frames in slices:
        interrupt.check()
        try:
            process.stdin.write(np.ascontiguousarray(frames).data)
        except BrokenPipeError:
            return False
    return _close(process)


def _ended(process: "subprocess.Popen[bytes]") -> int:
    """Wait for ffmpeg and return its exit code. Raises Interrupted if a signal arrives."""
    while True:
        try:
            return process.wait(POLL)
        except subprocess.TimeoutExpired:
            interrupt.check()


def _close(process: "subprocess.Popen[bytes]") -> bool:
    assert process.stdin is not None
    try:
        process.stdin.close()
    except BrokenPipeError:
        return False
    return True


def _comment_gif(path: Path, comment: str) -> None:
    """Insert a comment extension after the global palette, where every reader looks for it."""
    data, text = path.read_bytes(), comment.encode()
    flags = data[10]
    start = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    blocks = [text[index : index + 255] for index in range(0, len(text), 255)]
    extension = b"\x21\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
    path.write_bytes(data[:start] + extension + data[start:])


def _ffmpeg() -> str:
    import imageio_ffmpeg

    try:
        program = str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        program = ""
    if shutil.which(program) is None:
        interrupt.check()  # imageio runs the program to test it, and Ctrl-C may have ended that
        raise WanpipeError(f"no ffmpeg at '{program}'; reinstall imageio-ffmpeg")
    return program


def _run(path: str | Path, arguments: list[str]) -> tuple[bytes, str]:
    """Run ffmpeg on a video to read; return its stdout and stderr."""
    if not Path(path).is_file():
        raise UsageError(f"no video at {path}")
    done = subprocess.run(
        [_ffmpeg(), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        process_group=OWN_GROUP,
    )
    log = done.stderr.decode(errors="replace")
    if done.returncode:
        raise WanpipeError(f"{path} cannot be read as a video: {_last_line(log)}")
    return done.stdout, log


def _input(path: str | Path) -> list[str]:
    return ["-i", f"file:{path}"]  # file: keeps a name with a colon from being a protocol


def _probe(path: str | Path) -> tuple[dict[str, str], str]:
    """Return the metadata of a video, and ffmpeg's log of its streams."""
    data, log = _run(path, [*_input(path), "-f", "ffmetadata", "-"])
    metadata = _parse_ffmetadata(data.decode(errors="replace"))
    if "Input #0, gif" in log:
        from PIL import Image

        with Image.open(path) as image:
            metadata["comment"] = image.info.get("comment", b"").decode(errors="replace")
    return metadata, log


def _ffmetadata(metadata: Mapping[str, str]) -> str:
    """Format metadata as ffmpeg's text format, which escapes = ; # \\ and line ends."""
    special = re.compile(r"[=;#\\\n\r]")
    lines = [name + "=" + special.sub(r"\\\g<0>", value) for name, value in metadata.items()]
    # ffmpeg treats a line end after any backslash, even an escaped one, as escaped; NUL separates
    lines = [line + "\0" if line.endswith("\\") else line for line in lines]
    return "\n".join([";FFMETADATA1", *lines, ""])


def _parse_ffmetadata(text: str) -> dict[str, str]:
    """Parse the global section. Names become lower case, since Matroska has them in upper case."""
    metadata = {}
    for line in re.findall(r"(?:\\.|[^\\\n])+", text, re.DOTALL):
        if line.startswith("["):
            break
        name, found, value = line.partition("=")
        if found:
            metadata[name.lower()] = re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
    return metadata


def _last_line(log: str) -> str:
    """Return the last informative line of ffmpeg's log, without the name of its module."""
    lines = [re.sub(r"^(\[[^]]*\]\s*)+", "", line).strip() for line in log.splitlines()]
    lines = [line for line in lines if line and line != "Conversion failed!"]
    return lines[-1] if lines else "ffmpeg gave no reason"
