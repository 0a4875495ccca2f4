"""The 8-bit resize and the fit of references, against what the official code made."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import DATA, golden, settings
from wanpipe.errors import UsageError
from wanpipe.media.image import open_image
from wanpipe.media.reference import place_reference
from wanpipe.media.resize import resize, resize_crop

VACE = DATA / "expected" / "wan21-vace"
CASES = settings("wan21-vace/prepare")["cases"]
FILMS = [name for name, case in CASES.items() if case["src_video"] and name != "mask_alone"]
REFERENCES = [name for name, case in CASES.items() if case["src_ref_images"]]


def keys(x: float) -> float:
    """Keys' cubic with a = -0.5, written for one number."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def plain_axis(values: list[int], target: int) -> list[int]:
    """Resize one row of bytes, one number at a time."""
    size, rows = len(values), []
    scale = size / target
    stretch = max(scale, 1.0)
    for output in range(target):
        center = scale * (output + 0.5)
        inputs = range(
            max(int(center - 2 * stretch + 0.5), 0), min(int(center + 2 * stretch + 0.5), size)
        )
        weights = [keys((one - center + 0.5) / stretch) for one in inputs]
        rows.append((inputs, [weight / sum(weights) for weight in weights]))
    largest = max(max(weights) for _, weights in rows)
    bits = max(p for p in range(23) if int(0.5 + largest * 2**p) < 2**15)
    result = []
    for inputs, weights in rows:
        whole = [int(abs(w) * 2**bits + 0.5) * (-1 if w < 0 else 1) for w in weights]
        total = sum(w * values[one] for w, one in zip(whole, inputs, strict=True))
        result.append(min(max((total + 2 ** (bits - 1)) >> bits, 0), 255))
    return result


@pytest.mark.parametrize("case", FILMS)
def test_frames_are_resized_to_the_last_bit_as_officially(case: str) -> None:
    arrays, film = golden("wan21-vace/prepare"), Path(CASES[case]["src_video"]).stem
    wanted = arrays[f"{case}_video"]  # (3, T, Y, X)
    for number, index in enumerate(arrays[f"{case}_frame_ids"]):
        ours = resize_crop(arrays[f"film_{film}"][index], *wanted.shape[2:])
        assert np.array_equal(ours.transpose(2, 0, 1), wanted[:, number])


@pytest.mark.parametrize("case", ["inpaint", "composite", "mask_size"])
def test_masks_are_resized_to_the_last_bit_as_officially(case: str) -> None:
    arrays, film = golden("wan21-vace/prepare"), Path(CASES[case]["src_mask"]).stem
    wanted = arrays[f"{case}_mask"]  # (1, T, Y, X)
    right, bottom = (CASES[case]["box_x1_x2_y1_y2"][at] for at in (1, 3))
    for number, index in enumerate(arrays[f"{case}_frame_ids"]):
        frame = arrays[f"film_{film}"][index][:bottom, :right]
        ours = resize_crop(frame, *wanted.shape[2:])[..., 0].astype(np.float32)
        ours = (ours / np.float32(127.5) - np.float32(1) + np.float32(1)) / np.float32(2)
        assert np.allclose(ours, wanted[0, number], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("size", "target"), [(70, 49), (30, 53), (101, 12), (64, 64), (3, 400), (1, 5), (200, 1)]
)
def test_an_axis_is_the_same_number_by_number(size: int, target: int) -> None:
    dice = np.random.default_rng(size)
    values = (dice.integers(0, 2, size) * 255).astype(np.uint8)
    wanted = plain_axis(values.tolist(), target) if size != target else values.tolist()
    row, column = np.stack([values] * 3, axis=1)[None], np.stack([values] * 3, axis=1)[:, None]
    assert resize(row, 1, target)[0, :, 1].tolist() == wanted
    assert resize(column, target, 1)[:, 0, 2].tolist() == wanted


def test_a_part_is_the_same_as_in_the_whole() -> None:
    frame = np.random.default_rng(1).integers(0, 256, (45, 77, 3), dtype=np.uint8)
    whole = resize(frame, 64, 33)
    assert np.array_equal(resize(frame, 64, 33, (5, 40), (7, 30)), whole[5:40, 7:30])
    assert np.array_equal(resize_crop(frame, 45, 77), frame)


def test_a_frame_too_narrow_to_cover_is_refused() -> None:
    with pytest.raises(UsageError, match="too narrow to cover 832x480"):
        resize_crop(np.zeros((1, 8000, 3), np.uint8), 480, 832)


@pytest.mark.parametrize("case", REFERENCES)
def test_references_are_placed_as_officially(case: str) -> None:
    arrays = golden("wan21-vace/prepare")
    width, height = CASES[case]["video_size"]
    for number, file in enumerate(CASES[case]["src_ref_images"]):
        ours = place_reference(open_image(VACE / file), width, height)
        wanted = arrays[f"{case}_ref{number}"][:, 0]
        assert np.abs(ours.transpose(2, 0, 1) - wanted).max() <= 5e-7


def test_a_reference_of_one_line_is_refused() -> None:
    with pytest.raises(UsageError, match="reference of 4000x1 is too narrow"):
        place_reference(Image.new("RGB", (4000, 1)), 832, 480)
