"""Changed images, noise and comments of videos: a result, or one line, and no other file."""

import io
import json
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import DATA
from tests.documents import guard, to_text
from tests.workshop import Place, inside
from wanpipe.denoising.start import read_noise
from wanpipe.errors import UsageError, WanpipeError
from wanpipe.media.ffmpeg import program
from wanpipe.media.image import open_image
from wanpipe.media.video import read_metadata, write_video
from wanpipe.media.video_reader import probe, read_frames
from wanpipe.runtime.report import Report

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
FILMS = DATA / "expected" / "wan21-vace" / "inputs"
IMAGES, NOISES = 1500, 1500
Record = Callable[[str, object], None]
PIECES = (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"(" * 90, b"[[", b"'|O'", b"\x1b[31m")


def changed(dice: random.Random, data: bytes, end: int) -> bytes:
    """Change a few bytes, most of them before `end`, where the header is."""
    data = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 4))):
        at = dice.randrange(min(len(data), dice.choice((end, end, 10**6))))
        kind = dice.random()
        if kind < 0.5:
            data[at] = dice.randrange(256)
        elif kind < 0.6:
            del data[max(at, 1) :]
        else:
            piece = dice.choice(PIECES)
            data[at : at + (len(piece) if dice.random() < 0.5 else 0)] = piece
    return bytes(data)


def images() -> list[bytes]:
    """Small images of every format, with and without an orientation."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    exif, found = Image.Exif(), []
    exif[0x0112] = 6
    for kind in FORMATS:
        for more in ({}, {"exif": exif}):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, kind, **more)
            found.append(file.getvalue())
    return found


def outcomes(
    path: Path,
    times: int,
    data: Callable[[], bytes],
    read: Callable[[], object],
    record: Record,
) -> None:
    """Check that reading what `data` gives succeeds or is refused in one line; both happen."""
    seen: Counter[bool] = Counter()
    for _ in range(times):
        path.write_bytes(data())
        with guard.watching(path.parent) as wrong:
            try:
                read()
                seen[True] += 1
            except UsageError as error:
                assert "\n" not in str(error)
                seen[False] += 1
        assert not wrong
    assert seen[True] > times / 100 and seen[False] > times / 10, seen
    record("cases", times)
    record("refused", seen[False])


def test_a_changed_image_is_read_or_refused(
    tmp_path: Path, fuzz_factor: int, record_property: Record
) -> None:
    dice, whole, path = random.Random(1), images(), tmp_path / "image.png"
    outcomes(
        path,
        IMAGES * fuzz_factor,
        lambda: changed(dice, dice.choice(whole), 200),
        lambda: open_image(path, exif=dice.random() < 0.5),
        record_property,
    )


def test_changed_noise_is_read_or_refused(
    tmp_path: Path, fuzz_factor: int, record_property: Record
) -> None:
    file, shape, path = io.BytesIO(), (4, 2, 4, 4), tmp_path / "noise.npy"
    np.save(file, np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    dice = random.Random(2)
    outcomes(
        path,
        NOISES * fuzz_factor,
        lambda: changed(dice, file.getvalue(), 128),
        lambda: read_noise(path, shape),
        record_property,
    )


@pytest.mark.parametrize(("name", "times"), [("film.gif", 30), ("film", 300)])
def test_a_changed_video_is_shown_or_refused(
    name: str, times: int, studio: Place, fuzz_factor: int, record_property: Record
) -> None:
    dice, path = random.Random(3), studio.root / name
    studio.do("decode", "--from", next(studio.cache.glob("decode/*")), "--output", name)
    lineage = json.loads(read_metadata(path)["comment"])
    codes: Counter[int] = Counter()
    for number in range(times * fuzz_factor):
        document = {**lineage, "wanpipe": {**lineage["wanpipe"], "seed": number}}
        part = dice.choice(list(document["wanpipe"]))
        odd = (None, [], {}, -1, 1e308, "\x1b[2J", "x" * 9999, [[[]]], True, float("nan"))
        if dice.random() < 0.8:
            document["wanpipe"][dice.choice((part, "\u202e"))] = dice.choice(odd)
        else:
            document["wanpipe"] = dice.choice(odd)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        frame = np.zeros((1, 16, 16, 3), np.uint8)
        write_video(path, [frame], 8, {"comment": to_text(document).decode()})
        with guard.watching(studio.root) as wrong:
            shown = inside("show", path, cwd=studio.root)
        assert not [one for one in wrong if "ffmpeg" not in one]
        assert shown.stderr.isascii() and len(shown.stderr.splitlines()) == (shown.code != 0)
        assert not set("\x1b\u202e") & set(" ".join(shown.paths))
        codes[shown.code] += 1
    assert set(codes) == {0, 2}
    record_property("cases", sum(codes.values()))
    record_property("refused", codes[2])


@pytest.mark.parametrize("name", ["film.mp4", "film.webm"])
def test_a_changed_file_of_a_video_is_read_or_refused(name: str, tmp_path: Path) -> None:
    dice, path = random.Random(4), tmp_path / name
    frame = np.zeros((1, 16, 16, 3), np.uint8)
    whole = write_video(path, [frame], 8, {"comment": '{"wanpipe":{}}'}).read_bytes()
    for _ in range(40):
        path.write_bytes(changed(dice, whole, len(whole)))
        try:
            assert isinstance(read_metadata(path).get("comment", ""), str)
        except WanpipeError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["depth.mp4", "film.mkv", "film.gif", "film.avi"])
def test_a_changed_film_is_read_or_refused_in_one_line(
    name: str, tmp_path: Path, fuzz_factor: int
) -> None:
    dice, source, path = random.Random(5), FILMS / "depth.mp4", tmp_path / name
    if name == source.name:
        whole = source.read_bytes()
    else:
        command = [program(), "-loglevel", "error", "-i", str(source), str(path)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        whole = path.read_bytes()
    report = Report()
    for _ in range(25 * fuzz_factor):
        path.write_bytes(changed(dice, whole, len(whole)))
        started = time.monotonic()
        try:
            index = probe(path, report, frames=100)
            frames = sum(1 for _ in read_frames(path, range(index.frames), report))
            assert frames == index.frames
        except WanpipeError as error:
            assert "\n" not in str(error) and "\x1b" not in str(error)
        assert time.monotonic() - started < 60
