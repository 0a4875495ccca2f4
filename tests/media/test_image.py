"""Images are read and fitted like in the official code; bad ones are refused."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.conftest import DATA, golden, settings
from wanpipe.errors import UsageError
from wanpipe.media.image import (
    MAX_FILE_BYTES,
    bicubic,
    clip_pixels,
    crop_last,
    fit,
    open_image,
    signed,
)
from wanpipe.runtime.report import Report

UNUSUAL = ["alpha.png", "animated.gif", "cmyk.jpg", "gray16.png", "one_by_one.png"]


def fixture_image(model: str) -> Image.Image:
    return open_image(DATA / "expected" / model / "image.png")


def plain(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (255, 0, 255))


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_images_give_the_official_pixels(name: str) -> None:
    pixels = np.asarray(open_image(DATA / "bad" / name))
    np.testing.assert_array_equal(pixels, golden("bad/images")[name])


class Remarks(Report):
    """Keeps what a person is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def remark(self, text: str) -> None:
        self.texts.append(text)


@pytest.mark.parametrize("name", ["photo.jpg", "photo.png", "photo.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_ignored_with_a_remark_or_obeyed(
    name: str, orientation: int, tmp_path: Path
) -> None:
    image = plain(40, 24)
    image.paste((0, 0, 0), (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / name, exif=exif, quality=95)
    report = Remarks()
    stored = open_image(tmp_path / name, report=report)
    assert np.abs(np.asarray(stored, int) - np.asarray(image, int)).mean() < 5
    assert len(report.texts) == (orientation != 1)
    assert all("--exif" in text for text in report.texts)
    sizes: list[tuple[int, int]] = []
    turned = open_image(tmp_path / name, True, lambda *size: sizes.append(size), report)
    expected = ImageOps.exif_transpose(Image.open(tmp_path / name)).convert("RGB")
    np.testing.assert_array_equal(turned, expected)
    assert sizes == [turned.size] == [(24, 40) if orientation > 4 else (40, 24)]
    assert len(report.texts) == (orientation != 1)


def test_an_image_may_be_refused_by_its_size_before_it_is_decoded(tmp_path: Path) -> None:
    whole = io.BytesIO()
    fixture_image("wan21-i2v").save(whole, "PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:2000])  # enough for its header

    def refuse(width: int, height: int) -> None:
        raise UsageError(f"not {width}x{height}")

    with pytest.raises(UsageError, match="not 45x64"):
        open_image(tmp_path / "cut.png", check=refuse)


@pytest.mark.parametrize("kind", ["EPS", "PPM", "ICO", "PCX"])
def test_no_other_format_is_opened(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain(32, 32).save(tmp_path / "image.png", kind)

    def start(*_: object, **__: object) -> None:
        raise AssertionError("Pillow starts Ghostscript for an EPS")

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(UsageError, match="none of PNG, JPEG, WEBP, GIF, TIFF, BMP"):
        open_image(tmp_path / "image.png")


PEAK = """
import sys
from pathlib import Path
from tests.peak import peak_bytes
from wanpipe.media.image import open_image
size = open_image(Path(sys.argv[1])).size
print(size, peak_bytes())
"""


def test_one_frame_of_a_long_animation_costs_no_more_than_one(tmp_path: Path) -> None:
    animation = io.BytesIO()
    frames = [Image.new("RGB", (400, 300), color) for color in ("red", "blue")]
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:], duration=100)
    data = animation.getvalue()
    first = data.index(b"\x21\xf9")  # the control block before a frame
    second = data.index(b"\x21\xf9", first + 1)
    (tmp_path / "long.gif").write_bytes(data[:second] + 9000 * data[second:-1] + b";")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "long.gif"], capture_output=True, text=True
    )
    assert done.stdout.startswith("(400, 300)"), done.stderr
    assert int(done.stdout.split()[-1]) < 400_000_000  # all frames take 3 GB


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_usual_format_is_opened_whatever_its_name(kind: str, tmp_path: Path) -> None:
    plain(32, 16).save(tmp_path / "image", kind)
    assert open_image(tmp_path / "image").size == (32, 16)


def test_a_file_that_is_not_regular_or_too_large_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(UsageError, match="not a regular file"):
            open_image(path)
    plain(32, 16).save(tmp_path / "film.webp")
    os.truncate(tmp_path / "film.webp", MAX_FILE_BYTES + 1)
    with pytest.raises(UsageError, match="larger than 268435456 bytes"):
        open_image(tmp_path / "film.webp")


def test_unreadable_images_are_one_line_errors(tmp_path: Path) -> None:
    whole = io.BytesIO()
    fixture_image("wan21-i2v").save(whole, "PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:2000])
    for path in (DATA / "bad" / "text.png", tmp_path / "cut.png", tmp_path, tmp_path / "none.png"):
        with pytest.raises(UsageError) as caught:
            open_image(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [15, 11])  # Pillow's error, and its mere warning
def test_decompression_bombs_are_refused(
    side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain(side, side).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UsageError, match="at most 100 pixels"):
        open_image(tmp_path / "large.png")


@pytest.mark.parametrize(
    ("model", "size", "mode", "inside", "corner", "mean", "deviation"),
    [
        (
            "wan21-i2v",
            (32, 32),
            "stretch",
            (0.0101435, 0.0280605, -0.171677),
            (0.0809753, -0.8330793, -0.0797355),
            -0.1042215,
            0.3798688,
        ),
        (
            "wan22-i2v-a14b",
            (48, 32),
            "stretch",
            (-0.2598187, 0.3293892, -0.2878031),
            (-0.1512246, 0.7879506, -0.1099195),
            0.0322964,
            0.4804553,
        ),
        (
            "wan22-ti2v-5b",
            (32, 64),
            "cover",
            (0.4745098, 0.7411765, -0.5215687),
            (0.7098039, 0.0901961, -0.145098),
            0.0488933,
            0.4353272,
        ),
    ],
)
def test_fitted_image_is_the_official_tensor(
    model: str,
    size: tuple[int, int],
    mode: str,
    inside: tuple[float, ...],
    corner: tuple[float, ...],
    mean: float,
    deviation: float,
) -> None:
    resample = "lanczos" if mode == "cover" else "bicubic"
    pixels = fit(fixture_image(model), *size, mode, resample)
    assert pixels.dtype == np.float32 and pixels.shape == (size[1], size[0], 3)
    np.testing.assert_allclose(pixels[5, 7], inside, rtol=0, atol=5e-7)
    np.testing.assert_allclose(pixels[-1, -1], corner, rtol=0, atol=5e-7)
    assert abs(pixels.mean(dtype=np.float64) - mean) < 1e-7
    assert abs(pixels.std(dtype=np.float64) - deviation) < 1e-7


@pytest.mark.parametrize("case", ["same", "other", "smaller", "frames81"])
def test_a_last_image_is_the_official_tensor(case: str) -> None:
    topic, folder = "wan21-flf2v/condition", DATA / "expected" / "wan21-flf2v"
    run, reference = settings(topic)["cases"][case], golden(topic)
    first, last = (open_image(folder / run[f"{name}_frame"]) for name in ("first", "last"))
    width, height = run["video_size"]
    pixels = fit(last, width, height, "stretch", "bicubic")
    if first.size != last.size:
        cropped = crop_last(last, first.size)
        crop = run["last_frame_crop"]
        assert cropped.shape == (crop["rows"], crop["columns"], 3)
        pixels = bicubic(cropped, height, width)
    expected = reference[f"{case}_last_image_tensor"][:, 0].transpose(1, 2, 0)
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=2e-6)


def test_a_last_image_far_smaller_than_the_first_is_refused() -> None:
    with pytest.raises(UsageError, match="leave --fit official out"):
        crop_last(Image.new("RGB", (1, 2)), (8192, 8192))


def test_bicubic_matches_torch_including_its_overshoot() -> None:
    pixels = np.array([[0, 255, 64], [128, 32, 200]], np.uint8)
    expected = [  # torch.nn.functional.interpolate(size=(3, 4), mode="bicubic")
        [-1.2478535, 0.5364402, 0.7699085, -0.7157007],
        [-0.5427945, -0.0892904, 0.1614909, 0.0288201],
        [0.1622642, -0.7150206, -0.4469264, 0.7733407],
    ]
    resized = bicubic(np.repeat(pixels[..., None], 3, axis=-1), 3, 4)
    np.testing.assert_allclose(resized[..., 1], expected, rtol=0, atol=5e-7)


def test_bicubic_computes_any_part_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.asarray(fixture_image("wan21-i2v"))
    whole = bicubic(pixels, 90, 70)
    monkeypatch.setattr("wanpipe.media.image.PIXELS_AT_ONCE", 3 * pixels.shape[1])
    np.testing.assert_array_equal(bicubic(pixels, 90, 70), whole)
    part = bicubic(pixels, 90, 70, (5, 20, 41, 87))
    np.testing.assert_array_equal(part, whole[20:87, 5:41])


def test_bicubic_to_the_same_size_is_exact() -> None:
    pixels = np.asarray(fixture_image("wan21-i2v"))
    np.testing.assert_array_equal(bicubic(pixels, *pixels.shape[:2]), signed(pixels))


@pytest.mark.parametrize("resample", ["bicubic", "lanczos"])
@pytest.mark.parametrize("mode", ["stretch", "cover", "pad"])
@pytest.mark.parametrize("source", [(1, 1), (45, 64), (64, 45), (33, 31)])
def test_fit_fills_the_canvas(source: tuple[int, int], mode: str, resample: str) -> None:
    pixels = fit(plain(*source), 48, 32, mode, resample)
    assert pixels.shape == (32, 48, 3) and pixels.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(pixels[16, 24], [1, -1, 1], atol=1e-6)
    if mode != "pad":
        np.testing.assert_allclose(pixels - pixels[16, 24], 0, atol=1e-6)


@pytest.mark.parametrize("resample", ["bicubic", "lanczos"])
def test_pad_centers_the_whole_image_on_black(resample: str) -> None:
    pixels = fit(plain(20, 40), 48, 32, "pad", resample)
    bright = pixels[..., 0] > 0
    assert bright[:, 16:32].all() and bright.sum() == 16 * 32
    np.testing.assert_array_equal(pixels[~bright], -1)


@pytest.mark.parametrize("resample", ["bicubic", "lanczos"])
def test_cover_crops_to_the_center(resample: str) -> None:
    image = plain(96, 32)
    image.paste((0, 0, 0), (0, 0, 24, 32))
    image.paste((0, 0, 0), (72, 0, 96, 32))
    np.testing.assert_allclose(fit(image, 48, 32, "cover", resample)[..., 0], 1, atol=1e-6)


def test_an_image_far_narrower_than_its_canvas_is_refused() -> None:
    with pytest.raises(UsageError, match="too narrow to cover 1280x720; crop it first"):
        fit(plain(1, 1000), 1280, 720, "cover", "lanczos")


def test_clip_pixels_are_normalized_by_the_mean_and_deviation_of_clip() -> None:
    pixels = clip_pixels(plain(31, 57))
    assert pixels.shape == (224, 224, 3) and pixels.dtype == np.float32
    white, black = (1 - 0.48145466) / 0.26862954, -0.4578275 / 0.26130258
    np.testing.assert_allclose(pixels[..., 0], white, atol=1e-6)
    np.testing.assert_allclose(pixels[..., 1], black, atol=1e-6)
