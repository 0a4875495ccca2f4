"""Writes and reads films: .mp4, .webm and .gif through ffmpeg, or a folder of PNG frames.

Frames are RGB bytes (T, Y, X, 3). A film appears whole or not at all. Knows no entries.
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
from wanpipe.runtime.disk import replacing

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

FRAMES = "png"
LONGEST_NAME = 200  # bytes; file systems take 255, the temporary name needs some
FRAME_NAME = re.compile(r"\d{5,}\.png")
# the scaler must convert with the matrix that the tags name; its default is that of old television
BT709 = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int,"
    "format=yuv420p,setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709"
)
TAGS = "-color_range tv -color_primaries bt709 -color_trc bt709 -colorspace bt709"
# Ctrl-C goes to the whole foreground group: ffmpeg would end its film early, and the work fail
OWN_GROUP = 0
POLL = 0.02  # seconds between two looks for a signal while ffmpeg ends
# by default x264 holds back 40 frames, half a film, and would encode them after the last is given
ENCODERS = {
    "mp4": f"-vf {BT709} {TAGS} -c:v libx264 -crf 16 -rc-lookahead 10 -movflags +faststart",
    "webm": f"-vf {BT709} {TAGS} -c:v libvpx-vp9 -crf 20 -b:v 0 -row-mt 1 -cpu-used 4",
    "gif": "-vf split[a][b];[a]palettegen[palette];[b][palette]paletteuse",
}


def film_format(path: str | Path) -> str:
    """Tell how a film at `path` is written: "mp4", "webm", "gif", or "png" for a folder of frames.

    A folder is what ends in "/" or .png, has no suffix, or exists as one. Raises UsageError for
    another suffix, a missing parent, or a folder with other files: worth asking before any work.
    """
    target = Path(path)
    if not target.absolute().parent.is_dir():
        raise UsageError(f"no folder {target.parent} for the film {target.name}; make it first")
    if len(os.fsencode(target.name)) > LONGEST_NAME:
        raise UsageError(f"film names have at most {LONGEST_NAME} bytes, got {target.name[:24]}…")
    suffix = target.suffix.lower().removeprefix(".")
    if target.is_dir():
        names = [entry.name for entry in target.iterdir()]
        if not all(FRAME_NAME.fullmatch(name) for name in names):
            raise UsageError(
                f"folder {path} holds other files than frames; give an empty or new one"
            )
        return FRAMES
    if str(path).endswith(("/", os.sep)) or suffix in ("", FRAMES):
        if target.exists():
            raise UsageError(f"frames need a folder, but {path} is a file; give another name")
        return FRAMES
    if suffix not in ENCODERS:
        raise UsageError(
            f"film must end in .mp4, .webm, .gif or .png (a folder of frames), got {target.name}"
        )
    return suffix


def write_film(
    path: str | Path,
    slices: Iterable["np.ndarray"],
    fps: float,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write slices of frames, (T, Y, X, 3) uint8 each, as they come; returns the path of the film.

    `metadata` may have "title" and "comment" (a .gif keeps the comment alone). What stands at
    `path` is replaced at the end. Raises WanpipeError, with ffmpeg's own words where it fails.
    """
    kind, target = film_format(path), Path(path).absolute()
    metadata = metadata or {}
    with _reported(target), replacing(target) as partial:
        if kind == FRAMES:
            _save_frames(partial, slices, {"fps": f"{fps:g}", **metadata})
        else:  # by the suffix, which is that of `path`, ffmpeg chooses the container
            _encode(partial, kind, slices, fps, metadata)
        if kind == "gif" and metadata.get("comment"):
            _comment_gif(partial, metadata["comment"])
    return Path(path)


def read_film(path: str | Path) -> tuple["np.ndarray", float, dict[str, str]]:
    """Read a film whole: frames (T, Y, X, 3) uint8, frames per second, metadata."""
    import numpy as np

    if Path(path).is_dir():
        return _load_frames(Path(path))
    metadata, log = _probe(path)
    video = re.search(r"Video: .*?, (\d+)x(\d+)[ ,\n].*?([\d.]+) fps", log)
    if video is None:
        raise WanpipeError(f"{path} has no film in it; give a file that wanpipe wrote")
    exact = ["-vf", "scale=flags=bicubic+accurate_rnd+full_chroma_int"]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-fps_mode", "passthrough", "-"]
    data, _ = _run(path, ["-loglevel", "error", *_input(path), *exact, *raw])
    frames = np.frombuffer(data, np.uint8).reshape(-1, int(video[2]), int(video[1]), 3)
    return frames, float(video[3]), metadata


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read what a film says of itself, "comment" and "title" among it, without decoding frames."""
    if Path(path).is_dir():
        return _load_frames(Path(path), first=True)[2]
    return _probe(path)[0]


def contact_sheet(
    rows: Sequence[tuple[str, "np.ndarray"]], columns: int = 5, width: int = 240
) -> "Image.Image":
    """Draw each film, (T, Y, X, 3) uint8, as a labelled row of evenly chosen frames.

    `width` is that of one frame in pixels.
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
    """At most `wanted` indices of `count`, the first and the last among them."""
    wanted = min(count, wanted)
    return [round(index * (count - 1) / max(1, wanted - 1)) for index in range(wanted)]


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WanpipeError(f"film {path} cannot be written: {error.strerror or error}") from error


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
        raise WanpipeError(f"folder {folder} holds no frames; give one that wanpipe wrote")
    with Image.open(paths[0]) as image:
        metadata = {str(name): str(value) for name, value in image.info.items()}
    frames = np.stack([np.asarray(Image.open(path)) for path in paths[: 1 if first else None]])
    return frames, float(metadata.get("fps", 0)), metadata


def _encode(
    target: Path, kind: str, slices: Iterable["np.ndarray"], fps: float, metadata: Mapping[str, str]
) -> None:
    """Pipe frames through ffmpeg into `target`; the process never outlives this call."""
    slices = iter(slices)
    first = next(slices)
    rows, columns = first.shape[1:3]
    raw = f"-f rawvideo -pix_fmt rgb24 -video_size {columns}x{rows} -framerate {fps:g} -i -"
    with tempfile.TemporaryDirectory(prefix="wanpipe-") as folder:
        notes, log = Path(folder, "metadata"), Path(folder, "log")
        with _reported(target.parent), log.open("wb") as stderr:
            notes.write_text(
                _ffmetadata(metadata), encoding="utf-8"
            )  # longer than arguments may be
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
                raise WanpipeError(f"film cannot be written in {target.parent}: {reason}")
        finally:
            process.kill()
            _close(process)
            process.wait()


def _feed(process: "subprocess.Popen[bytes]", slices: Iterable["np.ndarray"]) -> bool:
    """Write all frames to ffmpeg; False where it stops reading before the end."""
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
    """Wait for ffmpeg to end; its exit code. Raises Interrupted where a signal comes."""
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
    """Put a comment extension behind the global palette, where every reader looks for it."""
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
        interrupt.check()  # imageio tries the program, and Ctrl-C ends it
        raise WanpipeError(f"no ffmpeg at '{program}'; install imageio-ffmpeg again")
    return program


def _run(path: str | Path, arguments: list[str]) -> tuple[bytes, str]:
    """Run ffmpeg on a film to read; returns what it wrote to stdout and to stderr."""
    if not Path(path).is_file():
        raise UsageError(f"no film at {path}")
    done = subprocess.run(
        [_ffmpeg(), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        process_group=OWN_GROUP,
    )
    log = done.stderr.decode(errors="replace")
    if done.returncode:
        raise WanpipeError(f"{path} cannot be read as a film: {_last_line(log)}")
    return done.stdout, log


def _input(path: str | Path) -> list[str]:
    return ["-i", f"file:{path}"]  # file: a name with a colon is not a protocol


def _probe(path: str | Path) -> tuple[dict[str, str], str]:
    """The metadata of a film, and what ffmpeg says of its streams."""
    data, log = _run(path, [*_input(path), "-f", "ffmetadata", "-"])
    metadata = _parse_ffmetadata(data.decode(errors="replace"))
    if "Input #0, gif" in log:
        from PIL import Image

        with Image.open(path) as image:
            metadata["comment"] = image.info.get("comment", b"").decode(errors="replace")
    return metadata, log


def _ffmetadata(metadata: Mapping[str, str]) -> str:
    """Metadata as ffmpeg's own text format, in which = ; # \\ and line ends are escaped."""
    special = re.compile(r"[=;#\\\n\r]")
    lines = [name + "=" + special.sub(r"\\\g<0>", value) for name, value in metadata.items()]
    # behind a backslash, itself escaped or not, ffmpeg takes a line end for escaped; a NUL is none
    lines = [line + "\0" if line.endswith("\\") else line for line in lines]
    return "\n".join([";FFMETADATA1", *lines, ""])


def _parse_ffmetadata(text: str) -> dict[str, str]:
    """The global section of `text`; names in lower case, as Matroska writes them upper."""
    metadata = {}
    for line in re.findall(r"(?:\\.|[^\\\n])+", text, re.DOTALL):
        if line.startswith("["):
            break
        name, found, value = line.partition("=")
        if found:
            metadata[name.lower()] = re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
    return metadata


def _last_line(log: str) -> str:
    """What ffmpeg died of: its last line of substance, without the name of the module."""
    lines = [re.sub(r"^(\[[^]]*\]\s*)+", "", line).strip() for line in log.splitlines()]
    telling = [line for line in lines if line and line != "Conversion failed!"]
    return telling[-1] if telling else "ffmpeg gave no reason"
