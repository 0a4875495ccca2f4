"""Runs ffmpeg: encodes .mp4, .webm and .gif, and reads their metadata.

ffmpeg reads no format but these, no other file, and no more than a lineage can need.
"""

import itertools
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from wanpipe.errors import UsageError, WanpipeError
from wanpipe.runtime import interrupt

if TYPE_CHECKING:
    import numpy as np

# the scaler must use the matrix that the tags name; by default it uses bt601
BT709 = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int,"
    "format=yuv420p,setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709"
)
TAGS = "-color_range tv -color_primaries bt709 -color_trc bt709 -colorspace bt709"
# Ctrl-C signals the whole foreground process group; ffmpeg would end its file early and fail
OWN_GROUP = 0
POLL_SECONDS = 0.02  # seconds between two checks for a signal while ffmpeg finishes
# by default x264 buffers 40 frames, half a video, and would encode them after the last one arrives
ENCODERS = {
    "mp4": f"-vf {BT709} {TAGS} -c:v libx264 -crf 16 -rc-lookahead 10 -movflags +faststart",
    "webm": f"-vf {BT709} {TAGS} -c:v libvpx-vp9 -crf 20 -b:v 0 -row-mt 1 -cpu-used 4",
    "gif": "-vf split[a][b];[a]palettegen[palette];[b][palette]paletteuse",
}
# a playlist named like a video would make ffmpeg open other files and addresses
INPUT_OPTIONS = (
    "-protocol_whitelist file -format_whitelist mov,matroska,webm,gif -max_alloc 268435456"
)
MAX_METADATA_BYTES = 1 << 22  # the lineage of the longest prompts takes a tenth of it
MAX_LOG_BYTES = 1 << 16  # of ffmpeg's messages
TIMEOUT_SECONDS = 10.0  # for reading metadata
GIF_HEADER, COMMENT = 13, b"\x21\xfe"  # bytes, and how a comment extension begins


class FfmpegError(Exception):
    """Raised if ffmpeg fails, with the reason that it gives."""


def program() -> str:
    """Return the path of ffmpeg. Raises WanpipeError if there is none."""
    import imageio_ffmpeg

    try:
        found = str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        found = ""
    if shutil.which(found) is None:
        interrupt.check()  # imageio runs the program to test it, and Ctrl-C may have ended that
        raise WanpipeError(f"no ffmpeg at '{found}'; reinstall imageio-ffmpeg")
    return found


def encode(
    target: Path, kind: str, slices: Iterable["np.ndarray"], fps: float, metadata: Mapping[str, str]
) -> None:
    """Encode frames to `target`, whose suffix chooses the container. ffmpeg's process never
    outlives this call. Raises FfmpegError.
    """
    slices = iter(slices)
    first = next(slices)
    rows, columns = first.shape[1:3]
    raw = f"-f rawvideo -pix_fmt rgb24 -video_size {columns}x{rows} -framerate {fps:.15g} -i -"
    # files without a name: a killed process leaves none
    with tempfile.TemporaryFile() as notes, tempfile.TemporaryFile() as log:
        # a file, since the metadata may be longer than a command line
        notes.write(_ffmetadata(metadata).encode())
        notes.seek(0)
        command = [program(), "-loglevel", "error", "-y", *raw.split(), "-f", "ffmetadata"]
        command += ["-i", f"pipe:{notes.fileno()}", "-map", "0:v", "-map_metadata", "1"]
        command += [*ENCODERS[kind].split(), str(target)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stderr=log,
            pass_fds=[notes.fileno()],
            process_group=OWN_GROUP,
        )
        try:
            complete = _feed(process, itertools.chain([first], slices))
            if _ended(process) or not complete:
                raise FfmpegError(_reason(log))
        finally:
            process.kill()
            _close(process)
            process.wait()
    if kind == "gif" and metadata.get("comment"):
        _comment_gif(target, metadata["comment"])


def decode(path: Path) -> tuple["np.ndarray", float]:
    """Read all frames (T, Y, X, 3) uint8, and the frames per second. Raises WanpipeError."""
    import numpy as np

    log = _decoded(path, ["-f", "null", "-t", "0", "-"])[1]
    video = re.search(r"Video: .*?, (\d+)x(\d+)[ ,\n].*?([\d.]+) fps", log)
    if video is None:
        raise WanpipeError(f"{path} has no video stream; give a file that wanpipe wrote")
    exact = ["-vf", "scale=flags=bicubic+accurate_rnd+full_chroma_int"]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-fps_mode", "passthrough", "-"]
    data = _decoded(path, [*exact, *raw])[0]
    frames = np.frombuffer(data, np.uint8).reshape(-1, int(video[2]), int(video[1]), 3)
    return frames, float(video[3])


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a video without decoding frames, or only the comment of a .gif. Raises
    UsageError or WanpipeError.
    """
    check_file(path)
    with path.open("rb") as file:
        if file.read(4) == b"GIF8":
            return {"comment": _gif_comment(file)}
    command = [program(), "-loglevel", "error", *_input(path), "-f", "ffmetadata", "-"]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            process_group=OWN_GROUP,
        ) as process,
    ):
        assert process.stdout is not None
        slow = threading.Timer(TIMEOUT_SECONDS, process.kill)
        slow.start()
        try:
            data = process.stdout.read(MAX_METADATA_BYTES + 1)
            code = process.wait() if len(data) <= MAX_METADATA_BYTES else 0
        finally:
            slow.cancel()
            process.kill()
        reason = f"takes more than {TIMEOUT_SECONDS:g} s" if code < 0 else _reason(log)
    if len(data) > MAX_METADATA_BYTES:
        reason = f"has metadata of more than {MAX_METADATA_BYTES} bytes"
    if code or len(data) > MAX_METADATA_BYTES:
        raise WanpipeError(f"{path} cannot be read as a video: {reason}")
    return _parse_ffmetadata(data.decode(errors="replace"))


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
            return process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            interrupt.check()


def _close(process: "subprocess.Popen[bytes]") -> bool:
    assert process.stdin is not None
    try:
        process.stdin.close()
    except BrokenPipeError:
        return False
    return True


def check_file(path: Path) -> None:
    """Raise UsageError unless `path` is a regular file: reading a named pipe would wait."""
    if not path.exists():
        raise UsageError(f"no video at {path}")
    if not path.is_file():
        raise UsageError(f"{path} cannot be read as a video: it is not a regular file")


def _decoded(path: Path, arguments: list[str]) -> tuple[bytes, str]:
    """Run ffmpeg on a video to read; return its stdout and stderr."""
    check_file(path)
    done = subprocess.run(
        [program(), *_input(path), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        process_group=OWN_GROUP,
    )
    log = done.stderr.decode(errors="replace")
    if done.returncode:
        raise WanpipeError(f"{path} cannot be read as a video: {_last_line(log)}")
    return done.stdout, log


def _input(path: Path) -> list[str]:
    return [
        *INPUT_OPTIONS.split(),
        "-i",
        f"file:{path}",
    ]  # file: keeps a colon from being a protocol


def _comment_gif(path: Path, comment: str) -> None:
    """Insert a comment extension after the global palette, where every reader looks for it."""
    data, text = path.read_bytes(), comment.encode()
    flags = data[10]
    start = GIF_HEADER + _palette(flags)
    blocks = [text[index : index + 255] for index in range(0, len(text), 255)]
    extension = COMMENT + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
    path.write_bytes(data[:start] + extension + data[start:])


def _gif_comment(file: IO[bytes]) -> str:
    """Read the comment that `_comment_gif` writes, or an empty string."""
    file.seek(0)
    header = file.read(GIF_HEADER)
    file.seek(_palette(header[10]) if len(header) == GIF_HEADER else 0, os.SEEK_CUR)
    data = file.read(MAX_METADATA_BYTES)
    if not data.startswith(COMMENT):
        return ""
    text, at = bytearray(), len(COMMENT)
    while at < len(data) and data[at]:
        text += data[at + 1 : at + 1 + data[at]]
        at += 1 + data[at]
    return text.decode(errors="replace")


def _palette(flags: int) -> int:
    """Return the bytes of the global palette, from the flags of a GIF's header."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


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
    for line in re.findall(r"(?:\\.|[^\\\n]+)+", text, re.DOTALL):
        if line.startswith("["):
            break
        name, found, value = line.partition("=")
        if found:
            metadata[name.lower()] = re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
    return metadata


def _reason(log: IO[bytes]) -> str:
    """Return the last line of a log that ffmpeg has written, which may be long."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - MAX_LOG_BYTES))
    return _last_line(log.read().decode(errors="replace"))


def _last_line(log: str) -> str:
    """Return the last informative line of ffmpeg's log, without the name of its module."""
    lines = [re.sub(r"^(\[[^]]*\]\s*)+", "", line).strip() for line in log.splitlines()]
    lines = [line for line in lines if line and line != "Conversion failed!"]
    return lines[-1] if lines else "ffmpeg gave no reason"
